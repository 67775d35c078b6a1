"""The report as one HTML page: answers, tables, curves, pictures; no other file is needed to read it."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from keepaug.report.aggregate import Group, origin_name
from keepaug.report.curves import Chart, Line, chart_of, read_curve
from keepaug.report.pairs import Pairs
from keepaug.report.paper import NOT_RUN, FilledTable
from keepaug.report.thumbnails import thumbnail
from keepaug.runs.pages import render

_MOST_LINES = 24  # of a chart
_CONFIGS = ("config.yaml",)
_WEIGHTS = ("weights.pt", "model_final.pth")


class Share(NamedTuple):
    """In percent or points, with a 95 % interval where one is known."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """As a difference: `-18.0 [-22.1, -14.0]`."""
        return f"{self.mean:+.1f}" + ("" if self.low is None else f" [{self.low:+.1f}, {self.high:+.1f}]")


@dataclass(frozen=True)
class Rate:
    """Objects destroyed by an augmentation.

    Attributes:
        name: of the augmentation.
        plain: share of the objects, in percent.
        keep: with Keep.
        difference: Keep minus plain.
    """

    name: str
    plain: Share
    keep: Share
    difference: Share

    def verdict(self) -> tuple[str, str]:
        """As of pairs of runs, less being better."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return "open", "without an interval, which an audit of today records, nothing is decided"
        if low <= 0 <= high:
            return "open", "it holds zero, so nothing is decided"
        verdict = "gains" if high < 0 else "loses"
        return verdict, f"Keep {verdict}"


@dataclass(frozen=True)
class Section:
    """One task.

    Attributes:
        id: kind of its results.
        title: of the task.
        metric: what it is judged by, in percent.
        groups: of runs, baselines first.
        head: of the table.
        rows: of the table, one for each group.
        pairs: each method with Keep against the same without: names and differences.
        settings: what tells the groups apart, by name, for each group.
    """

    id: str
    title: str
    metric: str
    groups: Sequence[Group]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    pairs: Sequence[tuple[str, str, Pairs]]
    settings: Sequence[Mapping[str, Any]]


def answer(section: Section) -> tuple[str, str]:
    """What the task's runs say of keeping, in a sentence or two: the comparison with most pairs, and a count.

    Returns:
        "gains" or "loses" where no comparison says the opposite, else "open"; and the text.
    """
    if not (compared := [one for one in section.pairs if len(one[2])]):
        return "open", "nothing was run both with and without Keep on the same seed."
    keep, plain, pairs = max(compared, key=lambda one: len(one[2]))
    verdict, means = _verdict(pairs)
    short = [_apart(*one[:2]) for one in compared]
    names = _apart(keep, plain)
    if short.count(names) > 1:
        names = (keep, plain)
    told = f"{pairs} (points of {section.metric}, 95 % interval); " if len(pairs) > 1 else ""
    text = f"{names[0]} against {names[1]}: {told}{means}."
    return _together(verdict, text, [_verdict(one)[0] for _, _, one in compared])


def _apart(keep: str, plain: str) -> tuple[str, str]:
    """Two names without the words that both end with, and without the whole parts that both begin with."""
    first, second = keep.split(), plain.split()
    while len(first) > 1 and len(second) > 1 and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    begin = 0
    for number, (one, other) in enumerate(zip(first[:-1], second[:-1], strict=False), 1):
        if one != other:
            break
        begin = number if one[-1] in ",:" else begin
    return " ".join(first[begin:]).rstrip(","), " ".join(second[begin:]).rstrip(",")


def _together(verdict: str, text: str, verdicts: Sequence[str]) -> tuple[str, str]:
    """With the number of comparisons that say the same or not."""
    if len(verdicts) > 1:
        numbers = (verdicts.count(word) for word in ("gains", "loses", "open"))
        text += (
            f" Of {len(verdicts)} comparisons "
            + "Keep gains in {}, loses in {}, and {} decide nothing.".format(*numbers)
        )
    decided = set(verdicts) - {"open"}
    return (decided.pop() if len(decided) == 1 and verdict != "open" else "open"), text


def _verdict(pairs: Pairs) -> tuple[str, str]:
    if len(pairs) == 1:
        return "open", "one pair has no interval and decides nothing"
    if abs(pairs.mean) <= pairs.half_width():
        return "open", "it holds zero, so nothing is decided"
    verdict = "gains" if pairs.mean > 0 else "loses"
    return verdict, f"Keep {verdict}"


def html_page(
    *,
    title: str,
    summary: str,
    sections: Sequence[Section],
    rates: Sequence[Rate],
    texts: Mapping[str, str],
    pictures: Sequence[tuple[str, Path]],
    tables: Sequence[FilledTable],
    output: Path,
) -> str:
    """The page.

    Args:
        title: of the page.
        summary: how many runs, when, on what.
        sections: one for each task that was run.
        rates: of objects destroyed.
        texts: "rates_title", "rates", "pairs_title" and "paper".
        pictures: caption and file.
        tables: of the paper.
        output: folder of the page, for its links to run folders.
    """
    answers = []
    if rates:
        verdict, text = _rates_answer(rates)
        answers.append({"id": "fidelity", "title": texts["rates_title"], "verdict": verdict, "text": text})
    for section in sections:
        verdict, text = answer(section)
        answers.append({"id": section.id, "title": section.title, "verdict": verdict, "text": text})
    shown = [(caption, path, thumbnail(path)) for caption, path in pictures]
    return render(
        Path(__file__).parent / "page.html.j2",
        "report",
        title=title,
        answers=answers,
        summary=summary,
        rates=_bars(rates),
        rates_title=texts["rates_title"],
        rates_text=texts["rates"],
        pairs_title=texts["pairs_title"],
        paper_text=texts["paper"],
        sections=[_section(section, output) for section in sections],
        pictures=[
            {"caption": caption, "source": source, "target": _link(path, output)}
            for caption, path, source in shown
            if source is not None
        ],
        tables=[_paper_table(table) for table in tables],
    )


def _rates_answer(rates: Sequence[Rate]) -> tuple[str, str]:
    """As `answer`; Keep gains where it destroys less."""
    first = max(rates, key=lambda one: abs(one.difference.mean))
    verdict, means = first.verdict()
    unit = "points" if first.difference.low is None else "points, 95 % interval"
    text = (
        f"{first.name} destroys {first.plain.mean:.1f} % of the objects, with Keep {first.keep.mean:.1f} %: "
        f"{first.difference} ({unit}); {means}."
    )
    return _together(verdict, text, [one.verdict()[0] for one in rates])


def _bars(rates: Sequence[Rate]) -> list[dict[str, Any]]:
    top = max((one.high or one.mean for rate in rates for one in (rate.plain, rate.keep)), default=0) or 1

    def bar(share: Share) -> dict[str, Any]:
        found: dict[str, Any] = {"text": f"{share.mean:.1f} %", "width": f"{100 * share.mean / top:.2f}"}
        if share.low is not None and share.high is not None:
            found["text"] += f" ({share.low:.1f}-{share.high:.1f})"
            found["low"] = f"{100 * share.low / top:.2f}"
            found["span"] = f"{100 * (share.high - share.low) / top:.2f}"
        return found

    return [{"name": one.name, "plain": bar(one.plain), "keep": bar(one.keep)} for one in rates]


def _section(section: Section, output: Path) -> dict[str, Any]:
    zero, pairs = _forest(section.pairs)
    rows = [
        {
            "cells": row,
            "baseline": index == 0 and len(section.rows) > 1,
            "runs": [_files(run, output) for run in group.results],
        }
        for index, (row, group) in enumerate(zip(section.rows, section.groups, strict=True))
    ]
    return {
        "id": section.id,
        "title": section.title,
        "metric": section.metric,
        "head": section.head,
        "rows": rows,
        "pairs": pairs,
        "zero": zero,
        "chart": _chart(section),
        "settings": _differing(section.settings),
        "origins": [
            (row[0], lines)
            for row, group in zip(section.rows, section.groups, strict=True)
            if (lines := list(_origins(group.first["started_from"])))
        ],
    }


def _forest(pairs: Sequence[tuple[str, str, Pairs]]) -> tuple[float, list[dict[str, Any]]]:
    """The place of zero, and each difference as a bar, in percent of the width that all share."""
    half = [pairs.half_width() if len(pairs) > 1 else 0.0 for _, _, pairs in pairs]
    known = [(one.mean, width) for (_, _, one), width in zip(pairs, half, strict=True) if len(one)]
    ends = [0.0, *(mean + sign * width for mean, width in known for sign in (-1, 1))]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / span, 2)

    found = []
    for (keep, plain, one), width in zip(pairs, half, strict=True):
        row: dict[str, Any] = {"name": f"{keep} - {plain}", "text": str(one), "mean": None, "span": 0}
        if needed := one.still_needed():
            row["text"] += f"; {needed} more until the interval is ± 0.2"
        if len(one):
            row |= {"mean": place(one.mean), "low": place(one.mean - width), "span": 92 * 2 * width / span}
        found.append(row)
    return place(0.0), found


def _chart(section: Section) -> Chart | None:
    """Of the metric, or of the loss where no run was evaluated more than once."""
    named = [(row[0], group) for row, group in zip(section.rows, section.groups, strict=True)]
    read = [
        (name, style, *read_curve(run["folder"], section.metric))
        for style, (name, group) in enumerate(named)
        for run in group.results
    ]
    if not (keys := [key for _, _, key, _ in read if key]):
        return None
    wanted = next((key for key in keys if key.rpartition("/")[2] == section.metric), keys[0])
    lines = [Line(name, style, points) for name, style, key, points in read if key == wanted]
    return chart_of(wanted, lines[:_MOST_LINES])


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [(name, [str(one.get(name, "-")) for one in settings]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _origins(began: Mapping[str, Any] | None) -> Iterable[str]:
    """Each network that a run goes back to, the nearest first."""
    while began:
        run = began.get("provenance") or {}
        text = f"{began['file']}, sha256 {began['sha256'][:12]}"
        if run:
            data = run.get("dataset") or {}
            sizes = " + ".join(f"{number} {split}" for split, number in data.get("sizes", {}).items())
            text += f": {origin_name(began)}, seed {run.get('seed')}"
            text += f", on {data['name']} ({sizes})" if "name" in data else ""
            marks = {"synthetic": ", drawn data", "shortened": ", shortened"}
            text += "".join(mark for key, mark in marks.items() if run.get(key))
            text += f", revision {run['revision'][:10]}" if run.get("revision") else ""
        yield text
        began = run.get("started_from")


def _files(run: Mapping[str, Any], output: Path) -> dict[str, Any]:
    folder = Path(run["folder"])
    found = [("folder", folder)]
    for name, choices in (("config", _CONFIGS), ("weights", _WEIGHTS)):
        there = (folder / choice for choice in choices if (folder / choice).is_file())
        found += [(name, path) for path in list(there)[:1]]
    return {"seed": f"seed {run['seed']}", "files": [(name, _link(path, output)) for name, path in found]}


def _link(path: Path, output: Path) -> str:
    """Relative, so that the folder may move; never a scheme of its own."""
    return "./" + urllib.parse.quote(os.path.relpath(path.resolve(), output.resolve()).replace(os.sep, "/"))


def _paper_table(table: FilledTable) -> dict[str, Any]:
    rows = []
    for name, cells in table.rows:
        row = []
        for column, (printed, ours, remark) in zip(table.columns, cells, strict=True):
            where = f"{name} / {column}: "
            near = [text.removeprefix(where) for text in table.near if text.startswith(where)]
            shown = "" if ours == NOT_RUN and near else ours
            texts = {"printed": printed, "ours": shown, "remark": remark, "near": near}
            row.append({**texts, "none": ours == NOT_RUN})
        rows.append((name, row))
    return {
        "id": table.id,
        "title": table.title,
        "note": table.note,
        "columns": table.columns,
        "rows": rows,
        "num_run": table.num_run,
        "total": sum(len(cells) for _, cells in table.rows),
        "left_out": table.num_left_out,
    }
