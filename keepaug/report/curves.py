"""Learning curves of runs, from their `metrics.jsonl`, as lines of a chart whose text is the page's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = "metrics.jsonl"
_LOSSES = ("train/loss", "total_loss")
_MOST = 200  # points of a line


@dataclass(frozen=True)
class Line:
    """One run.

    Attributes:
        name: of the method; several seeds share it.
        style: number of the colour and the dashes, the same for all seeds.
        points: (step, value), rising steps.
    """

    name: str
    style: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """Lines in a square of 100 x 100 units with the origin at the top left.

    Attributes:
        title: what is drawn.
        lines: name, style and the points as SVG takes them.
        legend: name and style, once for each method.
        across: (place in percent, text) of the steps below the chart.
        upwards: (place in percent, text) of the values beside it.
    """

    title: str
    lines: tuple[tuple[str, int, str], ...]
    legend: tuple[tuple[str, int], ...]
    across: tuple[tuple[float, str], ...]
    upwards: tuple[tuple[float, str], ...]


def read_curve(folder: str | Path, metric: str) -> tuple[str, tuple[tuple[float, float], ...]]:
    """What a run recorded of a metric while it trained, or of its loss where it was evaluated only once.

    Args:
        folder: of the run.
        metric: last part of the key: "accuracy" finds "val/accuracy", not "train/accuracy".

    Returns:
        The key, and (step, value) by rising step; "" and nothing where the run left no curve.
    """
    path = Path(folder) / FILE
    try:
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    except OSError:
        return "", ()
    found: dict[str, dict[float, float]] = {}
    for line in lines:
        try:
            row = json.loads(line)
            step = float(row["step"])
        except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
            continue
        for key, value in row.items():
            wanted = key.rpartition("/")[2] == metric and not key.startswith("train/")
            if (wanted or key in _LOSSES) and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(key, {})[step] = float(value)
    curves = {key: tuple(sorted(points.items())) for key, points in found.items() if len(points) > 1}
    key = min(curves, key=lambda one: (one in _LOSSES, one), default="")
    return key, _thinned(curves[key]) if key else ()


def _thinned(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    every = math.ceil(len(points) / _MOST)
    return points[::every] if (len(points) - 1) % every == 0 else (*points[::every], points[-1])


def chart_of(title: str, lines: Sequence[Line]) -> Chart:
    """A chart with round numbers beside it.

    Args:
        title: what the values are.
        lines: at least one, with at least two points each.
    """
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    across, upwards = round_steps(0, max(steps), 4), round_steps(min(values), max(values), 4)
    left, right = 0.0, max(steps)
    low, high = min(*upwards, *values), max(*upwards, *values)

    def x(step: float) -> float:
        return round(100 * (step - left) / (right - left or 1), 2)

    def y(value: float) -> float:
        return round(100 - 100 * (value - low) / (high - low or 1), 2)

    drawn = (
        (line.name, line.style, " ".join(f"{x(step)},{y(value)}" for step, value in line.points))
        for line in lines
    )
    return Chart(
        title,
        tuple(drawn),
        tuple(dict.fromkeys((line.name, line.style) for line in lines)),
        tuple((x(step), f"{step:,g}") for step in across if step <= right),
        tuple((y(value), f"{value:g}") for value in upwards),
    )


def round_steps(low: float, high: float, number: int) -> list[float]:
    """About `number` round values (1, 2 or 5 times a power of ten apart) that enclose `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / number))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / number <= power * factor)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [round(index * step, 10) for index in range(first, last + 1)]
