"""Figures 2 and 3 of the paper: accuracy against the length, the magnitude and tau; from result files alone.

The paper gives the curves as pictures only. Where its tables have numbers for the same question they are
drawn beside ours, under their own name; no number is read off a picture.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keepaug.report.aggregate import Group, field_of
from keepaug.report.charts import KEEP, PAGE, PLAIN, sheet
from keepaug.report.paper import load_paper


@dataclass(frozen=True)
class Curve:
    """One line of a panel: a metric of the runs against the swept setting."""

    label: str
    metric: str = "accuracy"


@dataclass(frozen=True)
class Printed:
    """A column of one of the paper's tables that answers the same question."""

    label: str
    table: str
    column: int


@dataclass(frozen=True)
class Baseline:
    """A run without the swept setting, drawn as a dashed line."""

    label: str
    match: dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One half of a figure.

    Attributes:
        title: what is shown.
        key: the swept setting.
        axis: its name on the axis.
        values: where it is measured.
        match: settings that all runs of the sweep share.
        curves: what is drawn of them.
        printed: numbers of the paper beside them.
        baseline: the dashed line, if any.
    """

    title: str
    key: str
    axis: str
    values: tuple[float, ...]
    match: dict[str, Any]
    curves: tuple[Curve, ...]
    printed: tuple[Printed, ...] = ()
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Point:
    """What was found for one value of a panel: the runs over seeds, or None."""

    panel: Panel
    value: float | None  # None: the baseline
    settings: dict[str, Any]
    group: Group | None = field(compare=False)


_TRAIN_AND_TEST = (Curve("train (augmented images)", "train_accuracy"), Curve("test"))
# Cutout's recipe has dropout and no Cutout after a policy; RandAugment's, as AutoAugment's, the reverse.
_RAND_AUGMENT = {"num_ops": 3, "dropout": 0.0, "cutout_after": 16}
FIGURES: dict[str, tuple[Panel, Panel]] = {
    "2": (
        Panel(
            "Cutout",
            "size",
            "Cutout length (pixels)",
            (4, 8, 12, 16, 20, 24),
            {"method": "cutout"},
            _TRAIN_AND_TEST,
            (Printed("paper, table 2: ResNet-18, test", "2", 0),),
        ),
        Panel(
            "RandAugment, 3 operations",
            "magnitude",
            "distortion magnitude",
            (3, 6, 9, 12, 15, 18, 21, 24),
            {"method": "rand_augment", **_RAND_AUGMENT},
            _TRAIN_AND_TEST,
            (Printed("paper, table 4: AutoAugment's operations, test", "4", 0),),
        ),
    ),
    "3": (
        Panel(
            "KeepCutout, length 20",
            "tau",
            "tau",
            (0.2, 0.4, 0.6, 0.8),
            {"method": "keep_cutout", "saliency": "full", "size": 20},
            (Curve("KeepCutout, test"),),
            baseline=Baseline("Cutout (baseline)", {"method": "cutout", "size": 20}),
        ),
        Panel(
            "KeepRandAugment, 3 operations of magnitude 15, paste 8",
            "tau",
            "tau",
            (0.2, 0.4, 0.6, 0.8),
            {"method": "keep_rand_augment", "saliency": "full", **_RAND_AUGMENT, "magnitude": 15, "size": 8},
            (Curve("KeepRandAugment, test"),),
            baseline=Baseline(
                "RandAugment (baseline)", {"method": "rand_augment", **_RAND_AUGMENT, "magnitude": 15}
            ),
        ),
    ),
}


def wanted_settings(number: str) -> list[tuple[Panel, float | None, dict[str, Any]]]:
    """The settings of every run that a figure needs: panel, value (None: the baseline) and key=value."""
    wanted: list[tuple[Panel, float | None, dict[str, Any]]] = []
    for panel in FIGURES[number]:
        wanted += [(panel, value, {**panel.match, panel.key: value}) for value in panel.values]
        if panel.baseline is not None:
            wanted.append((panel, None, dict(panel.baseline.match)))
    return wanted


def find_points(number: str, groups: Sequence[Group], *, arch: str, comparable: bool = True) -> list[Point]:
    """Look the runs of a figure up.

    Args:
        number: "2" or "3".
        groups: of `aggregate`.
        arch: the network; the paper's is wrn28_10.
        comparable: only whole runs on real data; otherwise only shortened ones and those on drawn data.

    Raises:
        ValueError: two kinds of runs fit one point.
    """
    points = []
    for panel, value, settings in wanted_settings(number):
        fitting = [
            group
            for group in groups
            if group.first["kind"] == "classify"
            and group.comparable == comparable
            and (not comparable or field_of(group.first, "dataset") == "cifar10")
            and field_of(group.first, "config.arch") == arch
            and all(field_of(group.first, f"config.{key}") == wanted for key, wanted in settings.items())
        ]
        if len(fitting) > 1:
            folders = ", ".join(group.first["folder"] for group in fitting)
            raise ValueError(
                f"several kinds of runs fit "
                f"{', '.join(f'{key}={value}' for key, value in settings.items())}: {folders}; "
                "name a folder that holds one of them"
            )
        if fitting and fitting[0].repeated:
            raise ValueError(
                f"several runs of seed {', '.join(fitting[0].repeated)}: "
                f"{', '.join(result['folder'] for result in fitting[0].results)}; keep one of each seed"
            )
        points.append(Point(panel, value, settings, fitting[0] if fitting else None))
    return points


def printed_points(printed: Printed) -> list[tuple[float, float, float]]:
    """Value, mean and spread of a column of a table of the paper."""
    table = next(table for table in load_paper() if str(table["id"]) == printed.table)
    points = []
    for row in table["rows"]:
        mean, spread = re.fullmatch(r"([\d.]+)±([\d.]+)", row["cells"][printed.column]).groups()  # type: ignore[union-attr]
        points.append((float(row["name"]), float(mean), float(spread)))
    return points


def draw_figure(
    number: str, points: Sequence[Point], output: str | Path, *, arch: str, comparable: bool = True
) -> Path:
    """Draw both panels; means over seeds with the sample standard deviation as bars.

    Args:
        number: "2" or "3".
        points: of `find_points`.
        output: the picture; its ending decides the format.
        arch: for the title.
        comparable: whether the paper's numbers may stand beside the points.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an ending that matplotlib does not write.
    """
    with sheet(output, PAGE, 3.4) as figure:
        for axes, letter, panel in zip(figure.subplots(1, 2), "ab", FIGURES[number], strict=True):
            _draw_panel(axes, letter, panel, points, comparable)
        data = (
            "on CIFAR-10" if comparable else "in short runs or on drawn data, not comparable with the paper"
        )
        figure.suptitle(
            f"Figure {number} of the paper: {arch} {data}; means, standard deviations", fontsize=8
        )
    return Path(output)


def _draw_panel(axes: Any, letter: str, panel: Panel, points: Sequence[Point], comparable: bool) -> None:
    own = [point for point in points if point.panel == panel]
    for curve in panel.curves:
        _draw_curve(axes, curve, own)
    baseline = next((point.group for point in own if point.value is None), None)
    if panel.baseline is not None and baseline is not None:
        mean = _mean_and_spread(baseline.values("accuracy"))[0]
        axes.axhline(mean, linestyle="--", color="grey", label=panel.baseline.label)
    for printed in panel.printed if comparable else ():
        x, y, spread = zip(*printed_points(printed), strict=True)
        axes.errorbar(x, y, spread, fmt="x:", color="grey", capsize=2, label=printed.label)
    axes.set(xlabel=panel.axis, ylabel="accuracy (%)")
    missing = sum(point.group is None for point in own)
    axes.set_title(
        f"({letter}) {panel.title}" + (f"\n{missing} of {len(own)} points not run" if missing else "")
    )
    axes.set_xticks(panel.values)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _draw_curve(axes: Any, curve: Curve, points: Sequence[Point]) -> None:
    found = [
        (point.value, *_mean_and_spread(values))
        for point in points
        if point.value is not None
        and point.group is not None
        and (values := point.group.values(curve.metric))
    ]
    if found:
        x, y, spread = zip(*found, strict=True)
        numbers = sorted(
            {len(point.group.values(curve.metric)) for point in points if point.group is not None}
        )
        seeds = f"{' or '.join(map(str, numbers))} seed{'s' if numbers != [1] else ''}"
        shape, colour = ("s-", KEEP) if curve.metric == "accuracy" else ("o--", PLAIN)
        axes.errorbar(
            x, y, spread, fmt=shape, color=colour, capsize=2, label=f"ours, {curve.label} ({seeds})"
        )


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
