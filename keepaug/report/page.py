"""The report: markdown, and one HTML page that needs no other file."""

from __future__ import annotations

import html
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keepaug.report.aggregate import Group, aggregate, built_on, machine, origin_name, seed_of, sizes_of
from keepaug.report.cells import Wanted
from keepaug.report.pairs import SETTLED, Pairs, compare
from keepaug.report.paper import FilledTable, fill_table, load_paper
from keepaug.report.view import WHOLE, Rate, Section, Share, html_page
from keepaug.runs.files import write_text_atomic
from keepaug.runs.result import read_results

_KINDS = {
    "fidelity": ("What the augmentations destroy", "destroyed"),
    "classify": ("Classification", "accuracy"),
    "detection": ("Detection", "AP"),
    "reid": ("Re-identification", "mAP"),
    "ssl_uda": ("Semi-supervised classification", "accuracy"),
}
_CAPTIONS = {
    "pictures": "From top to bottom: the image, what the saliency map sees, what the network is trained on.",
    "views": "From top to bottom: the image, what the saliency map sees, the strong view, the strong view "
    "with what is kept.",
    "worst": "The images that lose most: the saliency, plain and Keep of the same random numbers.",
    "predictions": "Left: ground truth; right: predictions.",
    "ranked": "Left: the query; then the nearest gallery images, right ones framed blue, wrong ones orange, "
    "with identity, camera and distance.",
    "erasing": "The image, its saliency, random erasing, KeepRandomErasing (same sizes). Orange frames: what "
    "matters is erased.",
}
_ACCURACY = (
    "Accuracy is the last evaluation's; best, the highest of all, is chosen on the evaluated images; median "
    "last 20 is that of the last twenty evaluations."
)
_COLUMNS = {
    "classify": _ACCURACY,
    "detection": "AP is the mean over IoU thresholds of 0.50 to 0.95, AP50 and AP75 at one of them.",
    "reid": "rank1: queries whose nearest gallery image is right; mAP and mINP: means over the queries.",
    "ssl_uda": _ACCURACY,
}
_BASELINES = ("", "none", "standard", "supervised")
_TASKS = ("classify", "detection", "reid", "ssl_uda")
_PAIRS = "Keep against plain, pairs of one seed"
_EFFECTS = "Augmentation against none, pairs of one seed"


def write_report(
    runs: str | Path,
    output: str | Path,
    *,
    recipes: Callable[[str], Mapping[tuple[str, str], Wanted]],
    read: Callable[[str | Path], Iterable[dict[str, Any]]] = read_results,
    title: str = "KeepAugment results",
) -> tuple[Path, Path]:
    """Write report.md and report.html from all result files below `runs`.

    Args:
        runs: folder of run folders.
        output: folder of the report.
        recipes: what the runs of a table's cells are, see `keepaug.report.paper.fill_table`.
        read: results below a folder, in today's terms, see `keepaug.runs.planning.in_todays_terms`.
        title: of the page.

    Returns:
        The two paths.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no results in it, or a damaged result file.
    """
    results = list(read(runs))
    if not results:
        raise ValueError(f"no result.json below {runs}: run something first")
    groups = aggregate(results)
    tables = [fill_table(table, groups, recipes(str(table["id"]))) for table in load_paper()]
    output = Path(output)
    markdown = write_text_atomic(output / "report.md", _markdown(groups, tables, title, output))
    texts = {
        "rates_title": _KINDS["fidelity"][0],
        "rates": _RATES_TEXT,
        "rates_scope": ", ".join(dict.fromkeys(map(_audited, _of_kind(groups, "fidelity")))),
        "pairs_title": _PAIRS,
        "effects_title": _EFFECTS,
        "paper": _PAPER_TEXT,
    }
    page = html_page(
        title=title,
        summary=_summary(groups),
        sections=sections(groups),
        rates=_rates(groups),
        texts=texts,
        pictures=_pictures(groups),
        tables=tables,
        output=output,
    )
    return markdown, write_text_atomic(output / "report.html", page)


def sections(groups: Sequence[Group]) -> list[Section]:
    """One for each task that was run.

    Args:
        groups: of `keepaug.report.aggregate.aggregate`.
    """
    return [_section(own, kind) for kind in _TASKS if (own := _of_kind(groups, kind))]


def _section(groups: Sequence[Group], kind: str) -> Section:
    title, metric = _KINDS[kind]
    head, rows = _own_table(groups, kind)
    settings = [_told_apart_by(group) for group in groups]
    baselines = [number for number, group in enumerate(groups) if not _place(group)[1]]
    pairs, effects = _pairs(groups, kind, _is_keep_of), _effects(groups, kind)
    return Section(
        kind, title, metric, groups, head, rows, pairs, settings, _COLUMNS[kind], baselines, effects
    )


def _label(group: Group, groups: Sequence[Group]) -> str:
    """The group's name among `groups`, with the settings that tell it from others of the same name."""
    name = _name(group)
    alike = [_told_apart_by(other) for other in groups if _name(other) == name]
    apart = [
        f"{key}={value}"
        for key, value in _told_apart_by(group).items()
        if any(other.get(key) != value for other in alike)
    ]
    return ", ".join([name, *apart])


def _told_apart_by(group: Group) -> dict[str, Any]:
    first = group.first
    began = first["started_from"] or {}
    origin = {"from": origin_name(began)} if began else {}
    below = (began.get("provenance") or {}).get("recipe", {})
    origin |= {f"backbone {key}": value for key, value in below.items()}
    known = {**first["recipe"], **first["precision"], "data": first["dataset"]["checksum"][:8], **origin}
    return {key: value for key, value in known.items() if isinstance(value, str | int | float)}


def _name(group: Group) -> str:
    """Of a row; the run's own name where its settings do not say what such settings say."""
    try:
        return _name_by_settings(group)
    except (KeyError, AttributeError):
        return str(group.first["name"])


def _name_by_settings(group: Group) -> str:
    first, config = group.first, group.first["config"]
    if first["kind"] == "classify":
        saliency = (
            f", {first['recipe']['saliency'].replace('_', ' ')} saliency"
            if "saliency" in first["recipe"]
            else ""
        )
        return f"{config['method']} ({config['arch']}{saliency})"
    if first["kind"] == "detection":
        backbone = origin_name(first["started_from"])
        return f"{first['name']}, backbone: {backbone}, engine: {first['engine']}"
    if first["kind"] == "reid":
        return f"{config['recipe']} ({config['arch']}, {first['name']})"
    if first["kind"] == "ssl_uda":
        keep = " + Keep" if config.get("keep") else ""
        algorithm = config.get("algorithm") or config.get("method")  # the older name
        return f"{algorithm}{keep} ({config['arch']}, {config['num_labels']} labels)"
    return "Audit" if first["kind"] == "fidelity" else str(first["name"])


def _marks(group: Group) -> str:
    first = group.first
    marks = ["drawn data"] if first["synthetic"] else []
    if first["shortened"]:
        marks.append("shortened")
    if first.get("engine") == "torchvision":
        marks.append("torchvision engine")
    if not marks and not group.comparable:
        marks.append("on a network of drawn data or shortened training")
    return ", ".join(marks) or WHOLE


def _of_kind(groups: Sequence[Group], kind: str) -> list[Group]:
    """Baselines first, then each method before its Keep version."""
    return sorted((group for group in groups if group.first["kind"] == kind), key=_place)


def _place(group: Group) -> tuple[str, bool, str, bool]:
    first = group.first
    began = ((first["started_from"] or {}).get("provenance") or {}).get("recipe", {})
    recipe = {**began, **first["recipe"]}
    method = str(next((recipe[key] for key in ("method", "algorithm", "recipe") if key in recipe), ""))
    keep = method.startswith("keep_") or recipe.get("keep") is True
    plain = method.removeprefix("keep_").removesuffix("_keep")
    return first["dataset"]["name"], keep or plain not in _BASELINES, plain, keep


def _own_table(groups: Sequence[Group], kind: str) -> tuple[list[str], list[list[str]]]:
    metrics = {
        "classify": ["accuracy", "best", "median_last_20"],
        "detection": ["AP", "AP50", "AP75"],
        "reid": ["rank1", "mAP", "mINP"],
        "ssl_uda": ["accuracy", "best", "median_last_20"],
    }[kind]
    rows = []
    for group in groups:
        first = group.first
        minutes = statistics.fmean(result["wall_time_s"] for result in group.results) / 60
        rows.append(
            [
                _label(group, groups),
                f"{first['dataset']['name']} ({sizes_of(first['dataset'])})",
                *[group.cell(metric) for metric in metrics],
                f"{minutes:.1f}" if minutes >= 1 else f"{minutes:.2g}",
                _marks(group),
            ]
        )
    return ["run", "data", *[f"{metric} (%)" for metric in metrics], "minutes", "status"], rows


def _is_keep_of(keep: Group, plain: Group) -> bool:
    """Whether two groups differ in keeping alone, and in the settings that only one of them has."""
    key, mine, theirs = _apart(keep, plain)
    return (key, mine, theirs) == ("keep", True, False) or (
        key in ("method", "backbone method") and mine == f"keep_{theirs}"
    )


def _is_effect(plain: Group, bare: Group) -> bool:
    """Whether two groups differ in an augmentation without Keep and none at all, alike in the rest."""
    key, mine, theirs = _apart(plain, bare)
    if key in ("method", "backbone method"):
        return theirs == "none" and not str(mine).startswith("keep_")
    return key == "algorithm" and theirs == "supervised" and not plain.first["recipe"].get("keep")


def _apart(one: Group, other: Group) -> tuple[str, Any, Any]:
    """The one setting of both that differs, and its values; none where more does or one alone has a start."""
    first, second = one.first, other.first
    if one.repeated or other.repeated or bool(first["started_from"]) != bool(second["started_from"]):
        return "", None, None
    mine, theirs = _parts(first), _parts(second)
    apart = [key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]]
    return (apart[0], mine[apart[0]], theirs[apart[0]]) if len(apart) == 1 else ("", None, None)


def _parts(run: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run, its backbone's run included, each under a name of its own."""
    about = ("kind", "engine", "synthetic", "shortened", "dataset", "precision")
    parts = {f"of the run: {key}": run.get(key) for key in about}
    parts |= {key: value for key, value in run["recipe"].items() if key != "recipe"}  # a preset's name
    began = run.get("started_from") or {}
    below = began.get("provenance") or {}
    if "recipe" not in below:
        return parts | {"backbone": built_on(began)}
    return parts | {f"backbone {key}": value for key, value in _parts(below).items()}


def _pairs(
    groups: Sequence[Group], kind: str, compared: Callable[[Group, Group], bool]
) -> list[tuple[str, str, Pairs]]:
    """The names and differences of those groups that are compared, over the seeds that both have."""
    metric, found = _KINDS[kind][1], []
    for one in groups:
        for other in groups:
            if compared(one, other):
                first, second = (
                    {
                        seed_of(run): run["metrics"][metric]
                        for run in group.results
                        if metric in run["metrics"]
                    }
                    for group in (one, other)
                )
                found.append((_label(one, groups), _label(other, groups), compare(first, second)))
    return found


def _effects(groups: Sequence[Group], kind: str) -> list[tuple[str, str, Pairs]]:
    """Of the augmentations themselves; a single pair says nothing and would only be in the way."""
    return [one for one in _pairs(groups, kind, _is_effect) if len(one[2]) > 1]


def _pairs_table(compared: Sequence[tuple[str, str, Pairs]], kind: str) -> tuple[list[str], list[list[str]]]:
    rows = []
    for one, other, pairs in compared:
        needed = pairs.still_needed()
        rows.append([f"{one} - {other}", str(pairs), "-" if needed is None else str(needed)])
    head = ["difference", f"{_KINDS[kind][1]} (points, 95 %)", f"pairs still needed for ± {SETTLED}"]
    return head, rows


def _audited(group: Group) -> str:
    data = group.first["dataset"]
    marks = [] if (status := _marks(group)) == WHOLE else [status]
    return ", ".join([f"{data['name']} ({sizes_of(data)} images)", *marks])


def _rates(groups: Sequence[Group]) -> list[Rate]:
    """The destruction rates, mean over seeds; the intervals of one audit are over its images."""
    found, audits = [], _of_kind(groups, "fidelity")
    for group in (one for several in audits for one in several.averaged):
        about = f", {_audited(group)}, {origin_name(group.first['started_from'])}" if len(audits) > 1 else ""
        for pair in group.first["extra"].get("pairs", []):
            values = [group.values(pair[kind]) for kind in ("plain", "keep")]
            shares = [Share(statistics.fmean(one)) for one in values]
            shares.append(Share(shares[1].mean - shares[0].mean))
            if len(group.results) > 1:
                pairs = Pairs((), tuple(keep - plain for plain, keep in zip(*values, strict=True)))
                half = pairs.half_width()
                shares[2] = Share(pairs.mean, pairs.mean - half, pairs.mean + half)
            else:
                known = [pair.get(name) for name in ("plain_interval", "keep_interval", "difference")]
                shares = [Share(*new) if new else old for new, old in zip(known, shares, strict=True)]
            found.append(Rate(pair["name"] + about, *shares))
    return found


def table_markdown(table: FilledTable) -> str:
    """A table of the paper with ours beside it."""
    head = ["", *[f"{column}: paper" + " | " + f"{column}: ours" for column in table.columns]]
    note = [table.note, ""] if table.note else []
    lines = [f"### Table {table.id}: {table.title}", "", *note, "| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * (1 + 2 * len(table.columns)))
    for name, cells in table.rows:
        parts = [f"{printed} | {ours}{f' ({remark})' if remark else ''}" for printed, ours, remark in cells]
        lines.append(f"| {name} | " + " | ".join(parts) + " |")
    total = sum(len(cells) for _, cells in table.rows)
    lines += ["", f"{table.num_run} of {total} cells have been run with the whole recipe on the real data."]
    if table.near:
        lines += ["", "Not the paper's recipe, and in no cell:", "", *(f"- {one}" for one in table.near), ""]
    if table.num_left_out:
        lines.append(f"{table.num_left_out} shortened runs or runs on drawn data are left out.")
    return "\n".join(lines)


def _plain_text(text: str) -> str:
    """Names of runs are a user's: neither HTML nor columns of a table."""
    return html.escape(str(text), quote=False).replace("|", "&#124;").replace("\n", " ")


def _table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [" | ".join(map(_plain_text, row)) for row in (head, *rows)]
    return [f"| {lines[0]} |", "|" + "---|" * len(head), *(f"| {line} |" for line in lines[1:])]


def _markdown(groups: Sequence[Group], tables: Sequence[FilledTable], title: str, output: Path) -> str:
    parts = [f"# {title}", "", _summary(groups), ""]
    if rates := _rates(groups):
        parts += [
            "## What the augmentations destroy",
            "",
            _RATES_TEXT,
            "",
            "| augmentation | plain (%) | keep (%) | difference (points, 95 %) |",
            "|---|---|---|---|",
        ]
        parts += [
            f"| {_plain_text(one.name)} | {one.plain.mean:.1f} | {one.keep.mean:.1f} | {one.difference} |"
            for one in rates
        ] + [""]
    for kind in _TASKS:
        if own := _of_kind(groups, kind):
            head, rows = _own_table(own, kind)
            parts += [f"## {_KINDS[kind][0]}", "", *_table_lines(head, rows), ""]
            for heading, compared in (
                (_PAIRS, _pairs(own, kind, _is_keep_of)),
                (_EFFECTS, _effects(own, kind)),
            ):
                if compared:
                    parts += [f"### {heading}", "", *_table_lines(*_pairs_table(compared, kind)), ""]
    pictures = _pictures(groups)
    if pictures:
        parts += ["## Pictures", ""]
        for caption, path in pictures:
            text = _plain_text(caption)
            parts += [text, "", f"![{text}]({os.path.relpath(path, output)})", ""]
    parts += ["## The paper's tables", "", _PAPER_TEXT, ""]
    parts += [table_markdown(table) + "\n" for table in tables]
    return "\n".join(parts)


_RATES_TEXT = (
    "Share of the objects that are destroyed: at least half is hidden (or, for the pasting methods, less "
    "than half is shown clean). A method and its Keep version use the same sizes and the same placement rule."
)
_PAPER_TEXT = (
    "The paper's numbers as printed. Ours are the last epoch's; the best epoch's, which CutMix's code "
    "reports and which looks at the test set, stands in brackets. A run stands beside them only with the "
    "whole recipe on the real data and, for detection, with Detectron2 itself: drawn data, shortened runs "
    "and the torchvision engine have tables of their own above."
)


def _summary(groups: Sequence[Group]) -> str:
    number = sum(len(group.results) for group in groups)
    synthetic = sum(len(group.results) for group in groups if group.first["synthetic"])
    newest = max(result["created"] for group in groups for result in group.results)
    machines = dict.fromkeys(
        f"{machine(result)} ({result['hardware']['cpu']}, {result['hardware']['cores']} cores)"
        for group in groups
        for result in group.results
    )
    shortened = sum(len(group.results) for group in groups if group.first["shortened"])
    marks = [(synthetic, "on data drawn by the program"), (shortened, "shortened")]
    said = [f"{'all' if count == number else count} {mark}" for count, mark in marks if count]
    runs = ", ".join(["1 run" if number == 1 else f"{number} runs", *said])
    return f"{runs}; the newest of {newest[:10]}, {newest[11:16]} UTC; machine: {'; '.join(machines)}."


def _pictures(groups: Sequence[Group]) -> list[tuple[str, Path]]:
    found = []
    for group in groups:
        result = group.first
        for role, name in result["artifacts"].items():
            folder = Path(result["folder"]).resolve()
            path = (folder / str(name)).resolve()
            own = path.is_relative_to(folder)  # no file that another folder's result points to
            if path.suffix == ".png" and path.is_file() and own:
                text = _CAPTIONS.get(role.rstrip("_0123456789"), role)
                facts = [
                    f"{key} {result['recipe'][key]}" for key in ("size", "tau") if key in result["recipe"]
                ]
                named = ", ".join([_label(group, groups), *facts])
                found.append((f"{named}. {text}", path))
    return found
