"""The list of runs against the paper's tables: each run lands in its own cell and in no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keepaug.classify import ClassifyConfig
from keepaug.classify.config import check
from keepaug.commands.known import recipes, tool
from keepaug.report import aggregate, fill_table, load_paper
from keepaug.report.cells import Cell, load_cells, resolve, run_name
from keepaug.runs.config import load_config, to_dict
from keepaug.runs.configs import CONFIGS
from keepaug.runs.result import read_results, write_result

ROOT = Path(__file__).parents[2]
CLASSIFY = ("1", "1b", "2", "4", "5", "6")


def classifier(cell: Cell) -> ClassifyConfig:
    given = [f"{key}={value}" for key, value in cell.overrides.items()]
    return load_config(ClassifyConfig, ROOT / "configs" / cell.config, [*given, "root=x"])


SIZES = {
    "cifar10": {"train": 50000, "val": 10000},
    "imagenet": {"train": 1281167, "val": 50000},
    "coco": {"train": 118287, "val": 5000},
    "market1501": {"train": 12936, "query": 3368, "gallery": 15913},
}


def result(cell: Cell, folder: Path, value: float, **change: Any) -> None:
    """What a run of the cell leaves."""
    kind = tool(cell.tool).kind
    given = [f"{key}={value}" for key, value in cell.overrides.items()]
    settings = tool(cell.tool).load(CONFIGS / cell.config, given)
    wanted = resolve(cell, tool, CONFIGS)
    began = None
    if wanted.backbone is not None:
        run = {
            "kind": "classify",
            "recipe": wanted.backbone,
            "dataset": {"name": "imagenet", "sizes": SIZES["imagenet"], "checksum": "i"},
            "seed": 0,
            "synthetic": False,
            "shortened": False,
        }
        began = {"file": "weights.pt", "sha256": "a", "provenance": run}
    elif wanted.pretrained:
        began = {"file": "resnet101.pth", "sha256": "b", "provenance": {}}
    name = cell.wanted["dataset"]
    write_result(
        folder,
        kind=kind,
        name=Path(cell.config).stem if kind == "detection" else "x",
        metrics=dict.fromkeys({"detection": ["AP"], "reid": ["rank1", "mAP"]}.get(kind, ["accuracy"]), value),
        seed=0,
        config=dict(settings) if kind == "detection" else to_dict(settings),
        recipe=wanted.recipe | change.pop("recipe", {}),
        dataset={"name": name, "sizes": SIZES.get(name, {}), "checksum": "a"},
        synthetic=False,
        shortened=False,
        engine="detectron2" if kind == "detection" else None,
        wall_time_s=1.0,
        **{"started_from": began, **change},
    )


def filled_of(table: str, root: Path):
    printed = next(one for one in load_paper() if str(one["id"]) == table)
    return fill_table(printed, aggregate(read_results(root)), recipes(table))


@pytest.mark.parametrize("table", [*CLASSIFY, "7", "8", "9"])
def test_every_run_lands_in_its_own_cell(table: str, tmp_path: Path) -> None:
    cells = load_cells(table)
    for number, cell in enumerate(cells):
        result(cell, tmp_path / str(number), float(number))
    printed = next(one for one in load_paper() if str(one["id"]) == table)
    filled = filled_of(table, tmp_path)
    assert not filled.near
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


CHANGED = [
    ("1", {"tau": 0.05, "lr": 0.5, "batch_size": 16, "padding": 0, "flip": False}, "lr 0.5 instead of 0.1"),
    ("1", {"reuse_every": 5}, "reuse_every 5 instead of 1"),
    ("1", {"epochs": 2}, "epochs 2 instead of 300"),
    ("1b", {"policy": "imagenet", "cutout_after": 0}, "policy imagenet instead of cifar10"),
    ("4", {"num_ops": 3, "tau": 0.2}, "num_ops 3 instead of 2"),
    ("6", {"dropout": 0.5, "drop_block": 0.3}, "drop_block 0.3 instead of 0.0"),
    ("6", {"image_size": 64}, "image_size 64 instead of 224"),
    ("7", {"temperature": 9, "unlabelled_ratio": 1}, "temperature 9 instead of 0.4"),
    ("8", {"epochs": 1, "height": 32, "width": 32}, "height 32 instead of 256"),
    ("9", {"SOLVER.BASE_LR": 1e-9, "SOLVER.IMS_PER_BATCH": 1}, "SOLVER.BASE_LR 1e-09 instead of 0.02"),
]


@pytest.mark.parametrize(("table", "change", "said"), CHANGED)
def test_another_recipe_is_in_no_cell_and_is_said(
    table: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """What is near a cell in method, network and data, and not its recipe."""
    cell = load_cells(table)[-1 if table in ("1b", "4") else 3 if table == "1" else 0]
    result(cell, tmp_path / "a", 50.0, recipe=change)
    filled = filled_of(table, tmp_path)
    assert filled.num_run == 0
    assert len(filled.near) == 1
    assert f"{cell.row} / {cell.column}: 50.0 (1 seed)" in filled.near[0]
    assert said in filled.near[0]


def test_data_of_other_sizes_are_in_no_cell(tmp_path: Path) -> None:
    result(load_cells("1")[0], tmp_path / "a", 50.0)
    path = tmp_path / "a" / "result.json"
    path.write_text(path.read_text().replace("50000", "60"))
    assert "60 train images instead of 50000" in filled_of("1", tmp_path).near[0]


FOREIGN = {"file": "x.pth", "sha256": "0123456789", "provenance": {}}


@pytest.mark.parametrize(
    ("table", "origin", "said"),
    [
        ("1", FOREIGN, "from x.pth (01234567)"),
        ("8", None, "from random instead of pretrained weights"),
    ],
)
def test_what_a_run_starts_from_is_a_part_of_the_recipe(
    table: str, origin: dict[str, Any] | None, said: str, tmp_path: Path
) -> None:
    result(load_cells(table)[0], tmp_path / "a", 50.0, started_from=origin)
    assert said in filled_of(table, tmp_path).near[0]


def test_a_detector_on_another_backbone_is_in_no_cell(tmp_path: Path) -> None:
    cell = load_cells("9")[1]
    backbone = {**resolve(cell, tool, CONFIGS).backbone, "tau": 0.1, "epochs": 2}
    run = {
        "kind": "classify",
        "recipe": backbone,
        "dataset": {"name": "imagenet", "sizes": SIZES["imagenet"], "checksum": "i"},
        "seed": 0,
        "synthetic": False,
        "shortened": False,
    }
    for number, more in enumerate(({}, {"synthetic": True}, {"shortened": True})):
        began = {"file": "weights.pt", "sha256": "a", "provenance": {**run, **more}}
        result(cell, tmp_path / str(number), 40.0, started_from=began)
    filled = filled_of("9", tmp_path)
    assert filled.num_run == 0
    assert "backbone: epochs 2 instead of 300; backbone: tau 0.1 instead of 0.6" in filled.near[0]
    assert filled.num_left_out == 2
    assert len(aggregate(read_results(tmp_path))) == 3


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        (
            "9",
            {"dataset": {"sizes": {"train": 50000, "val": 10000}}},
            "50000 train images instead of 1281167",
        ),
        (
            "8",
            {"dataset": {"sizes": {"train": 50000, "val": 10000}}},
            "50000 train images instead of 1281167",
        ),
        ("8", {"kind": "reid"}, "backbone: of the kind reid instead of classify"),
    ],
)
def test_a_network_of_ours_trained_on_other_data_is_no_imagenet_backbone(
    table: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    cell = load_cells(table)[0]
    run = {
        "kind": "classify",
        "recipe": resolve(cell, tool, CONFIGS).backbone or {"arch": "resnet101"},
        "dataset": {"name": "imagenet", "sizes": SIZES["imagenet"], "checksum": "i"},
        "seed": 0,
        "synthetic": False,
        "shortened": False,
    }
    for number, provenance in enumerate((run, run | change)):
        began = {"file": "weights.pt", "sha256": str(number), "provenance": provenance}
        result(cell, tmp_path / str(number), 40.0 + number, started_from=began)
    filled = filled_of(table, tmp_path)
    assert filled.num_run == (2 if table == "8" else 1)  # two figures of one run
    assert said in filled.near[0]
    assert "41.0" in filled.near[0]


def test_the_hardware_of_all_seeds_stands_with_the_number(tmp_path: Path) -> None:
    cell = load_cells("1")[0]
    for seed, hardware in enumerate(
        (
            {"device": "cuda:0", "processes": 1, "gpus": ["A", "A"]},
            {"device": "cpu", "processes": 2, "gpus": ["A"]},
            {"gpus": ["B"]},  # as it was written once
        )
    ):
        result(cell, tmp_path / str(seed), 90.0)
        path = tmp_path / str(seed) / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seed": seed, "hardware": hardware}))
    _, _, remark = dict(filled_of("1", tmp_path).rows)[cell.row][0]
    assert "1 x A and CPU, 2 processes and 1 x B" in remark


def test_two_kinds_of_runs_in_one_cell_are_both_said(tmp_path: Path) -> None:
    cell = load_cells("1")[0]
    for number, precision in enumerate(("float32", "bf16")):
        result(cell, tmp_path / precision, 90.0 + number, precision={"precision": precision})
    filled = filled_of("1", tmp_path)
    _, ours, remark = dict(filled.rows)[cell.row][0]
    assert ours == "91.0 (1 seed); 90.0 (1 seed)" or ours == "90.0 (1 seed); 91.0 (1 seed)"
    assert "bf16" in remark
    assert "float32" in remark


def test_runs_of_one_seed_are_said_and_not_averaged(tmp_path: Path) -> None:
    cell = load_cells("1")[0]
    for number in range(2):
        result(cell, tmp_path / str(number), 90.0 + 4 * number)
        path = tmp_path / str(number) / "result.json"
        content = json.loads(path.read_text())
        content["metrics"]["best"] = 90.0 + 4 * number
        path.write_text(json.dumps(content))
    ours = dict(filled_of("1", tmp_path).rows)[cell.row][0][1]
    assert ours.startswith("90.0 | 94.0 (not averaged: more than one run of seed 0)")
    assert "92.0" not in ours


def test_names_and_errors() -> None:
    overrides = {"size": 16, "method": "keep_cutout", "saliency": "full", "arch": "resnet110"}
    assert run_name("classify/cifar10.yaml", overrides) == "cifar10-resnet110-keep_cutout-full-size16"
    with pytest.raises(ValueError, match=r"keepaug benchmark measures it"):
        load_cells("3")
    with pytest.raises(ValueError, match="the paper has the tables 1, 1b"):
        load_cells("10")
