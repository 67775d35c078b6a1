"""The drills of CONTRIBUTING.md: an entry in a table is enough, everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keepaug.classify import METHODS, ClassifyConfig, train
from keepaug.classify.methods import KEEP, Cutting, Method
from keepaug.classify.tool import TOOL
from keepaug.data.synthetic import write_classification
from keepaug.keep import KeepCutout
from keepaug.models import networks
from keepaug.models.weights import load_classifier
from keepaug.runs.config import ConfigError, load_config, recipe_of
from keepaug.runs.planning import shrunk
from ssl_uda import ALGORITHMS, UdaConfig
from ssl_uda import train as train_uda
from ssl_uda.algorithms import Algorithm, LossParts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drill") / "d"
    return write_classification(folder, num_train=24, num_val=8, num_classes=2, size=(32, 32))


def test_a_method_is_an_entry(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the settings of the plain method whose base it names, and tau; others are refused."""
    method = Method("grid_mask", lambda config: Cutting(KeepCutout(8, p=config.p, tau=config.tau)), KEEP)
    monkeypatch.setitem(METHODS, "keep_grid_mask", method)
    given = [f"root={root}", "method=keep_grid_mask", "p=0.9", "tau=0.5", "grid_unit=[6, 9]", "arch=resnet8"]
    config = load_config(ClassifyConfig, None, shrunk(TOOL, None, given))
    train(config, tmp_path)
    run = load_classifier(tmp_path / "weights.pt").provenance
    assert run["recipe"]["method"] == "keep_grid_mask"
    assert {"p", "tau", "saliency", "grid_unit"} <= run["recipe"].keys()
    with pytest.raises(ConfigError, match="num_ops is for rand_augment"):
        load_config(ClassifyConfig, None, [*given, "num_ops=3"])


def small_logits(outputs, labels, config, step, world) -> LossParts:
    total = F.cross_entropy(outputs.labelled, labels) + outputs.strong.square().mean()
    return LossParts(total, {"loss": total.detach()})


def test_an_algorithm_is_an_entry(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "small_logits", Algorithm(f"{__name__}:small_logits"))
    given = ["algorithm=small_logits", "steps=1", "batch_size=2", "num_labels=8"]
    more = ["split=balanced", "arch=wrn10_1", "dataset=image_folder", "pictures=false", f"root={root}"]
    config = load_config(UdaConfig, None, [*given, *more])
    train_uda(config, tmp_path)
    assert load_classifier(tmp_path / "weights.pt").provenance["recipe"]["algorithm"] == "small_logits"


def tiny(width: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )


def test_a_network_is_a_pattern(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_PATTERNS", ((r"tiny(\d+)", f"{__name__}:tiny"), *networks._PATTERNS))
    config = load_config(ClassifyConfig, None, shrunk(TOOL, None, [f"root={root}", "arch=tiny4"]))
    train(config, tmp_path)
    trained = load_classifier(tmp_path / "weights.pt")
    assert trained.network(torch.randn(1, 3, 8, 8)).shape == (1, 2)
    assert recipe_of(config)["arch"] == trained.spec.arch == "tiny4"


def test_a_reid_data_set_is_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchreid")
    from reid.config import ReidConfig
    from reid.data.layouts import LAYOUTS, SPLITS, open_data

    monkeypatch.setitem(LAYOUTS, "zoo", lambda root: LAYOUTS["market1501"](root / "zoo"))
    for split, folder in zip(SPLITS, ("bounding_box_train", "query", "bounding_box_test"), strict=True):
        (tmp_path / "zoo" / folder).mkdir(parents=True)
        for camera in (1, 2):
            (tmp_path / "zoo" / folder / f"000{1 + (split == 'train')}_c{camera}s1_000001_00.jpg").touch()
    config = load_config(ReidConfig, None, ["layout=zoo", f"root={tmp_path}"])
    assert {
        split: len(open_data(config.layout, config.root).split(split)) for split in SPLITS
    } == dict.fromkeys(SPLITS, 2)
