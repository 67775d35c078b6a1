"""The list of runs against the paper's tables: each run lands in its own cell and in no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keepaug.classify import ClassifyConfig
from keepaug.classify.config import check
from keepaug.report import aggregate, fill_table, load_paper
from keepaug.report.cells import Cell, load_cells, run_name
from keepaug.runs.config import load_config, to_dict
from keepaug.runs.result import read_results, write_result

ROOT = Path(__file__).parents[2]
CLASSIFY = ("1", "1b", "2", "4", "5", "6")


def classifier(cell: Cell) -> ClassifyConfig:
    given = [f"{key}={value}" for key, value in cell.overrides.items()]
    return load_config(ClassifyConfig, ROOT / "configs" / cell.config, [*given, "root=x"])


def settings_of(cell: Cell) -> dict[str, Any]:
    if cell.tool == "train_classifier":
        return to_dict(classifier(cell))
    path = ROOT / "configs" / cell.config
    given = [f"{key}={value}" for key, value in cell.overrides.items()]
    if cell.tool == "train_uda":
        from ssl_uda.config import UdaConfig

        return to_dict(load_config(UdaConfig, path, [*given, "root=x"]))
    if cell.tool == "train_reid":
        pytest.importorskip("torchreid")
        from reid.config import ReidConfig

        return to_dict(load_config(ReidConfig, path, [*given, "root=x"]))
    return {"file": cell.config}


def result(cell: Cell, folder: Path, value: float) -> None:
    kind = {"train_classifier": "classify", "train_uda": "ssl_uda", "train_reid": "reid"}.get(
        cell.tool, "detection"
    )
    extra = {} if cell.backbone is None else {"backbone": {"provenance": cell.backbone[1]}}
    metric = {"detection": ["AP"], "reid": ["rank1", "mAP"]}.get(kind, ["accuracy"])
    write_result(
        folder,
        kind=kind,
        name=Path(cell.config).stem if kind == "detection" else "x",
        metrics=dict.fromkeys(metric, value),
        seed=0,
        config=settings_of(cell),
        dataset={"name": cell.wanted["dataset"], "sizes": {}, "checksum": "a"},
        synthetic=False,
        shortened=False,
        engine="detectron2" if kind == "detection" else None,
        wall_time_s=1.0,
        extra=extra,
    )


@pytest.mark.parametrize("table", [*CLASSIFY, "7", "8", "9"])
def test_every_run_lands_in_its_own_cell(table: str, tmp_path: Path) -> None:
    cells = load_cells(table)
    for number, cell in enumerate(cells):
        result(cell, tmp_path / str(number), float(number))
    printed = next(one for one in load_paper() if str(one["id"]) == table)
    filled = fill_table(printed, aggregate(read_results(tmp_path)))
    found = {
        (row, column): ours
        for row, parts in filled.rows
        for column, (_, ours, _) in zip(filled.columns, parts, strict=True)
    }
    for number, cell in enumerate(cells):
        assert found[cell.row, cell.column] == f"{number:.1f} (1 seed)", (cell.row, cell.column)
    empty = [key for key, ours in found.items() if ours == "not run"]
    blank = sum(printed_cell == "-" for row in printed["rows"] for printed_cell in row["cells"])
    assert len(empty) == blank


def test_one_name_is_one_run_over_all_tables() -> None:
    seen: dict[str, ClassifyConfig] = {}
    cells = [cell for table in CLASSIFY for cell in load_cells(table)]
    for cell in cells:
        settings = classifier(cell)
        assert seen.setdefault(cell.run, settings) == settings, cell.run
    assert (
        len(seen) == len(cells) - 4
    )  # 16 stands in tables 1 and 2 (two cells), KeepAutoAugment+L in 1 and 5 (two)
    several = list(seen.values())
    assert all(several[i] != several[j] for i in range(len(several)) for j in range(i))


@pytest.mark.parametrize("table", CLASSIFY)
def test_every_run_is_a_whole_recipe_that_can_start(table: str) -> None:
    for cell in load_cells(table):
        settings = classifier(cell)
        check(settings)
        assert settings.limit_train == settings.max_steps == 0
        lines = (ROOT / "configs" / cell.config).read_text().splitlines()
        header = "\n".join(line for line in lines if line.startswith("#"))
        for key in ("method", *(key for key in cell.overrides if key in ("magnitude", "operations", "arch"))):
            assert f"{key}=" in header, (cell.config, key)


def test_recipes_are_those_of_the_papers() -> None:
    """Read off the papers and their code once more, by hand."""

    def recipe(table: str, row: str, column: str) -> ClassifyConfig:
        return classifier(next(c for c in load_cells(table) if (c.row, c.column) == (row, column)))

    wide = recipe("1", "KeepCutout", "Wide ResNet-28-10")
    assert (wide.arch, wide.dropout, wide.lr, wide.weight_decay) == ("wrn28_10", 0.3, 0.1, 5e-4)
    assert (wide.epochs, wide.batch_size, wide.schedule, wide.nesterov, wide.tau) == (
        300,
        128,
        "cosine",
        True,
        0.6,
    )
    assert wide.size == 16
    auto = recipe("1b", "KeepAutoAugment", "Wide ResNet-28-10")
    assert (auto.policy_order, auto.cutout_after, auto.clip_norm, auto.dropout) == (
        "before_crop",
        16,
        5.0,
        0.0,
    )
    shake = recipe("1b", "AutoAugment", "Shake-Shake")
    assert (shake.lr, shake.weight_decay, shake.epochs) == (0.01, 1e-3, 300)
    pyramid = recipe("1b", "AutoAugment", "PyramidNet+ShakeDrop")
    assert (pyramid.lr, pyramid.weight_decay, pyramid.epochs, pyramid.batch_size) == (0.05, 5e-5, 1800, 64)
    assert recipe("4", "18", "KeepAutoAugment").magnitude == 18
    image = recipe("6", "KeepCutMix", "ResNet-101")
    assert (image.epochs, image.batch_size, image.lr, image.milestones) == (300, 256, 0.1, [75, 150, 225])
    assert (image.weight_decay, image.size, image.jitter, image.lighting) == (1e-4, 40, 0.4, 0.1)
    assert recipe("6", "Mixup", "ResNet-50").alpha == 0.2
    assert recipe("6", "Dropout", "ResNet-50").dropout == 0.3


def test_seeds_are_the_papers_trials() -> None:
    assert {table: len(load_cells(table)[0].seeds) for table in ("1", "2", "4", "5", "6")} == {
        "1": 3,
        "2": 5,
        "4": 5,
        "5": 5,
        "6": 3,
    }
    by_column = {cell.column: cell.seeds for cell in load_cells("1b")}
    assert by_column["PyramidNet+ShakeDrop"] == (0,)  # "only one random trial"
    assert len(by_column["Shake-Shake"]) == 3


def test_reused_maps_are_not_the_papers(tmp_path: Path) -> None:
    cell = load_cells("1")[3]
    result(cell, tmp_path / "a", 1.0)
    printed = next(one for one in load_paper() if str(one["id"]) == "1")
    path = tmp_path / "a" / "result.json"
    assert fill_table(printed, aggregate(read_results(tmp_path))).num_run == 1
    content = json.loads(path.read_text())
    content["config"]["reuse_every"] = 5
    path.write_text(json.dumps(content))
    assert fill_table(printed, aggregate(read_results(tmp_path))).num_run == 0


def test_names_and_errors() -> None:
    overrides = {"size": 16, "method": "keep_cutout", "saliency": "full", "arch": "resnet110"}
    assert run_name("classify/cifar10.yaml", overrides) == "cifar10-resnet110-keep_cutout-full-size16"
    with pytest.raises(ValueError, match=r"tools/benchmark\.py measures it"):
        load_cells("3")
    with pytest.raises(ValueError, match="the paper has the tables 1, 1b"):
        load_cells("10")
