"""Whole runs: recipes and configs, resume after SIGKILL, what a result says, evaluation of weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from reid_helpers import TINY, tiny_config, write_market

from keepaug.report.aggregate import aggregate
from keepaug.report.cells import load_cells
from keepaug.report.cells import resolve as resolve_cell
from keepaug.report.paper import fill_table, load_paper
from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.config import ConfigError, load_config, recipe_of, to_dict
from keepaug.runs.errors import StopRequestedError
from keepaug.runs.result import read_result
from reid.config import METHODS, RECIPES, ReidConfig, check, is_shortened, resolve
from reid.data.layouts import OFFICIAL_SIZES, SPLITS
from reid.evaluation.run import evaluate_weights
from reid.tool import TOOL
from reid.training.engine import KeepEngine
from reid.training.erasing import build_eraser
from reid.training.loop import train

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "reid").glob("*.yaml"))


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_market(tmp_path_factory.mktemp("l") / "m")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_and_say_how_to_use_them(path: Path) -> None:
    config = load_config(ReidConfig, path, ["root=x"])
    check(resolve(config))
    assert config != resolve(load_config(ReidConfig, None, ["root=x"]))
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"keepaug train-reid --config configs/reid/{path.name}" in head[1]
    assert head[2].startswith("# Time: ")
    assert "Expected" in " ".join(head)


@pytest.mark.parametrize("arch", ["r50", "r101"])
def test_recipes_differ_by_one_line_each(arch: str) -> None:
    loaded = {
        recipe: resolve(
            load_config(ReidConfig, ROOT / "configs" / "reid" / f"{arch}_{recipe}.yaml", ["root=x"])
        )
        for recipe in RECIPES
    }
    for recipe, config in loaded.items():
        assert (config.recipe, config.arch) == (recipe, {"r50": "resnet50", "r101": "resnet101"}[arch])
        assert {key: getattr(config, key) for key in RECIPES[recipe]} == RECIPES[recipe]
        shared = (
            config.epochs,
            config.lr,
            config.weight_decay,
            config.milestones,
            config.identities,
            config.images,
        )
        assert shared == (120, 3.5e-4, 5e-4, [40, 70], 16, 4)
        assert (config.height, config.width, config.padding, config.fill, config.p) == (
            256,
            128,
            10,
            "bot",
            0.5,
        )
        assert (config.margin, config.centre_lr, config.tau, config.saliency) == (
            0.3,
            0.5,
            0.6,
            "low_resolution",
        )
        assert (config.first_relu, config.warmup_epochs, config.warmup_factor) == (False, 10, 0.01)
    folder = ROOT / "configs" / "reid"
    tricks = yaml.safe_load((folder / "r50_bag_of_tricks.yaml").read_text())
    assert set(tricks) == {"_base_", "recipe", *RECIPES["bag_of_tricks"]}
    keep = yaml.safe_load((folder / "r50_bag_of_tricks_keep.yaml").read_text())
    assert keep == {"_base_": "r50_bag_of_tricks.yaml", "recipe": "bag_of_tricks_keep", "method": METHODS[2]}


def test_a_recipe_means_what_it_says() -> None:
    config = resolve(load_config(ReidConfig, None, ["recipe=standard"]))
    assert (config.neck, config.last_stride, config.method, config.warmup) == ("none", 2, "none", False)
    with pytest.raises(
        ConfigError,
        match="means method=random_erasing, got method=keep_random_erasing: set recipe=custom",
    ):
        resolve(load_config(ReidConfig, None, ["recipe=bag_of_tricks", "method=keep_random_erasing"]))
    custom = resolve(load_config(ReidConfig, None, ["recipe=custom", "method=keep_random_erasing"]))
    assert (custom.method, custom.neck) == ("keep_random_erasing", "bnneck")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("root=''", "root is empty"),
        ("arch=resnet20", "arch is 'resnet20'; allowed: .*torchreid:NAME"),
        ("area=[0.4, 0.1]", "area must be"),
        ("milestones=[70, 40]", "milestones must be rising"),
        ("mean=[0.5]", "mean must have three numbers"),
        ("also_evaluate=[x]", "also_evaluate: expected LAYOUT:ROOT"),
    ],
)
def test_settings_that_cannot_be_meant(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(resolve(load_config(ReidConfig, None, ["root=x", override])))


def test_what_counts_as_shortened() -> None:
    for overrides, expected in (
        ([], False),
        (["epochs=1", "weights=r50.pth"], False),  # the report compares recipes
        (["limit_identities=5"], True),
        (["limit_queries=5"], True),
        (["max_steps=5"], True),
    ):
        assert is_shortened(load_config(ReidConfig, None, overrides)) is expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_of_the_config_is_the_cells(recipe: str) -> None:
    """What a run says of itself, after all checks, is what planning and report derive from the file."""
    path = ROOT / "configs" / "reid" / f"r101_{recipe}.yaml"
    run = load_config(
        ReidConfig, path, ["root=x", "weights=w.pth", "device=cpu", "seed=3", "tensorboard=false"]
    )
    check(resolve(run))
    planned = TOOL.load(path, [])
    assert recipe_of(run) == TOOL.recipe(planned)
    assert TOOL.origin(run) == {"file": "w.pth", "sha256": ""}  # which is not here
    assert ("tau" in recipe_of(run)) is (recipe == "bag_of_tricks_keep")
    for other in ("lr=0.5", "epochs=1", "height=32", "first_relu=true", "limit_queries=3"):
        assert TOOL.recipe(TOOL.load(path, [other])) != TOOL.recipe(planned)


def test_fills() -> None:
    """Section 4.4's random values, but for the recipe that has its own."""
    for recipe, fill in (("bag_of_tricks", "bot"), ("bag_of_tricks_keep", "bot"), ("custom", "random")):
        config = resolve(load_config(ReidConfig, None, [f"recipe={recipe}"]))
        assert config.fill == build_eraser(config).fill == fill
    assert build_eraser(resolve(load_config(ReidConfig, None, ["fill=zero"]))).fill == "zero"
    with pytest.raises(ConfigError, match="fill is for random_erasing, keep_random_erasing"):
        load_config(ReidConfig, None, ["recipe=standard", "fill=zero"])
    with pytest.raises(ConfigError, match="tau is for keep_random_erasing"):
        load_config(ReidConfig, None, ["recipe=bag_of_tricks", "tau=0.5"])


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from typing import Any
from reid_helpers import tiny_config
from reid.training.engine import KeepEngine
from reid.training.loop import train
original = KeepEngine.forward_backward
def killed(self, data):
    if self.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, data)
KeepEngine.forward_backward = killed
train(tiny_config(Path({market!r}), *{overrides!r}), {output!r})
"""


def test_killed_asked_to_stop_and_resumed_equals_uninterrupted(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two checkpoints, then stopped by a signal; the end is bit for bit the same."""
    overrides = [
        "identities=2",
        "arch=torchreid:osnet_x0_25",
        "checkpoint_every=2",
        "eval_every=1",
        "p=1.0",
        "fill=random",
        "log_every=1",
    ]
    metrics = train(tiny_config(market, *overrides), tmp_path / "whole")
    whole = read_weights_only(tmp_path / "whole" / "checkpoint.pt")
    assert whole["step"] == 6
    program = KILLED.format(
        root=str(ROOT), tests=str(ROOT / "tests" / "reid"), market=str(market), overrides=overrides,
        output=str(tmp_path / "cut"), step=5,
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_weights_only(tmp_path / "cut" / "checkpoint.pt")["step"] == 4
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tiny_config(market, *overrides), tmp_path / "cut")
    with pytest.raises(ConfigError, match=r"resuming would change the run .*lr \(was 0.001, is 0.002\)"):
        train(tiny_config(market, *overrides, "lr=0.002"), tmp_path / "cut", resume=True)
    step = KeepEngine.forward_backward

    def asked(self: KeepEngine, data: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(KeepEngine, "forward_backward", asked)
        with pytest.raises(StopRequestedError, match="stopped by SIGTERM after step 5, with a checkpoint"):
            train(tiny_config(market, *overrides), tmp_path / "cut", resume=True)
    again = train(tiny_config(market, *overrides), tmp_path / "cut", resume=True)
    assert again == metrics
    cut = read_weights_only(tmp_path / "cut" / "checkpoint.pt")
    for part in ("state_dict", "centre"):
        for key, value in whole[part].items():
            assert torch.equal(cut[part][key], value), key
    for key, state in whole["optimizer"]["state"].items():
        assert torch.equal(cut["optimizer"]["state"][key]["exp_avg_sq"], state["exp_avg_sq"])
    assert cut["history"] == whole["history"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_results_and_evaluation_of_weights(market: Path, tmp_path: Path) -> None:
    settings = [
        "arch=torchreid:osnet_x0_25",
        "recipe=standard",
        "max_steps=2",
        "eval_untrained=true",
        "rerank=true",
    ]
    metrics = train(tiny_config(market, *settings, "k1=3", "k2=2"), tmp_path / "run")
    result = read_result(tmp_path / "run" / "result.json")
    assert result["kind"] == "reid"
    assert result["shortened"]
    assert result["metrics"] == metrics
    assert {"rank1", "rank5", "rank10", "mAP", "mINP", "best_mAP", "untrained_mAP", "mAP_reranked"} <= set(
        metrics
    )
    assert result["dataset"]["name"] == "m"
    assert result["extra"]["initial_weights"] == "random"
    assert result["extra"]["share_of_images_per_epoch"] == pytest.approx(sampled(18), abs=0.4)
    config = load_config(ReidConfig, None, [*TINY, f"root={market}", "height=64"])  # the weights know better
    scores = evaluate_weights(config, tmp_path / "run" / "weights.pt", tmp_path / "scored")
    assert scores["m"] == {key: metrics[key] for key in scores["m"]}
    written = json.loads((tmp_path / "scored" / "evaluation.json").read_text())
    assert written["metrics"] == scores
    assert not (tmp_path / "scored" / "result.json").exists()  # an evaluation is no second run
    from_checkpoint = evaluate_weights(
        load_config(ReidConfig, None, [*TINY, f"root={market}", "flip_test=true"]),
        tmp_path / "run" / "checkpoint.pt",
        tmp_path / "flipped",
    )
    assert set(from_checkpoint["m"]) == set(scores["m"])
    with pytest.raises(FileNotFoundError, match="no weights file"):
        evaluate_weights(config, tmp_path / "none.pt", tmp_path / "x")


def sampled(total: int) -> float:
    return 16 / total


def test_table_8_takes_the_recipe_from_pretrained_weights_alone() -> None:
    table = next(one for one in load_paper() if one["id"] == 8)
    cells = load_cells("8")
    configs = ROOT / "configs"
    wanted = {(cell.row, cell.column): resolve_cell(cell, lambda name: TOOL, configs) for cell in cells}

    sizes = dict(zip(SPLITS, OFFICIAL_SIZES["market1501"], strict=True))

    def num_run(recipe: str, *overrides: str, weights: bool = True) -> int:
        config = resolve(load_config(ReidConfig, configs / "reid" / f"r101_{recipe}.yaml", list(overrides)))
        result = {
            "schema": 2, "kind": "reid", "name": "n", "seed": 0, "synthetic": False, "shortened": False,
            "extra": {}, "started_from": {"file": "w", "sha256": "s", "provenance": {}} if weights else None,
            "hardware": {"gpus": [], "cpu": "c", "cores": 1}, "engine": None, "folder": "f", "revision": None,
            "metrics": {"rank1": 95.0, "mAP": 87.0}, "precision": {}, "config": to_dict(config),
            "dataset": {"name": "market1501", "checksum": "c", "sizes": sizes},
            "recipe": recipe_of(config),
        }  # fmt: skip
        return fill_table(table, aggregate([result]), wanted).num_run

    assert [num_run(recipe) for recipe in RECIPES] == [2, 2, 2]
    assert num_run("bag_of_tricks", weights=False) == 0
    assert num_run("bag_of_tricks", "arch=resnet50") == 0
    assert num_run("bag_of_tricks", "recipe=custom") == 0
    assert num_run("bag_of_tricks", "epochs=1", "height=32", "width=32") == 0


def test_both_paths_of_torchreid(monkeypatch: pytest.MonkeyPatch) -> None:
    from reid.torchreid_api import torchreid_module

    assert torchreid_module("engine").__name__ == "torchreid.reid.engine"
    for name in [name for name in sys.modules if name.split(".")[0] == "torchreid"]:
        monkeypatch.delitem(sys.modules, name)
    package, engine = types.ModuleType("torchreid"), types.ModuleType("torchreid.engine")
    package.__path__ = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchreid", package)
    monkeypatch.setitem(sys.modules, "torchreid.engine", engine)
    assert torchreid_module("engine") is engine
    with pytest.raises(ImportError, match=r"neither torchreid.reid.models nor torchreid.models"):
        torchreid_module("models")
    monkeypatch.setitem(sys.modules, "torchreid", None)
    with pytest.raises(ImportError, match=r"pip install 'keepaug\[reid\]'"):
        torchreid_module("engine")
