"""Which run fills which cell of the paper's tables: `runs.yaml` beside `paper.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepaug.report.paper import load_paper
from keepaug.runs.planning import Tool

try:
    import yaml
except ImportError as error:
    raise ImportError("the list of runs needs pyyaml: pip install 'keepaug[report]'") from error


@dataclass(frozen=True)
class Wanted:
    """What a run must be to stand in a cell.

    Attributes:
        recipe: its settings, see `keepaug.runs.config.recipe_of`.
        backbone: those of the classifier that it starts from; None: it starts from random weights.
        pretrained: it starts from weights, and the paper does not say more of them.
    """

    recipe: dict[str, Any]
    backbone: dict[str, Any] | None = None
    pretrained: bool = False


def resolve(cell: Cell, tool_of: Callable[[str], Tool], configs: Path) -> Wanted:
    """The cell's config with its settings, as a result would say them.

    Args:
        cell: of `load_cells`.
        tool_of: the training tool of a name.
        configs: folder of the configs.
    """

    def recipe(tool: Tool, config: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        given = [f"{key}={value}" for key, value in overrides.items()]
        return tool.recipe(tool.load(configs / config, given))

    below = None if cell.backbone is None else recipe(tool_of("train_classifier"), *cell.backbone)
    own = recipe(tool_of(cell.tool), cell.config, cell.overrides)
    return Wanted(own, below, cell.pretrained)


@dataclass(frozen=True)
class Cell:
    """One cell and the run that fills it.

    Attributes:
        table: "1" to "9".
        row: the paper's name.
        column: the paper's name.
        printed: the paper's number.
        wanted: what a result must say to stand in the cell, see `keepaug.report.paper`.
        tool: name of the training tool.
        config: its config, relative to `configs`.
        overrides: settings on top of it.
        backbone: for detectors: config and overrides of the classifier that they start from.
        seeds: that the paper averages over, as far as it says.
        pretrained: it starts from ImageNet weights that the user gives.
    """

    table: str
    row: str
    column: str
    printed: str
    wanted: dict[str, Any]
    tool: str
    config: str
    overrides: dict[str, Any]
    backbone: tuple[str, dict[str, Any]] | None
    seeds: tuple[int, ...]
    pretrained: bool = False

    @property
    def run(self) -> str:
        """A name for the run, the same wherever the same run stands in two tables."""
        name = run_name(self.config, self.overrides)
        return name if self.backbone is None else f"{name}-on-{run_name(*self.backbone)}"


def run_name(config: str, overrides: Mapping[str, Any]) -> str:
    """`cifar10-resnet110-keep_cutout-full-size16`: the config, then what it changes."""
    plain = [str(overrides[key]) for key in ("arch", "method", "saliency") if key in overrides]
    rest = [
        f"{key}{value}"
        for key, value in sorted(overrides.items())
        if key not in ("arch", "method", "saliency")
    ]
    return "-".join([Path(config).stem, *plain, *rest])


def load_cells(table: str) -> list[Cell]:
    """The cells of one table that can be run, row by row.

    Args:
        table: "1", "1b", "2" ... as in paper.yaml.

    Raises:
        ValueError: no such table, one that no training fills, or runs that do not fit the paper's.
    """
    runs = yaml.safe_load((Path(__file__).parent / "runs.yaml").read_text())
    paper = {str(printed["id"]): printed for printed in load_paper()}
    if table not in paper:
        raise ValueError(f"the paper has the tables {', '.join(paper)}, got {table!r}")
    if table not in runs:
        raise ValueError(f"table {table} is not filled by training runs: keepaug benchmark measures it")
    plan, printed = runs[table], paper[table]
    cells = []
    for row, how in zip(printed["rows"], plan["rows"], strict=True):
        for index, (name, column) in enumerate(zip(printed["columns"], plan["columns"], strict=True)):
            if column.get("same_as_left") or row["cells"][index] == "-":
                continue
            config = how.get("config") or column.get("config")
            backbone = None
            if "backbone" in column:
                backbone = (how["backbone_config"], dict(column["backbone"]))
            cells.append(
                Cell(
                    table=table,
                    row=row["name"],
                    column=name,
                    printed=row["cells"][index],
                    wanted={**printed["match"], **row.get("match", {}), **printed["column_match"][index]},
                    tool=plan["tool"],
                    config=config[index] if isinstance(config, list) else config,
                    overrides={**column.get("set", {}), **how.get("set", {})},
                    backbone=backbone,
                    seeds=tuple(column.get("seeds", plan.get("seeds", (0, 1, 2)))),
                    pretrained=bool(plan.get("pretrained", False)),
                )
            )
    return cells
