"""The paper's tables with our runs beside its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepaug.report.aggregate import Group, field_of

try:
    import yaml
except ImportError as error:
    raise ImportError("the report needs pyyaml and jinja2: pip install 'keepaug[report]'") from error

__all__ = ["FilledTable", "fill_table", "load_paper"]

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
    """

    id: str
    title: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, str, str]]]]
    num_run: int
    num_left_out: int = 0
    note: str = ""


def load_paper() -> list[dict[str, Any]]:
    """The tables as printed."""
    tables: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text())[
        "tables"
    ]
    return tables


def _fits(group: Group, wanted: Mapping[str, Any]) -> bool:
    for key, value in wanted.items():
        allowed = value if isinstance(value, list) else [value]
        if field_of(group.first, key) not in allowed:
            return False
    return True


def _remark(group: Group) -> str:
    first = group.first
    epochs = first["config"].get("epochs")
    gpus = first["hardware"]["gpus"]
    parts = [f"{epochs} epochs" if epochs else "", f"{len(gpus)} x {gpus[0]}" if gpus else "CPU"]
    return ", ".join(part for part in parts if part)


def fill_table(table: Mapping[str, Any], groups: Sequence[Group]) -> FilledTable:
    """Put our means into a table; synthetic, shortened and torchvision-engine detection runs never enter it.

    Args:
        table: one of `load_paper`.
        groups: of `aggregate`.
    """
    candidates = [group for group in groups if group.comparable]
    rows, num_run = [], 0
    metrics = table.get("column_metric") or [table["metric"]] * len(table["columns"])
    for row in table["rows"]:
        cells = []
        for printed, column, metric in zip(row["cells"], table["column_match"], metrics, strict=True):
            found = None
            if metric is not None and column is not None:
                wanted = {**table["match"], **row.get("match", {}), **column}
                fitting = [group for group in candidates if _fits(group, wanted)]
                found = max(fitting, key=lambda group: len(group.results), default=None)
                others = len(fitting) - 1
            num_run += found is not None
            remark = _remark(found) if found else ""
            if found and others:
                remark += f"; {others} more with other settings"
            cells.append((printed, found.cell(metric) if found else NOT_RUN, remark))
        rows.append((row["name"], cells))
    left_out = [group for group in groups if not group.comparable and _fits_anywhere(group, table)]
    number = sum(len(group.results) for group in left_out)
    note = table.get("note", "")
    return FilledTable(str(table["id"]), table["title"], list(table["columns"]), rows, num_run, number, note)


def _fits_anywhere(group: Group, table: Mapping[str, Any]) -> bool:
    return any(
        _fits(group, {**table["match"], **row.get("match", {}), **column})
        for row in table["rows"]
        for column in table["column_match"]
        if column is not None and table["match"]
    )
