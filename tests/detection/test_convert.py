"""Conversion: equal features, every accepted format, and an accurate error for every wrong input."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50, resnext50_32x4d, wide_resnet50_2

from detection.architecture import Architecture, detectron2_key, infer, torchvision_key
from detection.checks import ConfigMismatchError, check_weights_against_config, load_detectron2_file
from detection.config import load_config
from detection.convert import convert, reverse
from detection.reading import WeightsError
from detection.sidecar import Sidecar
from detection.verify import VerificationError, verify


def randomised(network: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state whose every tensor matters, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return network.state_dict()


@pytest.fixture(scope="module")
def r18() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return randomised(resnet18(num_classes=7))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(content: object, name: str = "weights.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def converted(path: Path) -> dict[str, torch.Tensor]:
    return load_detectron2_file(path)


def expected(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        detectron2_key(key): value
        for key, value in state.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


WRAPPED = {
    "torchvision": lambda s: s,
    "cutmix_pytorch": lambda s: {
        "epoch": 300, "arch": "resnet", "state_dict": {"module." + k: v for k, v in s.items()},
        "best_err1": np.float64(21.4), "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
    },
    "moco": lambda s: {
        "args": argparse.Namespace(lr=0.03),
        "state_dict": {
            **{"module.encoder_q." + k: v for k, v in s.items()},
            **{"module.encoder_k." + k: v + 1 for k, v in s.items()},
            "module.queue": torch.zeros(4), "module.queue_ptr": torch.zeros(1),
        },
    },
    "backbone_prefix": lambda s: {"model": {"backbone." + k: v for k, v in s.items()}},
    "compiled": lambda s: {"state_dict": {"_orig_mod.module." + k: v for k, v in s.items()}},
    "ours": lambda s: {"state_dict": s, "arch": "resnet18", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1],
    "method": "keep_cutmix"},
    "ours_early_head": lambda s: {
        "model": {**{"network." + k: v for k, v in s.items()}, "head.weight": torch.zeros(2),
        "head.bias": torch.zeros(2)}, "ema": None,
    },
    "without_classifier": lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")},
}  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPED)
def test_formats_are_unwrapped(wrap: str, r18, saved, tmp_path: Path) -> None:
    done = convert(saved(WRAPPED[wrap](r18)), tmp_path / "out.pth")
    assert equal(converted(done.output), expected(r18))
    assert done.sidecar.depth == 18


def test_safetensors_ema_and_half(r18, saved, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(r18, tmp_path / "w.safetensors")
    assert equal(converted(convert(tmp_path / "w.safetensors", tmp_path / "a.pth").output), expected(r18))
    averaged = {key: value + 1 for key, value in r18.items()}
    both = saved({"state_dict": r18, "state_dict_ema": averaged})
    with pytest.raises(WeightsError, match=r"several sets of weights.*--key"):
        convert(both, tmp_path / "b.pth")
    assert equal(
        converted(convert(both, tmp_path / "b.pth", key="state_dict_ema").output), expected(averaged)
    )
    half = {key: value.half() if value.is_floating_point() else value for key, value in r18.items()}
    done = convert(saved(half), tmp_path / "c.pth")
    assert {value.dtype for value in converted(done.output).values()} == {torch.float32}
    assert any("float16" in note for note in done.notes)


def test_pkl_is_numpy_and_sidecar_describes_it(r18, saved, tmp_path: Path) -> None:
    done = convert(saved(WRAPPED["ours"](r18)), tmp_path / "out.pkl")
    with done.output.open("rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True
    assert all(isinstance(value, np.ndarray) for value in content["model"].values())
    assert equal(converted(done.output), expected(r18))
    sidecar = json.loads((tmp_path / "out.pkl.json").read_text())
    assert sidecar["pixel_mean"] == pytest.approx([127.5, 102.0, 76.5])
    assert sidecar["pixel_std"] == pytest.approx([51.0, 51.0, 25.5])
    assert sidecar["provenance"]["method"] == "keep_cutmix"
    assert sidecar["stride_in_1x1"] is False


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (resnet18, Architecture(18)),
        (resnet50, Architecture(50)),
        (wide_resnet50_2, Architecture(50, 1, 128)),
        (resnext50_32x4d, Architecture(50, 32, 4)),
    ],
)
def test_architecture_is_told_from_shapes(build, wanted: Architecture) -> None:
    with torch.device("meta"):
        assert infer(build().state_dict()) == wanted
        assert wanted.expected_shapes() == {
            key: tuple(value.shape)
            for key, value in build().state_dict().items()
            if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
        }


@pytest.mark.parametrize("depth", [34, 101, 152])
def test_names_go_there_and_back(depth: int) -> None:
    keys = set(Architecture(depth).expected_shapes())
    with torch.device("meta"):
        built = Architecture(depth).build().state_dict()
    assert keys == {
        key for key in built if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    assert {torchvision_key(detectron2_key(key)) for key in keys} == keys


def test_timm_resnet(saved, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    state = randomised(timm.create_model("resnet18", num_classes=3))
    assert equal(converted(convert(saved(state), tmp_path / "out.pth").output), expected(state))
    for name in ("resnet18d", "seresnet18"):
        with pytest.raises(ValueError, match=r"ResNet-C, -D|attention in the blocks"):
            convert(saved(randomised(timm.create_model(name, num_classes=3))), tmp_path / "no.pth")


def test_verify_passes_and_catches_each_wrong_setting(r18, saved, tmp_path: Path) -> None:
    done = convert(saved(r18), tmp_path / "out.pth", verify_features=True)
    assert done.comparisons[0].worst < 1e-5
    backbone = {key: value for key, value in r18.items() if not key.startswith("fc.")}
    changed = dict(backbone)
    changed["layer3.0.bn1.running_mean"] = changed["layer3.0.bn1.running_mean"] + 0.05
    with pytest.raises(VerificationError, match="relative errors"):
        verify(done.output, Architecture(18), changed, done.sidecar, detectron2=False)


@pytest.mark.detectron2
@pytest.mark.parametrize(("suffix", "build"), [(".pth", resnet18), (".pkl", resnext50_32x4d)])
def test_verify_in_detectron2(suffix: str, build, saved, tmp_path: Path) -> None:
    done = convert(saved(randomised(build())), tmp_path / f"out{suffix}", verify_features=True)
    assert [c.against for c in done.comparisons] == ["torchvision engine", "Detectron2"]
    assert max(c.worst for c in done.comparisons) < 1e-5


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("key", "value", "low"),
    [("STRIDE_IN_1X1", True, 1e-3), ("NORM_EPS", 1e-3, 1e-4), ("FORMAT", "BGR", 1e-3), ("STD", 1.0, 1e-1)],
)
def test_features_show_every_silent_mistake(key, value, low, saved, tmp_path: Path) -> None:
    """The reason for verifying by features: each of these loads without a word and is far above the
    tolerance.
    """
    from dataclasses import replace

    from detection.verify import (
        TOLERANCE,
        _classifier_features,
        _compare,
        _detector_input,
        _detectron2_features,
        default_image,
    )

    state = {k: v for k, v in randomised(resnet50()).items() if not k.startswith("fc.")}
    done = convert(saved(state), tmp_path / "out.pth")
    wrong = done.sidecar
    image = default_image()
    wanted = _classifier_features(Architecture(50), state, image, done.sidecar)
    if key == "STRIDE_IN_1X1":
        wrong = replace(wrong, stride_in_1x1=True)
    elif key == "FORMAT":
        wrong = replace(wrong, color_order="BGR")
    elif key == "STD":
        wrong = replace(wrong, pixel_std=(1.0, 1.0, 1.0))
    else:
        network = Architecture(50).build().eval()
        network.load_state_dict(state, strict=False)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = value
        from detection.verify import _stage_features

        found = _stage_features(network, _detector_input(image, wrong))
    if key != "NORM_EPS":
        found = _detectron2_features(done.output, wrong, _detector_input(image, wrong))
    worst = _compare("x", found, wanted).worst
    assert worst > max(low, TOLERANCE)


def test_reverse_gives_the_classifier_back(r18, saved, tmp_path: Path) -> None:
    done = convert(saved(WRAPPED["ours"](r18)), tmp_path / "out.pth")
    architecture, _ = reverse(done.output, tmp_path / "back.pth")
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    assert architecture == Architecture(18)
    assert content["mean"] == pytest.approx([0.5, 0.4, 0.3])
    network = resnet18(num_classes=7)
    missing, unexpected = network.load_state_dict(content["state_dict"], strict=False)
    assert not unexpected
    assert all(key.startswith("fc.") or key.endswith("num_batches_tracked") for key in missing)
    assert all(torch.equal(content["state_dict"][key], r18[key]) for key in content["state_dict"])
    detector = {f"backbone.bottom_up.{k}": v for k, v in converted(done.output).items()}
    torch.save(
        {"model": {**detector, "proposal_generator.rpn_head.conv.weight": torch.zeros(1)}}, tmp_path / "d.pth"
    )
    _, notes = reverse(tmp_path / "d.pth", tmp_path / "back2.pth")
    assert any("left out 1 tensors of the detector" in note for note in notes)


def without(state, *names):
    return {key: value for key, value in state.items() if not key.endswith(names)}


def changed(state, key, change):
    return {**state, key: change(state[key].clone())}


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def bad_inputs(s: dict[str, torch.Tensor]) -> dict[str, tuple[object, str]]:
    """Name -> (content, what the message must say)."""
    variance = "layer1.0.bn1.running_var"
    cifar = {**s, "conv1.weight": torch.zeros(64, 3, 3, 3)}
    grey = {**s, "conv1.weight": torch.zeros(64, 1, 7, 7)}
    deep = {**without(s, "conv1.weight"), "conv1.0.weight": torch.zeros(32, 3, 3, 3)}
    return {
        "no running statistics": (without(s, "running_mean", "running_var"),
        "BatchNorm statistics are missing.*without buffers"),
        "cut short": (without(s, "layer4.1.conv2.weight"), r"lacks \(layer4.1.conv2.weight\)"),
        "extra tensors": ({**s, "extra.weight": torch.zeros(1)}, "no place in ResNet-18.*extra.weight"),
        "not finite": (changed(s, "layer2.0.conv1.weight", lambda t: t.fill_(float("nan"))),
        "NaN or infinite.*layer2.0.conv1"),
        "negative variance": (changed(s, variance, lambda t: -t), "variances are negative"),
        "zero variance": (changed(s, variance, torch.zeros_like), "variances are all zero"),
        "wrong shape": (changed(s, "layer2.0.conv1.weight", lambda t: t[:5]),
        r"layer2.0.conv1.weight is \(5, 64, 3, 3\), expected"),
        "quantised": (changed(s, "layer2.0.conv1.weight", lambda t: t.to(torch.int8)), "quantised"),
        "3x3 stem": (cifar, "3 x 3 stem for small images"),
        "one channel": (grey, r"expected \(64, 3, 7, 7\)"),
        "deep stem": (deep, "deep stem"),
        "squeeze and excitation": ({**s, "layer1.0.se.fc1.weight": torch.zeros(1)}, "SE, ECA"),
        "cifar depth": ({k: v for k, v in s.items() if not k.startswith("layer4")},
        r"\[2, 2, 2, 0\] basic blocks"),
        "a transformer": ({"cls_token": torch.zeros(1), "pos_embed": torch.zeros(1)}, "transformer"),
        "another network": ({"features.0.weight": torch.zeros(3)}, "no ResNet: conv1.weight"),
        "a detector": ({f"backbone.bottom_up.{k}": v for k, v in s.items()} | {"roi_heads.x": torch.zeros(1)},
        "weights of a detector"),
        "converted already": (expected(s), "Detectron2 backbone already"),
        "no tensors": ({"epoch": 3, "lr": 0.1}, "holds no tensors"),
        "a list": ([torch.zeros(1)], "holds a list"),
        "two sets": ({"state_dict": s, "model_ema": s}, "several sets of weights"),
        "pickled objects": ({"state_dict": s, "hook": Evil()}, "pickled objects"),
        "bad mean": ({"state_dict": s, "mean": [123.7, 116.3, 103.5]}, r"pixels in \[0, 1\]"),
    }  # fmt: skip


RAW = {
    "empty file": (b"", r"is empty \(0 bytes\)"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "truncated": (None, "damaged"),
}


def test_every_wrong_input_has_its_own_accurate_error(r18, saved, tmp_path: Path) -> None:
    output = tmp_path / "out" / "backbone.pth"
    messages = {}
    for name, (content, pattern) in bad_inputs(r18).items():
        with pytest.raises(ValueError, match=pattern) as caught:
            convert(saved(content), output)
        messages[name] = str(caught.value)
    whole = saved(r18).read_bytes()
    for name, (raw, pattern) in RAW.items():
        path = tmp_path / "raw.pth"
        path.write_bytes(whole[: len(whole) // 2] if raw is None else raw)
        with pytest.raises(ValueError, match=pattern) as caught:
            convert(path, output)
        messages[name] = str(caught.value)
    script = tmp_path / "script.pth"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(script))
    with pytest.raises(ValueError, match="TorchScript") as caught:
        convert(script, output)
    messages["torchscript"] = str(caught.value)
    assert len({message.replace(str(tmp_path), "")[:60] for message in messages.values()}) >= 20
    assert len(set(messages.values())) == len(messages) >= 27
    assert not output.parent.exists() or not list(output.parent.iterdir())  # nothing was written


def test_output_names(r18, saved, tmp_path: Path) -> None:
    path = saved(r18)
    (tmp_path / "folder.pth").mkdir()
    for output, pattern in (
        (path, "is the input itself"),
        (tmp_path / "out.bin", "name it .pth or .pkl"),
        (tmp_path / "folder.pth", "is a folder"),
    ):
        with pytest.raises(WeightsError, match=pattern):
            convert(path, output)
    with pytest.raises(WeightsError, match=r"must end in \.pkl"):
        convert(path, tmp_path / "out.pth", format="pkl")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        convert(tmp_path / "nothing.pth", tmp_path / "out.pth")


GOOD = [
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.STRIDE_IN_1X1",
    "False", "INPUT.FORMAT", "RGB",
    "MODEL.PIXEL_MEAN", "[123.675,116.28,103.53]", "MODEL.PIXEL_STD", "[58.395,57.12,57.375]",
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["MODEL.RESNETS.DEPTH", "34"], "MODEL.RESNETS.DEPTH is 34.*wants 18.*set MODEL.RESNETS.DEPTH 18"),
        (["MODEL.RESNETS.STRIDE_IN_1X1", "True"], "STRIDE_IN_1X1 is True.*features would be shifted"),
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT is BGR.*red and blue"),
        (["MODEL.PIXEL_MEAN", "[103.53,116.28,123.675]"], "MODEL.PIXEL_MEAN is.*set MODEL.PIXEL_MEAN"),
        (["MODEL.PIXEL_STD", "[1.0,1.0,1.0]"], "MODEL.PIXEL_STD is.*scaled"),
        (["MODEL.RESNETS.WIDTH_PER_GROUP", "32"], "WIDTH_PER_GROUP is 32.*wants 64"),
    ],
)
def test_training_refuses_a_contradicting_config(change, message, r18, saved, tmp_path: Path) -> None:
    done = convert(saved(r18), tmp_path / "out.pth")
    assert check_weights_against_config(done.output, load_config(None, GOOD))
    with pytest.raises(ConfigMismatchError, match=message):
        check_weights_against_config(done.output, load_config(None, GOOD + change))


def test_training_refuses_raw_and_exchanged_weights(r18, saved, tmp_path: Path) -> None:
    cfg = load_config(None, GOOD)
    raw = saved(r18, "raw.pth")
    with pytest.raises(WeightsError, match="keepaug convert --weights"):
        check_weights_against_config(raw, cfg)
    done = convert(raw, tmp_path / "out.pth")
    torch.save({"model": expected(r18)}, done.output)
    with pytest.raises(WeightsError, match="SHA-256 differs"):
        check_weights_against_config(done.output, cfg)
    (tmp_path / "out.pth.json").unlink()
    assert "no sidecar" in check_weights_against_config(done.output, cfg)[0]
    with pytest.raises(ConfigMismatchError, match="DEPTH is 50"):
        check_weights_against_config(
            done.output,
            load_config(None, [*GOOD, "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"]),
        )


def test_untrained_weights_are_remarked(saved, tmp_path: Path) -> None:
    done = convert(saved(resnet18().state_dict()), tmp_path / "out.pth")
    assert any("untrained network" in note for note in done.notes)
    assert isinstance(done.sidecar, Sidecar)


def test_a_file_that_does_not_read_back_is_an_error(r18, saved, tmp_path: Path, monkeypatch) -> None:
    import detection.convert as module

    honest = module._serialise

    def damaged(tensors, kind, file) -> None:
        key = next(iter(tensors))
        honest({**tensors, key: tensors[key] + 1}, kind, file)

    monkeypatch.setattr(module, "_serialise", damaged)
    with pytest.raises(OSError, match="does not read back"):
        convert(saved(r18), tmp_path / "out.pth")
    assert not list(tmp_path.glob("*out*"))


def test_conversion_holds_the_weights_in_memory_once(saved, tmp_path: Path, run_measuring_memory) -> None:
    """The source and the written file, read back, are never there together (100 MB each)."""
    weights = saved(randomised(resnet50()))
    script = """
import sys
from detection.convert import convert
before = peak()
convert(sys.argv[1], sys.argv[2])
print(peak() - before)
"""
    added = run_measuring_memory(script, str(weights), str(tmp_path / "out.pth"))
    assert added < 1.5 * weights.stat().st_size / 1e6  # both files together would be twice the size
