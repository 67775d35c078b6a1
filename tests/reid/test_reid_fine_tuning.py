"""Runs that start from other runs' weights, become longer, and are used on new images."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reid_helpers import tiny_config, write_image, write_market
from torch import nn

from keepaug.__main__ import commands
from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.config import ConfigError
from reid.config import resolve
from reid.evaluation.features import describe_images, load_features
from reid.evaluation.run import evaluate_weights
from reid.models.network import ReidNetwork, build_reid_network
from reid.models.weights import describe_network, load_backbone, load_network, save_trained
from reid.training.loop import train

ROOT = Path(__file__).parents[2]
SMALL = "arch=torchreid:osnet_x0_25"


def network(seed: int, identities: int, arch: str = "resnet18", **options: Any) -> ReidNetwork:
    torch.manual_seed(seed)
    made = build_reid_network(arch, identities, size=(48, 32), **options)
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1)
    return made


def below(prefix: str, plain: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in plain.items()}


# What projects save a trained network as: all from the backbone's plain tensors.
WRAPPED: dict[str, Any] = {
    "plain": lambda plain: plain,
    "module": lambda plain: below("module", plain),
    "base": lambda plain: (
        below("base", plain) | {"bottleneck.weight": torch.ones(512), "classifier.weight": torch.ones(9, 512)}
    ),
    "backbone": lambda plain: {"model": below("backbone", plain), "iteration": 9},
    "module.base": lambda plain: {"state_dict": below("module.base", plain)},
    "Lightning": lambda plain: {
        "state_dict": below("model.backbone", plain) | {"loss.centers": torch.ones(3)},
        "epoch": 3,
    },
    "parameters": lambda plain: {
        "network": OrderedDict(
            (key, nn.Parameter(value)) for key, value in plain.items() if value.is_floating_point()
        )
    },
    "torchreid": lambda plain: {
        "state_dict": below("module", plain)
        | {"module.classifier.weight": torch.ones(751, 512), "module.classifier.bias": torch.ones(751)},
        "epoch": np.int64(60),
        "rank1": np.float64(0.94),
        "optimizer": {"state": {}, "param_groups": []},
        "scheduler": {"last_epoch": 60},
    },
    "twice the same": lambda plain: below("student", plain) | below("teacher", plain),
}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("arch", ["resnet18", "torchreid:osnet_x0_25"])
def test_prefixes_and_wrappers(form: str, arch: str, tmp_path: Path) -> None:
    source = network(1, 5, arch)
    plain = {key.removeprefix("network."): value for key, value in source.backbone.state_dict().items()}
    path = tmp_path / "model.pth.tar-60"
    torch.save(WRAPPED[form](plain), path)
    target = network(2, 9, arch)
    head = target.classifier.weight.clone()
    identity = load_backbone(target, path)
    for key, value in source.backbone.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(target.backbone.state_dict()[key], value), key
    assert torch.equal(target.classifier.weight, head)
    assert identity["file"] == "model.pth.tar-60"
    assert len(identity["sha256"]) == 64


def test_torchreids_own_checkpoint(tmp_path: Path) -> None:
    models = pytest.importorskip("torchreid.reid.models", reason="torchreid is not installed")
    tools = pytest.importorskip("torchreid.reid.utils.torchtools")
    theirs = models.build_model("osnet_x0_25", num_classes=7, loss="triplet", pretrained=False, use_gpu=False)
    state = {"state_dict": theirs.state_dict(), "epoch": 1, "rank1": np.float32(0.5), "optimizer": {}}
    tools.save_checkpoint(state, str(tmp_path))
    target = network(2, 3, "torchreid:osnet_x0_25")
    load_backbone(target, tmp_path / "model.pth.tar-1")
    assert torch.equal(target.backbone.network.conv1.conv.weight, theirs.conv1.conv.weight)


def test_several_networks_in_a_file_are_asked_about(tmp_path: Path) -> None:
    states = {side: network(seed, 3).backbone.state_dict() for seed, side in enumerate(("mean", "own"))}
    content = {f"{side}.{key}": value for side, state in states.items() for key, value in state.items()}
    torch.save(content, tmp_path / "both.pth")
    with pytest.raises(ConfigError, match=r"several networks that differ, below 'own\.', 'mean\.'"):
        load_backbone(network(3, 3), tmp_path / "both.pth")


def test_what_is_left_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = WRAPPED["base"](network(1, 5).backbone.state_dict())
    torch.save(content, tmp_path / "w.pth")
    load_backbone(network(2, 5), tmp_path / "w.pth")
    assert "left out bottleneck, no part of the backbone" in capsys.readouterr().out
    del content["base.layer3.1.bn2.running_var"]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"1 key\(s\) missing: layer3\.1\.bn2\.running_var"):
        load_backbone(network(2, 5), tmp_path / "w.pth")


def test_a_runs_weights_bring_their_neck_and_say_how_they_were_built(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    source, path = network(1, 5), tmp_path / "weights.pt"
    save_trained(source, path, describe_network(config, [1, 2, 3, 4, 5], {"name": "before", "seed": 4}))
    target = network(2, 9)
    identity = load_backbone(target, path, last_stride=1, first_relu=True)
    assert torch.equal(target.neck.running_mean, source.neck.running_mean)
    assert identity["provenance"] == {"name": "before", "seed": 4}
    for wrong, message in (
        ({"last_stride": 2}, "last_stride=1, the config says"),
        ({"first_relu": False}, "set first_relu=true"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_backbone(target, path, **wrong)
    with pytest.raises(ValueError, match=r"Is arch the file's architecture, resnet18\?"):
        load_backbone(network(1, 5, "resnet50"), path)
    again, content = load_network(path)
    assert content["identities"] == [1, 2, 3, 4, 5]
    assert torch.equal(again.classifier.weight, source.classifier.weight)
    other = resolve(tiny_config(write_market(tmp_path), "recipe=custom", "last_stride=2", "neck=none"))
    again, content = load_network(path, other)  # the file knows better
    assert (content["last_stride"], content["neck"]) == (1, "bnneck")
    assert torch.equal(again.classifier.weight, source.classifier.weight)


def trained(seed: int, **options: Any) -> ReidNetwork:
    """With statistics of its own, and features of an ordinary size."""
    torch.manual_seed(seed)
    made = build_reid_network("resnet18", 5, size=(48, 32), **options)
    made.train()(torch.randn(4, 3, 48, 32))
    return made.eval()


# What other programs call the neck; None: they have none.
NECKS = {"bottleneck": "bottleneck", "heads.bottleneck.0": "fast-reid", "bnneck": "others", None: "none"}


@pytest.mark.parametrize("neck", NECKS, ids=NECKS.values())
@pytest.mark.parametrize("seed", range(3))
def test_networks_of_other_programs_are_scored(seed: int, neck: str | None, tmp_path: Path) -> None:
    """Backbone and neck under any name; what the file does not say, the settings do."""
    stride = 1 + seed % 2
    source = trained(seed, last_stride=stride, neck="none" if neck is None else "bnneck")
    prefix = ("base", "module.backbone", "model.net")[seed]
    content = below(prefix, source.backbone.state_dict()) | {"classifier.weight": torch.ones(9, 512)}
    if neck is not None:
        content |= below(neck, source.neck.state_dict())
    torch.save({"state_dict": content, "epoch": 3}, tmp_path / "theirs.pth")
    config = tiny_config(write_market(tmp_path), "recipe=custom", f"last_stride={stride}")
    found, about = load_network(tmp_path / "theirs.pth", resolve(config))
    assert (about["neck"], about["last_stride"]) == ("none" if neck is None else "bnneck", stride)
    images = torch.randn(3, 3, 48, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        torch.testing.assert_close(found.features(images), source.features(images))
    assert not found.training
    with pytest.raises(ValueError, match=r"of a run .*scored by --eval-only"):
        load_network(tmp_path / "theirs.pth")


def test_scores_of_another_programs_network(tmp_path: Path) -> None:
    """The same as of the run whose tensors they are."""
    market = write_market(tmp_path)
    source = trained(4)
    save_trained(source, tmp_path / "ours.pt", describe_network(tiny_config(market), [1, 2, 3, 4, 5], {}))
    renamed = below("base", source.backbone.state_dict()) | below("bottleneck", source.neck.state_dict())
    torch.save(renamed, tmp_path / "theirs.pth")
    scores = [
        evaluate_weights(tiny_config(market), tmp_path / name, tmp_path / name.partition(".")[0])
        for name in ("ours.pt", "theirs.pth")
    ]
    assert scores[0] == scores[1]
    torch.save(network(1, 5, "resnet50").backbone.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not fit this backbone.*Is arch the file's architecture"):
        evaluate_weights(tiny_config(market), tmp_path / "other.pth", tmp_path / "x")


def test_fine_tuning_on_other_people(tmp_path: Path) -> None:
    first, second = write_market(tmp_path / "a"), write_market(tmp_path / "b", train=5, test=3)
    train(tiny_config(first, SMALL, "max_steps=1"), tmp_path / "one")
    weights = tmp_path / "one" / "weights.pt"
    config = tiny_config(second, SMALL, "max_steps=1", f"weights={weights}")
    train(config, tmp_path / "two")
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    begun = result["started_from"]
    assert begun["file"] == "weights.pt"
    assert begun["provenance"]["dataset"]["name"] == "a"
    assert begun["provenance"]["recipe"]["max_steps"] == 1
    assert read_weights_only(tmp_path / "two" / "weights.pt")["provenance"]["started_from"] == begun
    assert result["recipe"]["recipe"] == "bag_of_tricks_keep"
    assert not {"root", "device", "weights", "ranked", "seed"} & result["recipe"].keys()
    train(tiny_config(first, SMALL, "max_steps=1", "seed=1"), tmp_path / "other")
    config.weights, config.max_steps = str(tmp_path / "other" / "weights.pt"), 2
    with pytest.raises(ConfigError, match="the network that it began with"):
        train(config, tmp_path / "two", resume=True)


@pytest.mark.parametrize("cut", ["epochs=1", "max_steps=4"])
def test_a_run_may_become_longer(tmp_path: Path, cut: str) -> None:
    market = write_market(tmp_path / "m")
    overrides = [SMALL, "identities=2", "eval_every=1", "milestones=[2,3]", "log_every=1"]
    train(tiny_config(market, *overrides), tmp_path / "whole")
    train(tiny_config(market, *overrides, cut), tmp_path / "longer")
    train(tiny_config(market, *overrides), tmp_path / "longer", resume=True)
    whole, longer = (read_weights_only(tmp_path / name / "checkpoint.pt") for name in ("whole", "longer"))
    assert whole["step"] == longer["step"] == 6
    for key, value in whole["state_dict"].items():
        assert torch.equal(longer["state_dict"][key], value), key
    assert whole["history"][-1] == longer["history"][-1]
    with pytest.raises(ConfigError, match=r"resuming would change .*epochs \(was 2, is 1\)"):
        train(tiny_config(market, *overrides, "epochs=1"), tmp_path / "longer", resume=True)
    with pytest.raises(ConfigError, match=r"lr \(was 0.001, is 0.1\)"):
        train(tiny_config(market, *overrides, "epochs=9", "lr=0.1"), tmp_path / "longer", resume=True)


def test_other_data_of_equal_size_is_refused(tmp_path: Path) -> None:
    market = write_market(tmp_path / "m")
    overrides = [SMALL, "max_steps=1"]
    train(tiny_config(market, *overrides), tmp_path / "run")
    file = sorted((market / "bounding_box_train").iterdir())[0]
    file.rename(file.with_name(file.name.replace("0001_", "0002_").replace("_00.", "_09.")))
    with pytest.raises(ConfigError, match=r"resuming would change the run .*the data"):
        train(tiny_config(market, *overrides), tmp_path / "run", resume=True)


def tool(name: str) -> Any:
    return importlib.import_module(commands()[name].module)


def test_features_of_new_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(write_market(tmp_path / "m"), "height=48", "width=32")
    torch.manual_seed(1)
    source = build_reid_network("resnet18", 6)
    save_trained(source, tmp_path / "weights.pt", describe_network(config, list(range(6)), {}))
    folder = tmp_path / "new"
    for number, place in enumerate(
        ("b.png", "a.JPG", "deep/er/c.png", "._a.jpg", ".thumbs/d.png", "__MACOSX/e.png")
    ):
        write_image(folder / place, number, 1, number, size=(40 + number, 20))
    (folder / "notes.txt").write_text("no image")
    done = tool("extract-reid").main(
        [
            "--weights",
            str(tmp_path / "weights.pt"),
            "--data",
            str(folder),
            "--output",
            str(tmp_path / "f.npz"),
            "--device",
            "cpu",
        ]
    )
    assert done == 0, capsys.readouterr().err
    assert "512 numbers for each of 3 images" in capsys.readouterr().out
    found = load_features(tmp_path / "f.npz")["images"]
    assert list(found.paths) == ["a.JPG", "b.png", "deep/er/c.png"]
    assert found.identities.tolist() == [-1] * 3
    listed = describe_images(
        tmp_path / "weights.pt", [folder / name for name in found.paths], device="cpu", batch_size=2
    )
    torch.testing.assert_close(listed.features, found.features)
    mirrored = describe_images(
        tmp_path / "weights.pt", folder, device="cpu", flip_test=True, feature="before"
    )
    assert not torch.allclose(mirrored.features, found.features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--weights": "absent.pt"}, "no weights file absent.pt"),
        ({"--data": "absent"}, "no folder absent: give a folder of images"),
        ({"--data": "empty"}, r"no images in empty \(.jpg"),
        ({"--data": "broken"}, "x.png"),
        ({"--weights": "plain.pt"}, "holds no trained ReID network"),
    ],
)
def test_features_of_what_cannot_be_used(
    tmp_path: Path,
    change: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_trained(network(1, 6), "weights.pt", describe_network(tiny_config(tmp_path), list(range(6)), {}))
    torch.save({"a": torch.ones(1)}, "plain.pt")
    Path("empty").mkdir()
    write_image(Path("images/a.png"), 1, 1, 1)
    Path("broken").mkdir()
    Path("broken/x.png").write_bytes(b"no image")
    options = {
        "--weights": "weights.pt",
        "--data": "images",
        "--output": "f.npz",
        "--device": "cpu",
    } | change
    assert tool("extract-reid").main([item for pair in options.items() for item in pair]) == 2
    error = capsys.readouterr().err
    assert pytest.importorskip("re").search(message, error), error
    assert not Path("f.npz").exists()
