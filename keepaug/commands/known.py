"""The training tools, and the recipes of the paper's cells: for the tools that plan and report runs of all
kinds.
"""

from __future__ import annotations

import importlib

from keepaug.report.cells import Wanted, load_cells, resolve
from keepaug.runs.configs import CONFIGS
from keepaug.runs.planning import Tool

PACKAGES = {
    "train_classifier": "keepaug.classify",
    "train_detector": "detection",
    "train_reid": "reid",
    "train_uda": "ssl_uda",
}


def tool(name: str) -> Tool:
    """A training tool; its package is imported now and not before."""
    found: Tool = importlib.import_module(f"{PACKAGES[name]}.tool").TOOL
    return found


def recipes(table: str) -> dict[tuple[str, str], Wanted]:
    """What a run must be to stand in a cell, by row and column; {} for a table that no training fills."""
    try:
        cells = load_cells(table)
    except ValueError:
        return {}
    return {(cell.row, cell.column): resolve(cell, tool, CONFIGS) for cell in cells}
