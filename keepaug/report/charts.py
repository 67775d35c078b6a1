"""Charts for a column of a paper: what an audit found, and differences of pairs of runs.

Letters have 8 points; what is told apart by colour is told apart by shape too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keepaug.report.pairs import Pairs
from keepaug.report.view import Section, decided, scope, short_names
from keepaug.runs.files import write_atomic

COLUMN, PAGE = 3.3, 6.9  # inches
PLAIN, KEEP = "#b8510d", "#0b66a8"  # of the pages; told apart by the colour-blind
_ROW, _LINE = 0.36, 0.15  # inches
_NARROW, _WIDE = 17, 52  # letters of a label's line
_POINT: Any = {"fmt": "o", "capsize": 2}
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.dpi": 300,
    "pdf.fonttype": 42,  # letters stay letters
    "svg.hashsalt": "keepaug",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.markersize": 4,
    "lines.linewidth": 1.1,
}


@contextmanager
def sheet(output: str | Path, width: float, height: float) -> Iterator[Any]:
    """A figure of matplotlib to draw on; it is written when the block ends, the same bytes for the same data.

    Args:
        output: the picture; its ending decides the format: pdf, svg, png.
        width: inches.
        height: inches.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an ending that matplotlib does not write.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'keepaug[report]'") from error
    kind = Path(output).suffix.removeprefix(".") or "png"
    if kind not in (known := Figure().canvas.get_supported_filetypes()):
        raise ValueError(f"no picture can be written as {output}: end it in {', '.join(sorted(known))}")
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(output), lambda file: figure.savefig(file, format=kind, metadata=dates))


def draw_audit(content: Mapping[str, Any], output: str | Path) -> Path:
    """What is destroyed and what the network still gets right, with 95 % intervals over images.

    Where no objects are known, importance lost.

    Args:
        content: of `audit.json`.
        output: see `sheet`.

    Returns:
        The path.
    """
    rows, data = content["rows"], content["data"]
    names = list(dict.fromkeys(row["augmentation"] for row in rows))
    title = {row["augmentation"]: row["title"] for row in sorted(rows, key=lambda row: not row["keep"])}
    objects = any(row["destroyed"] for row in rows)
    panels = (
        ("destroyed", f"objects destroyed (%)\n{data['objects']} objects")
        if objects
        else ("importance_lost", f"importance lost (%)\n{data['images']} images"),
        ("fidelity", f"fidelity (%)\n{data['images']} images"),
    )
    with sheet(output, COLUMN, _ROW * len(names) + 1.0) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (measure, label) in zip(axes, panels, strict=True):
            for keep, colour, marker in ((False, PLAIN, "o"), (True, KEEP, "s")):
                own = [row for row in rows if row["keep"] == keep and row[measure]]
                means = [100 * row[measure]["mean"] for row in own]
                ends = [
                    [100 * abs(row[measure][end] - row[measure]["mean"]) for row in own]
                    for end in ("low", "high")
                ]
                places = [names.index(row["augmentation"]) + (0.17 if keep else -0.17) for row in own]
                if own:
                    axis.errorbar(
                        means, places, xerr=ends, color=colour, **_POINT | {"fmt": marker},
                        markerfacecolor=colour if keep else "white", label="Keep" if keep else "plain",
                    )  # fmt: skip
            axis.set_xlabel(label)
            axis.grid(axis="x", linewidth=0.4, color="0.85")
            axis.set_axisbelow(True)
            axis.set_xlim(*_round_ends(axis.get_xlim()))
        axes[0].set_yticks(range(len(names)), [_label(title[name]) for name in names])
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        handles, labels = max(
            (axis.get_legend_handles_labels() for axis in axes), key=lambda one: len(one[1])
        )
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return Path(output)


def draw_pairs(sections: Sequence[Section], output: str | Path) -> Path:
    """Each comparison of Keep with plain: the mean difference, its 95 % interval and the number of pairs.

    The circle is hollow where the interval holds zero. One pair has none, and is left out.

    Args:
        sections: of `keepaug.report.page.sections`.
        output: see `sheet`.

    Returns:
        The path.

    Raises:
        ValueError: no comparison has two pairs.
    """
    lines: list[tuple[str, bool, Pairs | None]] = []  # text, whether it is a head, what stands below it
    for section in sections:
        short, own = short_names(section.pairs), [one for one in section.pairs if len(one[2]) > 1]
        if own:
            head = textwrap.wrap(f"{section.title} ({scope(section)}), {section.metric}", _WIDE - 4)
            lines += [(line, True, None) for line in head]
        for keep, plain, pairs in own:
            *above, last = textwrap.wrap(" minus ".join(short[keep, plain]), _WIDE - 6)
            lines += [*((line, False, None) for line in above), (last, False, pairs)]
    if not lines:
        raise ValueError(
            "no two seeds were run both with and without Keep: no difference has an interval to draw"
        )
    tall = sum(2 if below else 1 for _, _, below in lines)
    with sheet(output, COLUMN, _LINE * tall + 0.55) as figure:
        axis = figure.subplots()
        axis.axvline(0, color="0.4", linewidth=0.8)
        across, place = axis.get_yaxis_transform(), 0.5
        back = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        for text, bold, below in lines:
            weight = "bold" if bold else "normal"
            axis.text(0, place, text, transform=across, va="center", weight=weight, bbox=back)
            if below:
                number = f"{len(below)} pairs"
                axis.text(1, place, number, transform=across, va="center", ha="right", bbox=back)
            place += 1
            if below:
                face, half = KEEP if decided(below) else "white", below.half_width()
                axis.errorbar(below.mean, place, xerr=half, color=KEEP, markerfacecolor=face, **_POINT)
                place += 1
        axis.set(ylim=(tall, 0), yticks=[], xlabel="Keep minus plain (points), mean and 95 % interval")
        axis.set_xlim(*_round_ends(axis.get_xlim()))
        axis.grid(axis="x", linewidth=0.4, color="0.85")
        axis.set_axisbelow(True)
        axis.spines["left"].set_visible(False)
    return Path(output)


def _round_ends(ends: tuple[float, float]) -> tuple[float, float]:
    """A little room at both ends."""
    room = 0.04 * (ends[1] - ends[0])
    return ends[0] - room, ends[1] + room


def _label(text: str) -> str:
    return "\n".join(textwrap.wrap(text[:1].upper() + text[1:], _NARROW))
