"""The training tools, and the recipes of the paper's cells, for planning and reports of all kinds."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from keepaug.report.cells import Wanted, load_cells, resolve
from keepaug.report.paper import load_paper
from keepaug.runs.configs import CONFIGS
from keepaug.runs.planning import Tool, in_todays_terms
from keepaug.runs.result import read_results

PACKAGES = {
    "train_classifier": "keepaug.classify",
    "train_detector": "detection",
    "train_reid": "reid",
    "train_uda": "ssl_uda",
}
KINDS = {
    "classify": "train_classifier",
    "detection": "train_detector",
    "reid": "train_reid",
    "ssl_uda": "train_uda",
}


def tool(name: str) -> Tool:
    """A training tool; its package is imported now and not before."""
    found: Tool = importlib.import_module(f"{PACKAGES[name]}.tool").TOOL
    return found


def recipes(table: str) -> dict[tuple[str, str], Wanted]:
    """What a run must be to stand in a cell, by row and column; {} for a table that no training fills."""
    trained = any(str(printed["id"]) == table and printed["match"] for printed in load_paper())
    cells = load_cells(table) if trained else []
    return {(cell.row, cell.column): resolve(cell, tool, CONFIGS) for cell in cells}


def results(root: str | Path) -> list[dict[str, Any]]:
    """All results below a folder, in today's terms."""
    return [in_todays_terms(result, _of_kind) for result in read_results(root)]


def _of_kind(kind: str) -> Tool | None:
    """None for what is no training run, or whose package's libraries are not installed."""
    if kind not in KINDS:
        return None
    try:
        return tool(KINDS[kind])
    except ImportError:
        return None
