"""The paper's tables with our runs beside its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepaug.report.aggregate import Group, field_of, machine, origin_name
from keepaug.runs.planning import differences

if TYPE_CHECKING:
    from keepaug.report.cells import Wanted

try:
    import yaml
except ImportError as error:
    raise ImportError("the report needs pyyaml and jinja2: pip install 'keepaug[report]'") from error

NOT_RUN = "not run"


@dataclass(frozen=True)
class FilledTable:
    """A table of the paper beside what has been run.

    Attributes:
        id: "1" to "9".
        title: of the table.
        columns: the paper's.
        rows: name, and for each column (the paper's number, ours or "not run", a remark on ours).
        num_run: cells that have been run.
        num_left_out: runs that would fit a cell but for drawn data, fewer steps or another engine.
        note: what a reader must know about the printed numbers.
        near: runs of a cell's method, network and data, not its recipe: cell, figure and what differs.
    """

    id: str
    title: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, str, str]]]]
    num_run: int
    num_left_out: int = 0
    note: str = ""
    near: tuple[str, ...] = ()


def load_paper() -> list[dict[str, Any]]:
    """The tables as printed."""
    content = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text())
    tables: list[dict[str, Any]] = content["tables"]
    return tables


def _fits(group: Group, wanted: Mapping[str, Any]) -> bool:
    for key, value in wanted.items():
        allowed = value if isinstance(value, list) else [value]
        if field_of(group.first, key) not in allowed:
            return False
    return True


def _remark(group: Group) -> str:
    """What stands with a number: epochs, hardware of all seeds, precision, and what it starts from."""
    first = group.first
    epochs = first["config"].get("epochs")
    machines = dict.fromkeys(machine(result) for result in group.results)
    parts = [f"{epochs} epochs" if epochs else "", " and ".join(machines)]
    parts += [f"{key} {one}" if key != "precision" else str(one) for key, one in first["precision"].items()]
    if first["started_from"]:
        parts.append(f"from {origin_name(first['started_from'])}")
    return ", ".join(part for part in parts if part)


def _ours(group: Group, metric: str, table: Mapping[str, Any]) -> str:
    """The last epoch's figure; beside an accuracy the best epoch's and what the table prints in brackets."""
    beside = {"best": "best epoch", **table.get("beside", {})} if metric == "accuracy" else {}
    found = [f"{label} {_mean(group, key)}" for key, label in beside.items() if group.values(key)]
    return f"{group.cell(metric)} [{', '.join(found)}]" if found else group.cell(metric)


def _mean(group: Group, metric: str) -> str:
    values = group.values(metric)
    return " | ".join(f"{one:.1f}" for one in (values if group.repeated else [sum(values) / len(values)]))


def differs(group: Group, wanted: Wanted, table: Mapping[str, Any]) -> list[str]:
    """What keeps a group out of a cell, as "lr 0.5 instead of 0.1"; nothing: it is the cell's run.

    Args:
        group: whose method, network and data are the cell's.
        wanted: what the cell's run is.
        table: the cell's, whose data have "sizes", and its backbones' "backbone_sizes".
    """
    first = group.first
    found = differences(first["recipe"], wanted.recipe) + _other_sizes(first, table.get("sizes", {}))
    origin = first["started_from"]
    run = (origin or {}).get("provenance") or {}
    if "recipe" in run and (wanted.backbone is not None or wanted.pretrained):
        below = differences(run["recipe"], wanted.backbone) if wanted.backbone is not None else []
        below += [f"of the kind {run['kind']} instead of classify"] if run["kind"] != "classify" else []
        below += _other_sizes(run, table.get("backbone_sizes", {}))
        found += [f"backbone: {one}" for one in below]
    elif wanted.backbone is not None:
        found.append(f"from {origin_name(origin)} instead of a classifier of this project")
    elif wanted.pretrained and not origin:
        found.append("from random instead of pretrained weights")
    elif origin and not wanted.pretrained:
        found.append(f"from {origin_name(origin)}")
    return found


def _other_sizes(run: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    has = (run.get("dataset") or {}).get("sizes", {})  # an earlier version's weights did not say it
    return [
        f"{has.get(split, 0)} {split} images instead of {number}"
        for split, number in sizes.items()
        if has.get(split, 0) != number
    ]


def fill_table(
    table: Mapping[str, Any], groups: Sequence[Group], recipes: Mapping[tuple[str, str], Wanted]
) -> FilledTable:
    """Put our means into a table: of runs of the cell's whole recipe; others near with what differs.

    Synthetic, shortened and torchvision-engine detection runs never enter it, nor what was built on one.

    Args:
        table: one of `load_paper`.
        groups: of `aggregate`.
        recipes: what the run of each cell is, by row and column, see `keepaug.report.cells.resolve`.
    """
    candidates = [group for group in groups if group.comparable]
    rows, num_run, near = [], 0, []
    metrics = table.get("column_metric") or [table["metric"]] * len(table["columns"])
    for row in table["rows"]:
        cells = []
        columns = zip(row["cells"], table["columns"], table["column_match"], metrics, strict=True)
        for printed, title, column, metric in columns:
            inside: list[Group] = []
            if metric is not None and column is not None:
                wanted = {**table["match"], **row.get("match", {}), **column}
                # A column that shows another figure of the runs of one to its left (tables 5 and 8) has their
                # recipe.
                own = table["columns"][table["column_match"].index(column)]
                recipe = recipes.get((row["name"], own))
                fitting = [one for one in candidates if recipe is not None and _fits(one, wanted)]
                for group in fitting:
                    apart = differs(group, recipe, table) if recipe else []
                    if not apart:
                        inside.append(group)
                    elif title == own:
                        where = f"{row['name']} / {title}"
                        near.append(f"{where}: {group.cell(metric)}, differs in {'; '.join(apart)}")
            num_run += bool(inside)
            ours = "; ".join(_ours(group, metric, table) for group in inside) if metric else ""
            cells.append((printed, ours or NOT_RUN, "; ".join(_remark(group) for group in inside)))
        rows.append((row["name"], cells))
    left_out = [group for group in groups if not group.comparable and _fits_anywhere(group, table)]
    number = sum(len(group.results) for group in left_out)
    note = table.get("note", "")
    return FilledTable(
        str(table["id"]), table["title"], list(table["columns"]), rows, num_run, number, note, tuple(near)
    )


def _fits_anywhere(group: Group, table: Mapping[str, Any]) -> bool:
    return any(
        _fits(group, {**table["match"], **row.get("match", {}), **column})
        for row in table["rows"]
        for column in table["column_match"]
        if column is not None and table["match"]
    )
