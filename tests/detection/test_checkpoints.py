"""Other projects' checkpoints: their ResNet is found whatever is around it; what is none is named."""

from __future__ import annotations

import json
import math
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert_helpers import State, caffe2, state_of, trunk

import detection.reading
from detection.architecture import ArchitectureError, detectron2_key
from detection.checks import check_name, check_state, check_weights_against_config, load_detectron2_file
from detection.config import load_config
from detection.convert import convert
from detection.other_networks import NO_RESNET, PART_OF
from detection.reading import WeightsError, read_classifier
from detection.sidecar import read_sidecar, started_from


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def same(found: State, wanted: State) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def read(content: object, path: Path, **choice: Any) -> tuple[State, list[str]]:
    """Through the file, and what its checks leave of it."""
    torch.save(content, path)
    loaded = read_classifier(path, **choice)
    architecture, state, notes = check_state(loaded.state)
    check_name(architecture, loaded.info, path.name)
    assert not any(value.requires_grad for value in state.values())
    return state, loaded.notes + notes


def sequential(state: State) -> State:
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    tops = {key: key.partition(".") for key in state}
    return {f"{numbers[top]}.{rest}": state[key] for key, (top, _, rest) in tops.items() if top in numbers}


def hugging_face(state: State) -> State:
    kinds = {"conv": "convolution", "bn": "normalization"}
    found = {}
    for key, value in state.items():
        if match := re.match(r"(conv|bn)1\.(.*)", key):
            found[f"embedder.embedder.{kinds[match[1]]}.{match[2]}"] = value
        elif match := re.match(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(.*)", key):
            at = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.layer.{int(match[4]) - 1}"
            found[f"{at}.{kinds[match[3]]}.{match[5]}"] = value
        elif match := re.match(r"layer(\d)\.(\d+)\.downsample\.(\d)\.(.*)", key):
            at = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.shortcut"
            found[f"{at}.{('convolution', 'normalization')[int(match[3])]}.{match[4]}"] = value
    return found


def fsdp(state: State) -> State:
    """Wrappers in the middle of keys."""
    return {re.sub(r"^(layer\d)\.", r"\1._fsdp_wrapped_module.", key): value for key, value in state.items()}


LAYOUTS = {"plain": dict, "sequential": sequential, "hugging_face": hugging_face, "fsdp": fsdp}
HEADS = (
    "fc.0.weight", "projection_head.0.weight", "prototypes.weight", "head.mlp.0.weight",
    "head.last_layer.weight_g",
    "projector.2.bias", "predictor.0.weight", "classifier.weight", "n_averaged", "queue", "neck.fc0.weight",
)  # fmt: skip


def wrapped(draw: random.Random) -> tuple[object, State, dict[str, str], list[str]]:
    """A checkpoint as some project might write it, its trunk, how to choose it, what is left out."""
    depth, layout = draw.choice((18, 18, 34, 50)), draw.choice(list(LAYOUTS))
    state = state_of(depth, classes=0)
    words = [
        "module",
        "model",
        "backbone",
        "encoder",
        "net",
        "_orig_mod",
        "trunk",
        "_feature_blocks",
        "wrapped_7",
    ]
    prefix = "".join(f"{draw.choice(words)}." for _ in range(draw.randrange(4)))
    part: dict[Any, Any] = under(prefix, LAYOUTS[layout](state))
    heads = draw.sample(HEADS, draw.randrange(4)) if layout != "sequential" else []
    outside = prefix.rpartition(".")[0].rpartition(".")[0]
    for head in heads:
        part[f"{draw.choice((prefix, outside + '.' if outside else ''))}{head}"] = torch.ones(3, 4)
    how = draw.randrange(5)
    if how == 0:
        part = {key: torch.nn.Parameter(v, requires_grad=v.is_floating_point()) for key, v in part.items()}
    elif how == 1:
        part = {key: value.numpy() for key, value in part.items()}
    elif how == 2:
        part = {key.encode(): value for key, value in part.items()}
    content: Any = part
    containers = draw.sample(
        ["state_dict", "model", "ema", "network", "teacher", "base_model"], draw.randrange(3)
    )
    for name in containers:
        content = {name: content, "epoch": 3, 7: "an integer key", "history": np.arange(40.0)}
        if draw.random() < 0.5:
            content["optimizer"] = {
                "state": {0: {"momentum_buffer": torch.zeros(4)}},
                "param_groups": [{"lr": 0.1}],
            }
    choice = {}
    if containers and draw.random() < 0.3:
        rival = under(draw.choice(("", "module.")), state_of(18, shift=1.0))
        content["another_model"] = rival
        choice = {"key": containers[-1]}
    return content, trunk(state), choice, heads


@pytest.mark.parametrize("seed", range(24))
def test_the_resnet_is_found_in_whatever_wraps_it(seed: int, tmp_path: Path) -> None:
    content, wanted, choice, heads = wrapped(random.Random(seed))
    found, notes = read(content, tmp_path / "w.pth", **choice)
    assert same(found, wanted)
    for head in heads:  # all that was left out is said
        assert any(head.split(".")[0] in note for note in notes if note.startswith("left out")), (head, notes)
    if choice:
        with pytest.raises(WeightsError, match=rf"several sets.*--key {choice['key']}.*--key another_model"):
            read_classifier(tmp_path / "w.pth")
        assert any("another_model" in note for note in notes)


def test_several_networks_in_one_part_are_named(tmp_path: Path) -> None:
    first, second = state_of(), state_of(shift=1.0)
    both = {**under("student.backbone.", first), **under("teacher.backbone.", second)}
    with pytest.raises(
        WeightsError, match=r"several.*--prefix student\.backbone\.; --prefix teacher\.backbone\."
    ):
        read(both, tmp_path / "w.pth")
    for prefix, wanted in (("student.backbone", first), ("teacher.backbone.", second)):
        assert same(read(both, tmp_path / "w.pth", prefix=prefix)[0], trunk(wanted))
    with pytest.raises(WeightsError, match=r"--prefix x.*no ResNet there; it has --prefix student"):
        read(both, tmp_path / "w.pth", prefix="x")
    with pytest.raises(WeightsError, match=r"--key x.*no tensors there"):
        read(both, tmp_path / "w.pth", key="x")
    # One network under two names is one; of a fast and a slow copy the fast one is the network.
    shared = {**under("module.model.", first), **under("module.attacker.model.", first)}
    assert same(read(shared, tmp_path / "w.pth")[0], trunk(first))
    for fast, slow in (
        ("encoder_q", "encoder_k"),
        ("base_encoder", "momentum_encoder"),
        ("online_net", "target_net"),
    ):
        pair = {
            **under(f"module.{slow}.0.", second),
            **under(f"module.{fast}.0.", first),
            "queue": torch.zeros(2, 2),
        }
        found, notes = read(pair, tmp_path / "w.pth")
        assert same(found, trunk(first))
        assert any(slow in note for note in notes)


def test_our_own_file_gives_the_weights_that_its_run_evaluated(tmp_path: Path) -> None:
    averaged = state_of(shift=1.0)
    ours = {
        "state_dict": state_of(), "state_dict_ema": averaged, "arch": "resnet18",
        "options": {"stem": "imagenet"},
        "classes": ["a"], "mean": [0.5] * 3, "std": [0.5] * 3, "provenance": {"kind": "classify"},
        "early_head": {"weight": torch.ones(2, 2)}, "early_after": "layer1",
    }  # fmt: skip
    assert same(read(ours, tmp_path / "w.pt")[0], trunk(averaged))
    assert same(read(ours, tmp_path / "w.pt", key="state_dict")[0], trunk(state_of()))


def test_unknown_tensors_beside_the_trunk_need_a_word(tmp_path: Path) -> None:
    content = under("module.", state_of()) | {"module.extra.weight": torch.ones(2)}
    with pytest.raises(WeightsError, match=r"no place in ResNet-18 \(extra\.weight\).*--prefix"):
        read(content, tmp_path / "w.pth")
    found, notes = read(content, tmp_path / "w.pth", prefix="module.")
    assert same(found, trunk(state_of()))
    assert any("module.extra (1)" in note for note in notes)
    inside = state_of() | {"layer2.0.extra.weight": torch.ones(2)}
    with pytest.raises(WeightsError, match=r"no place in ResNet-18 \(layer2\.0\.extra\.weight\)"):
        read(inside, tmp_path / "w.pth", prefix="")


SAME_KEYS = [
    ({"arch": "resnetaa50"}, 50, "resnetaa50.*anti-aliased"),
    ({"args": {"model": "timm/resnetblur18.bt_in1k"}}, 18, "resnetblur18.*anti-aliased"),
    ({"hyper_parameters": {"backbone": "resnet50_dilated"}}, 50, "dilated"),
    ({"arch": "dilated_resnet50"}, 50, "dilated"),
    ({"arch": "resnet50-os8"}, 50, "dilated"),
    ({"config": {"backbone": {"last_stride": 1}}}, 50, "last_stride is 1"),
    ({"args": {"replace_stride_with_dilation": [False, False, True]}}, 50, "replace_stride_with_dilation"),
    ({"args": {"output_stride": 8}}, 18, "output_stride is 8"),
    ({"aa_layer": "BlurPool2d"}, 18, "aa_layer is 'BlurPool2d'"),
    ({"kind": "reid", "last_stride": 1, "arch": "resnet50"}, 50, "last_stride is 1"),
    ({"arch": "resnet50_caffe"}, 50, "strides in the 1 x 1"),
    ({"model_name": "resnet50_gelu"}, 50, "with GELU"),
    ({"arch": "resnet101"}, 50, "of depth 101"),
    ({"arch": "vit_base_patch16_224"}, 18, "no ResNet"),
    ({"arch": "resnet50_v1d"}, 50, "deep stem"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "depth", "pattern"), SAME_KEYS)
def test_another_network_with_the_same_keys_is_refused_by_its_name(
    words: dict[str, Any], depth: int, pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError, match=pattern):
        read({"state_dict": state_of(depth), **words}, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        *((name, 50) for name in (
            "resnet50", "ResNet-50", "R-50", "tv_resnet50", "timm/resnet50.a1_in1k", "torchvision:resnet50",
            "resnet", "simclr",
            "gluon_resnet50_v1b", "fb_swsl_resnet50", "resnet50_imagenet", "resnet50-19c8e357",
            "resnetv1.5-50", "my experiment",
        )),
        ("drop_resnet18", 18), ("resnet18", 18), ("resnet34_run2", 34),
    ],
)  # fmt: skip
def test_names_of_the_plain_network_are_taken(name: str, depth: int, tmp_path: Path) -> None:
    for words in ({"arch": name}, {"args": {"model": name}}):
        assert same(
            read({"state_dict": state_of(depth), **words}, tmp_path / "w.pth")[0], trunk(state_of(depth))
        )


def test_a_file_name_counts_where_it_names_a_variant(tmp_path: Path) -> None:
    for name in ("resnetaa50-0a1b2c3d.pth", "resnetblur50.pth", "resnet50_caffe-788b5fa3.pth"):
        with pytest.raises(ArchitectureError, match="its own name"):
            read(state_of(50), tmp_path / name)
    for name in ("resnet101.pth", "resnet50_cifar.pth", "vit.pth", "w.pth"):
        read(state_of(50), tmp_path / name)
    torch.save(state_of(18), tmp_path / "resnetblur18.pth")
    with pytest.raises(ArchitectureError, match="--arch"):
        convert(tmp_path / "resnetblur18.pth", tmp_path / "out.pth")
    convert(tmp_path / "resnetblur18.pth", tmp_path / "out.pth", arch="resnet18")  # the user's word


TIMM = {
    "resnest14d": "ResNeSt", "res2net50_26w_4s": "Res2Net", "skresnet18": "SKNet",
    "seresnet18": "attention in the blocks",
    "resnet18d": "deep stem", "resnetv2_50": "ResNetV2", "resnetv2_50x1_bit": "BiT",
    "ese_vovnet19b_dw": "VoVNet",
    "hrnet_w18_small": "HRNet", "resnet50_clip": "CLIP's ResNet", "regnetx_002": "RegNet",
    "densenet121": "DenseNet",
    "mobilenetv3_small_100": "MobileNet", "convnext_atto": "ConvNeXt", "vit_tiny_patch16_224": "transformer",
    "swin_tiny_patch4_window7_224": "transformer", "dla34": "DLA", "cspresnet50": "CSPNet",
    "mixer_s32_224": "Mixer",
    "inception_v3": "Inception", "vgg11": "VGG",
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_other_networks_are_called_by_their_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in timm.create_model(name).state_dict().items()}
    for prefix in ("", "module.backbone."):
        state = {prefix + key: torch.ones(()).expand(shape) for key, shape in shapes.items()}
        for content, pattern in (
            (state, TIMM[name]),
            ({"arch": name, "state_dict": state}, rf"{TIMM[name]}.*{name}"),
        ):
            monkeypatch.setattr(detection.reading, "read_file", lambda path, mmap, content=content: content)
            with pytest.raises(
                ArchitectureError, match=TIMM[name] if prefix or content is state else pattern
            ):
                check_state(read_classifier("w.pth").state)


CAUSES: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "CLIP": (
        {"visual.conv1.weight": (32, 3, 3, 3), "visual.conv2.weight": (32, 32, 3, 3), "logit_scale": (),
         "visual.layer1.0.conv1.weight": (64, 64, 1, 1), "visual.attnpool.q_proj.weight": (8, 8),
         "transformer.resblocks.0.attn.in_proj_weight": (8, 8)},
        "CLIP's ResNet",
    ),
    "CLIP-ViT": ({"visual.conv1.weight": (8, 3, 16, 16), "visual.class_embedding": (8,)},
    "CLIP's vision transformer"),
    "BiT": ({"root.conv.weight": (64, 3, 7, 7), "body.block1.unit01.conv1.weight": (64, 64, 1, 1)}, "BiT"),
    "VoVNet": ({"stem.stem_1/conv.weight": (64, 3, 3, 3), "stage2.OSA2_1.layers.0.x/conv.weight": (8, 8)},
    "VoVNet"),
    "ShuffleNet": ({"conv1.0.weight": (24, 3, 3, 3), "stage2.0.branch1.0.weight": (24, 1, 3, 3)},
    "ShuffleNet"),
    "deep stem": (
        {"conv1.weight": (64, 3, 3, 3), "conv2.weight": (64, 64, 3, 3), "layer1.0.conv1.weight": (64, 64, 1,
        1)},
        "deep stem",
    ),
    "flat": ({"_fsdp_wrapped_module._flat_param": (100,)}, "FSDP"),
    "pruned": ({"conv1.weight_orig": (64, 3, 7, 7), "conv1.weight_mask": (64, 3, 7, 7)}, "reparametrised"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_that_is_named_is_true(name: str, tmp_path: Path) -> None:
    shapes, pattern = CAUSES[name]
    with pytest.raises(ArchitectureError, match=pattern):
        read({key: torch.ones(()).expand(shape) for key, shape in shapes.items()}, tmp_path / "w.pth")


def test_parts_of_detectors_and_segmenters_are_refused(tmp_path: Path) -> None:
    for beside, prefix, pattern in (
        ("rpn.head.conv.weight", "backbone.body.", "detector"),
        ("aux_classifier.0.weight", "backbone.", "dilated"),
        ("classifier.0.convs.0.0.weight", "backbone.", "dilated"),
    ):
        with pytest.raises(ArchitectureError, match=pattern):
            read(under(prefix, state_of()) | {beside: torch.ones(2)}, tmp_path / "w.pth")
    folded = {key: value for key, value in state_of().items() if "bn" not in key} | {
        "conv1.bias": torch.ones(64)
    }
    with pytest.raises(WeightsError, match="folded into the convolutions"):
        read(folded, tmp_path / "w.pth")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.to(torch.float8_e4m3fn), lambda value: value.to(torch.complex64),
        lambda value: value.to_sparse(),
        lambda value: value.double() * 1e300, lambda value: value.to(torch.int8), lambda value: value[:0],
    ],
)  # fmt: skip
def test_tensors_of_other_kinds_are_refused_in_words(change: Any, tmp_path: Path) -> None:
    state = state_of()
    for key in ("layer1.0.conv1.weight", "layer1.0.conv2.weight", "bn1.running_var"):
        with pytest.raises(ValueError, match=re.escape(key)):
            read({**state, key: change(state[key].clone())}, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((3,), torch.tensor), ((3, 1, 1), torch.tensor), ((1, 3, 1, 1), np.array), ((3,), list)],
)
def test_mean_and_std_are_taken_in_every_form(shape: tuple[int, ...], kind: Any, tmp_path: Path) -> None:
    values = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    made = {key: value if kind is list else kind(value).reshape(shape) for key, value in values.items()}
    torch.save({"state_dict": state_of(), **made}, tmp_path / "w.pth")
    torch.save({"state_dict": state_of(), "args": made}, tmp_path / "args.pth")
    inside = {f"0.{key}": torch.tensor(value).view(1, 3, 1, 1) for key, value in values.items()}
    torch.save(under("1.", state_of()) | inside, tmp_path / "inside.pth")
    for name in ("w", "args", "inside"):
        sidecar = convert(tmp_path / f"{name}.pth", tmp_path / "out.pth").sidecar
        assert sidecar.pixel_mean == pytest.approx([25.5, 51.0, 76.5], abs=1e-3)
        assert sidecar.pixel_std == pytest.approx([102.0, 127.5, 153.0], abs=1e-3)
        assert not any("ImageNet" in note for note in sidecar.notes)
    torch.save({"state_dict": state_of(), "mean": None}, tmp_path / "silent.pth")
    notes = convert(tmp_path / "silent.pth", tmp_path / "out.pth", std=[0.5] * 3).notes
    assert [note for note in notes if "ImageNet" in note] == [
        "the file says no mean: ImageNet's is taken; --mean says another"
    ]


def test_timm_and_hugging_face_folders_say_what_their_file_is(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    whole = {key: value.contiguous() for key, value in state_of().items()}
    save_file(whole, tmp_path / "model.safetensors")
    described = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    sidecar = convert(tmp_path / "model.safetensors", tmp_path / "out.pth").sidecar
    assert (sidecar.pixel_mean, sidecar.pixel_std) == ((127.5,) * 3, (63.75,) * 3)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetblur18"}))
    with pytest.raises(ArchitectureError, match="anti-aliased"):
        convert(tmp_path / "model.safetensors", tmp_path / "again.pth")


BAD_VALUES = {
    "mean": [[math.nan] * 3, [math.inf, 0, 0], [0.1, 0.2], "0.5", "x", ["x"], [[]], [True] * 3,
    [[0.1, 0.2, 0.3]] * 2,
    {"r": 1}, 0.5, [-0.1, 0, 0]],
    "std": [[0, 0, 0], [0.2, 0.0, 0.2], [math.nan] * 3, [math.inf] * 3, torch.zeros(3), [1e400, 1, 1]],
    "loss": [math.inf, math.nan, -math.inf, np.float64("nan"), torch.tensor(math.nan)],
    "color_order": ["GRB", 3, ["RGB"], {}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, values in BAD_VALUES.items() for n in range(len(values))]
)
def test_a_refused_conversion_leaves_all_as_it_was(name: str, number: int, tmp_path: Path) -> None:
    content = {"state_dict": state_of(), name: BAD_VALUES[name][number]}
    torch.save(content, tmp_path / "w.pth")
    (tmp_path / "out.pth").write_bytes(b"an earlier backbone")
    (tmp_path / "out.pth.json").write_text("its sidecar")
    with pytest.raises(WeightsError, match=name):
        convert(tmp_path / "w.pth", tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"an earlier backbone"
    assert {path.name for path in tmp_path.iterdir()} == {"w.pth", "out.pth", "out.pth.json"}


def test_values_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    circle: dict[str, Any] = {"model": state_of()}
    circle["again"] = circle
    for content in ({"state_dict": state_of(), "history": endless}, circle):
        with pytest.raises(WeightsError, match="nested without end"):
            read(content, tmp_path / "w.pth")


def test_a_conversion_that_fails_at_its_last_step_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import detection.convert as module

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    torch.save(state_of(), tmp_path / "w.pth")
    for step in ("write_sidecar", "load_detectron2_file", "sha256_of"):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, full)
            with pytest.raises(OSError, match="no space"):
                convert(tmp_path / "w.pth", tmp_path / "out.pth")
        assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
    rename = Path.replace

    def no_rename(path: Path, target: Path) -> Path:
        return full() if target == tmp_path / "out.pth" else rename(path, target)  # type: ignore[return-value]

    monkeypatch.setattr(Path, "replace", no_rename)
    with pytest.raises(OSError, match="no space"):
        convert(tmp_path / "w.pth", tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_provenance_goes_on_unabridged(tmp_path: Path) -> None:
    run = {
        "kind": "classify", "name": "r18", "seed": 3, "synthetic": True, "shortened": True,
        "started_from": None,
        "dataset": {"name": "cifar10", "sizes": {"train": 4}, "checksum": "abc"}, "packages": {"torch": "2"},
        "config": {"arch": "resnet18", "lr": 0.1, "milestones": [1, 2], "method": "keep_cutout",
        "nothing": None},
    }  # fmt: skip
    ours = {
        "state_dict": state_of(), "arch": "resnet18", "num_classes": 7, "options": {"stem": "imagenet"},
        "classes": list("abcdefg"),
        "mean": [0.5] * 3, "std": [0.5] * 3, "color_order": "RGB", "provenance": run,
    }  # fmt: skip
    torch.save(ours, tmp_path / "weights.pt")
    done = convert(tmp_path / "weights.pt", tmp_path / "out.pth")
    assert done.sidecar.provenance == run
    assert read_sidecar(done.output).provenance == run
    origin = started_from(done.output)
    assert origin == {"file": "weights.pt", "sha256": done.sidecar.source_sha256, "provenance": run}
    assert len(origin["sha256"]) == 64
    foreign = {"state_dict": state_of(), "epoch": 90, "best_loss": math.inf, "args": {"lr": 0.1}}
    torch.save(foreign, tmp_path / "theirs.pth")
    done = convert(tmp_path / "theirs.pth", tmp_path / "out.pth")
    assert done.sidecar.provenance == {"epoch": 90, "best_loss": "inf", "args": {"lr": 0.1}}
    assert started_from(done.output) == {
        "file": "theirs.pth",
        "sha256": done.sidecar.source_sha256,
        "provenance": {},
    }
    assert started_from("") is None
    assert started_from(tmp_path / "theirs.pth")["file"] == "theirs.pth"


def test_a_sidecar_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    torch.save(state_of(), tmp_path / "w.pth")
    done = convert(tmp_path / "w.pth", tmp_path / "out.pth")
    path = tmp_path / "out.pth.json"
    content = json.loads(path.read_text())
    for key in ("source_sha256", "notes"):
        del content[key]
    path.write_text(
        json.dumps(content | {"provenance": {"source_sha256": "f" * 64, "method": "cutout", "notes": []}})
    )
    assert started_from(done.output)["sha256"] == "f" * 64
    assert started_from(done.output)["provenance"]["method"] == "cutout"


@pytest.mark.parametrize(
    "change",
    [
        {"depth": "18"}, {"pixel_mean": None}, {"pixel_mean": [1, 2]}, {"pixel_std": [0.0, 1, 1]},
        {"pixel_std": [math.nan] * 3},
        {"color_order": "GRB"}, {"provenance": []}, {"stride_in_1x1": "no"}, {"schema": 9}, {"sha256": 3},
        {"notes": {}},
    ],
)  # fmt: skip
def test_an_edited_sidecar_is_refused_in_words(change: dict[str, Any], tmp_path: Path) -> None:
    whole = {
        "sha256": "f" * 64, "architecture": "ResNet-18", "depth": 18, "num_groups": 1, "width_per_group": 64,
        "source": "w.pth",
        "schema": 1, "pixel_mean": [1.0, 2, 3], "pixel_std": [1.0, 2, 3],
    }  # fmt: skip
    path = tmp_path / "out.pth.json"
    path.write_text(json.dumps(whole))
    assert read_sidecar(tmp_path / "out.pth").depth == 18
    for content in (json.dumps({**whole, **change}), "[]", "{}", "null", "{", "\xff"):
        path.write_text(content, encoding="latin1")
        with pytest.raises(ValueError, match="is no sidecar"):
            read_sidecar(tmp_path / "out.pth")


def test_a_classifier_is_no_backbone_however_it_is_wrapped(tmp_path: Path) -> None:
    cfg = load_config(None, [])
    for content in (
        state_of(50), {"model": under("module.backbone.", state_of(50))}, {"state_dict": state_of(50)},
        sequential(state_of(50)),
    ):  # fmt: skip
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="convert"):
            check_weights_against_config(tmp_path / "w.pth", cfg)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("blobs", [False, True])
def test_caffe2_names_become_detectron2s(protocol: int, blobs: bool, tmp_path: Path) -> None:
    state = state_of(50)
    zoo = caffe2(state) | {
        "fc1000_w": np.ones((3, 4), "f"),
        "conv1_b": np.ones(64, "f"),
        "conv1_w_momentum": np.ones(2, "f"),
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": zoo} if blobs else zoo, protocol=protocol))
    found = load_detectron2_file(tmp_path / "R-50.pkl")
    assert np.array_equal(found.pop("fc1000_w"), zoo["fc1000_w"])
    for key, value in trunk(state).items():
        wanted = {"running_mean": torch.zeros_like, "running_var": torch.ones_like}.get(
            key.rpartition(".")[2]
        )
        assert torch.equal(found.pop(detectron2_key(key)), wanted(value) if wanted else value), key
    assert not found
    with pytest.raises(ArchitectureError, match=r"Caffe2's names.*MODEL\.WEIGHTS"):
        convert(tmp_path / "R-50.pkl", tmp_path / "out.pth")


def shapes_of_projects() -> dict[str, Any]:
    """What stands in docs/conversion.md, in small."""
    s, bare, slow, some = state_of(), state_of(classes=0), state_of(shift=1.0), torch.ones(4, 4)
    normaliser = {"new_mean": torch.full((3, 1, 1), 0.4), "new_std": torch.full((3, 1, 1), 0.2)}
    return {
        "torchvision's classifier": s,
        "torchvision's reference training": {
            "model": s, "optimizer": {"state": {0: {"momentum_buffer": some}}},
            "args": {"model": "resnet18"}, "epoch": 89,
        },
        "the same with averaged weights": {"model": s, "model_ema": {**under("module.", slow),
        "n_averaged": torch.tensor(7)}},
        "timm's training": {"arch": "resnet18", "state_dict": s, "state_dict_ema": slow, "version": 2},
        "timm in Hugging Face": under("timm_model.", s),
        "Hugging Face's ResNet": {**under("resnet.", hugging_face(bare)), "classifier.1.weight": some},
        "CutMix's released code": {"epoch": 3, "arch": "resnet", "state_dict": under("module.", s),
        "best_err1": 21.4},
        "MoCo": {
            "state_dict": {**under("module.encoder_q.", s), **under("module.encoder_k.", slow),
            "module.queue": some},
            "arch": "resnet18",
        },
        "SwAV": {**under("module.", bare), "module.projection_head.0.weight": some,
        "module.prototypes.weight": some},
        "DINO": {
            "student": {**under("module.backbone.", bare), "module.head.mlp.0.weight": some},
            "teacher": {**under("backbone.", slow), "head.last_layer.weight_g": some},
        },
        "SimSiam": {
            "state_dict": {**under("module.encoder.", bare), "module.encoder.fc.0.weight": some,
            "module.predictor.0.weight": some}
        },
        "Barlow Twins": {"model": {**under("module.backbone.", bare), "module.bn.running_mean": some[0]},
        "epoch": 1},
        "BYOL": {
            **under("net.", s), **under("online_encoder.net.", s), **under("target_encoder.net.", slow),
            "online_predictor.x": some,
        },
        "solo-learn": {"state_dict": {**under("backbone.", bare), **under("momentum_backbone.", slow),
        "classifier.weight": some}},
        "lightly": {"state_dict": {**under("backbone.", sequential(s)),
        "projection_head.layers.0.weight": some}},
        "VISSL": {
            "classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", bare),
            "heads": {"0.clf": some}}}}
        },
        "mmpretrain": {"meta": {}, "state_dict": {**under("backbone.", bare), "head.fc.weight": some}},
        "Lightning": {"state_dict": under("net.", s), "callbacks": {},
        "hyper_parameters": {"arch": "resnet18"}, "loops": {}},
        "FSDP, whole": under("_fsdp_wrapped_module.", fsdp(s)),
        "an EMA wrapper with its counter": {"ema": {"module": s, "updates": 7}},
        "robustness": {
            "model": {
                **under("module.model.", s), **under("module.attacker.model.", s),
                **under("module.normalizer.", normaliser),
                **under("module.attacker.normalize.", normaliser),
            }
        },
        "ours, `weights.pt`": {
            "state_dict": s, "arch": "resnet18", "options": {"stem": "imagenet"}, "classes": ["a"],
            "mean": [0.5] * 3,
            "std": [0.5] * 3, "provenance": {"kind": "classify"},
        },
        "torchvision's detectors": {**under("backbone.body.", bare), "rpn.head.conv.0.0.weight": some},
        "mmdetection": {"state_dict": {**under("backbone.", bare), "bbox_head.fc_cls.weight": some}},
        "DeepLab of torchvision": {**under("backbone.", bare), "classifier.0.convs.0.0.weight": some},
        "`resnetaa50`, `resnetblur50`": {"arch": "resnetaa18", "state_dict": s},
        "ReID's ResNet": {"kind": "reid", "last_stride": 1, "arch": "resnet18", "state_dict": bare},
        "Caffe2's R-50.pkl": caffe2(state_of(50)),
    }  # fmt: skip


def test_the_documents_tables_are_true(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text()
    rows = {
        row[0].strip(): row[2].strip()
        for row in re.findall(r"^\| (.*?) \|(.*?)\| (.*?) \|$", text, flags=re.M)[1:]
    }
    projects = shapes_of_projects()
    assert rows.keys() == projects.keys()
    for name, result in rows.items():
        what, _, said = result.partition(": ")
        if what == "refused":
            with pytest.raises(
                ValueError, match=said.split()[-1] if "MODEL" not in said else "MODEL.WEIGHTS"
            ):
                read(projects[name], tmp_path / "w.pth")
        elif what.startswith("asks for"):
            with pytest.raises(WeightsError, match=rf"several sets.*{what.split('`')[1]}"):
                read(projects[name], tmp_path / "w.pth")
        else:
            assert what.startswith("taken")
            assert same(read(projects[name], tmp_path / "w.pth")[0], trunk(state_of())), name
    known = " ".join(what for _, what in (*NO_RESNET, *PART_OF))
    named = re.search(r"by their name: (.*?);", text, flags=re.S)
    assert named
    for network in re.split(r",\s+", named[1]):
        assert network.removesuffix("s") in known, network
