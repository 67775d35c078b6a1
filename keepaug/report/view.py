"""The report as one HTML page: answers, tables, curves, pictures; no other file is needed to read it."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from keepaug.report.aggregate import Group, origin_name, sizes_of
from keepaug.report.curves import Chart, Line, chart_of, read_curve, round_steps
from keepaug.report.pairs import SETTLED, Pairs
from keepaug.report.paper import NOT_RUN, FilledTable
from keepaug.report.thumbnails import thumbnail
from keepaug.runs.pages import render

_MOST_LINES = 24  # of a chart
WHOLE = "whole run"  # status of what may stand beside the paper
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
            return "open", "nothing is decided without an interval, which a new audit records"
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
        note: what the columns are.
        baselines: numbers of the rows that no method is in.
        effects: each augmentation without Keep against none at all, as `pairs`.
    """

    id: str
    title: str
    metric: str
    groups: Sequence[Group]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    pairs: Sequence[tuple[str, str, Pairs]]
    settings: Sequence[Mapping[str, Any]]
    note: str = ""
    baselines: Collection[int] = ()
    effects: Sequence[tuple[str, str, Pairs]] = ()


def answer(section: Section) -> tuple[str, str]:
    """What the task's runs say of keeping, in a sentence or two: the comparison with most pairs, and a count.

    Returns:
        "gains" or "loses" where no comparison says the opposite, else "open"; and the text.
    """
    if not (compared := [one for one in section.pairs if len(one[2])]):
        return "open", "nothing was run both with and without Keep on the same seed."
    whole = [one for one in compared if _status(section, one[0]) == WHOLE]
    told = whole or compared
    keep, plain, pairs = max(told, key=lambda one: len(one[2]))
    verdict, means = _verdict(pairs)
    names = short_names(section.pairs)[keep, plain]
    known = f"{pairs} (points of {section.metric}, 95 % interval); " if len(pairs) > 1 else ""
    text = f"{names[0]} against {names[1]}: {known}{means}."
    verdict, text = _together(verdict, text, [_verdict(one)[0] for _, _, one in told])
    if left := len(compared) - len(told):
        text += f" Not counted: {left} on drawn data, shortened or by another engine."
    return verdict, text


def _status(section: Section, name: str) -> str:
    return next((row[-1] for row in section.rows if row[0] == name), WHOLE)


def scope(section: Section) -> str:
    """What the answer is of: the data, and what keeps the runs from standing beside the paper's."""
    compared = [one for one in section.pairs if len(one[2])]
    names = {name for one in compared for name in one[:2]}
    rows = [row for row in section.rows if row[0] in names] or section.rows
    rows = [row for row in rows if row[-1] == WHOLE] or rows
    marks = dict.fromkeys(mark for row in rows if row[-1] != WHOLE for mark in row[-1].split(", "))
    return ", ".join([*dict.fromkeys(row[1].partition(" (")[0] for row in rows), *marks])


def short_names(pairs: Sequence[tuple[str, str, Pairs]]) -> dict[tuple[str, str], tuple[str, str]]:
    """Of each comparison, without what both names say; whole where two comparisons would have the same."""
    short = {one[:2]: _apart(*one[:2]) for one in pairs}
    said = list(short.values())
    return {names: one if said.count(one) == 1 else names for names, one in short.items()}


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


def decided(pairs: Pairs) -> bool:
    """Whether the interval leaves zero out."""
    return len(pairs) > 1 and abs(pairs.mean) > pairs.half_width()


def _verdict(pairs: Pairs) -> tuple[str, str]:
    if len(pairs) == 1:
        return "open", "one pair has no interval and decides nothing"
    if not decided(pairs):
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
        texts: "rates_title", "rates", "rates_scope" (of which data), "pairs_title", "effects_title" and
            "paper".
        pictures: caption and file.
        tables: of the paper.
        output: folder of the page, for its links to run folders.
    """
    answers = []
    if rates:
        answers.append(("fidelity", texts["rates_title"], texts["rates_scope"], *_rates_answer(rates)))
    answers += [(one.id, one.title, scope(one), *answer(one)) for one in sections]
    shown = [(caption, path, thumbnail(path)) for caption, path in pictures]
    return render(
        Path(__file__).parent / "page.html.j2",
        "report",
        title=title,
        answers=[dict(zip(("id", "title", "scope", "verdict", "text"), one, strict=True)) for one in answers],
        summary=summary,
        rates=[
            {
                "name": one.name,
                "difference": "" if one.difference.low is None else f"Keep - plain: {one.difference} points",
                "plain": _bar(one.plain),
                "keep": _bar(one.keep),
            }
            for one in rates
        ],
        rates_title=texts["rates_title"],
        rates_text=texts["rates"],
        paper_text=texts["paper"],
        sections=[_section(section, texts, output) for section in sections],
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


def _bar(share: Share) -> dict[str, Any]:
    """Of a track that is 100 %."""
    found: dict[str, Any] = {"text": f"{share.mean:.1f} %", "width": f"{share.mean:.2f}"}
    if share.low is not None and share.high is not None:
        found["text"] += f" [{share.low:.1f}, {share.high:.1f}]"
        found |= {"low": f"{share.low:.2f}", "span": f"{max(0.3, share.high - share.low):.2f}"}
    return found


def _section(section: Section, texts: Mapping[str, str], output: Path) -> dict[str, Any]:
    compared = (
        ("pairs_title", section.pairs, "Keep"),
        ("effects_title", section.effects, "the augmentation"),
    )
    rows = [
        {
            "cells": row,
            "baseline": index in section.baselines and len(section.baselines) < len(section.rows),
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
        "forests": [(texts[title], forest(pairs), better) for title, pairs, better in compared if pairs],
        "note": section.note,
        "chart": _chart(section),
        "settings": _differing(section.settings),
        "origins": [
            (row[0], lines)
            for row, group in zip(section.rows, section.groups, strict=True)
            if (lines := list(_origins(group.first["started_from"])))
        ],
    }


def forest(pairs: Sequence[tuple[str, str, Pairs]]) -> dict[str, Any]:
    """A bar for each difference that has an interval, and their scale; places in percent of its width."""
    known = [(one.mean, one.half_width()) for _, _, one in pairs if len(one) > 1]
    ends = [mean + sign * width for mean, width in known for sign in (-1, 0, 1)]
    ticks = round_steps(min([0.0, *ends]), max([0.0, *ends]), 4) if known else []

    def place(value: float) -> float:
        return round(4 + 92 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    short, rows = short_names(pairs), []
    for keep, plain, one in pairs:
        row: dict[str, Any] = {"names": short[keep, plain], "text": str(one), "mean": None}
        if needed := one.still_needed():
            row["text"] += f"; {needed} more until the interval is ± {SETTLED} points"
        if len(one) > 1:
            low, mean, high = (place(one.mean + sign * one.half_width()) for sign in (-1, 0, 1))
            row |= {"mean": mean, "low": low, "span": round(high - low, 2), "open": not decided(one)}
        rows.append(row)
    return {"rows": rows, "ticks": [(place(tick), f"{tick:+g}" if tick else "0") for tick in ticks]}


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
    title = f"{wanted} (%)" if wanted.endswith(section.metric) else f"{wanted} (training, less is better)"
    title += ", by step; a line for each run"
    if len(lines[:_MOST_LINES]) < len(read):
        title += f", {len(lines[:_MOST_LINES])} of {len(read)} drawn"
    return chart_of(title, lines[:_MOST_LINES])


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
            text += f": {origin_name(began)}, seed {run.get('seed')}"
            text += f", on {data['name']} ({sizes_of(data)})" if "name" in data else ""
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
