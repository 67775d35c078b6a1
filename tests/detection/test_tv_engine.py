"""The torchvision engine without Detectron2: it learns, resumes exactly, exchanges weights and refuses what
it cannot do.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tv_helpers import CONFIGS, KINDS, TARGETS, config, image, random_model

from detection.coco import CocoDataset, load_coco
from detection.config import defaults, flat, load_config
from detection.reading import WeightsError
from detection.tool import checkpoints, has_run
from detection.torchvision_engine import loop
from detection.torchvision_engine.build import build_model
from detection.torchvision_engine.data import TrainingBatches, batches
from detection.torchvision_engine.honoured import HONOURED, unhonoured
from detection.torchvision_engine.loop import build_optimizer, predict, restore_model
from detection.torchvision_engine.loop import train as train_in
from detection.torchvision_engine.weights import load_backbone, load_detectron2_state, to_detectron2_state
from keepaug.data.synthetic import write_detection
from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.recorder import Recorder


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_there_and_back(kind: str) -> None:
    cfg = config(kind)
    first = random_model(cfg)
    state = to_detectron2_state(first)
    second = build_model(cfg)
    load_detectron2_state(second, state)
    filled = second.state_dict()
    for key, value in first.state_dict().items():
        if not key.endswith("num_batches_tracked") and "bbox_pred" not in key:
            assert torch.equal(value, filled[key]), key
    again = to_detectron2_state(second)
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    with pytest.raises(WeightsError, match="1 tensors are missing"):
        load_detectron2_state(second, dict(list(state.items())[1:]))
    with pytest.raises(WeightsError, match="1 have no place"):
        load_detectron2_state(second, {**state, "extra": torch.zeros(1)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_of_other_classes_is_fine_tuned_but_for_its_last_layers(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = to_detectron2_state(random_model(config(kind)))
    number = "5"
    model = build_model(
        config(kind, "MODEL.ROI_HEADS.NUM_CLASSES", number, "MODEL.RETINANET.NUM_CLASSES", number)
    )
    before = to_detectron2_state(model)
    loaded = load_backbone(model, trained, "trained.pth")
    after, said = to_detectron2_state(model), capsys.readouterr().out
    fresh = {key for key in trained if trained[key].shape != after[key].shape}
    assert fresh
    assert loaded == len(trained) - len(fresh)
    assert all(torch.equal(after[key], before[key] if key in fresh else trained[key]) for key in trained)
    assert all(key in said for key in fresh)
    with pytest.raises(WeightsError, match=r"has the shape .* check NUM_CLASSES"):
        load_detectron2_state(model, trained)  # an evaluation needs all of them
    body = next(key for key in trained if key.endswith("res2.0.conv1.weight"))
    with pytest.raises(WeightsError, match="has the shape"):
        load_backbone(model, {**trained, body: trained[body][:3]}, "trained.pth")
    assert load_backbone(build_model(config(kind)), trained, "x") == len(trained)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("kind", "frozen"), [("fpn", 2), ("fpn", 0), ("retinanet", 5)])
def test_frozen_parts_stay_frozen_and_the_rest_learns(kind: str, frozen: int) -> None:
    cfg = config(kind, "MODEL.BACKBONE.FREEZE_AT", str(frozen))
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = build_optimizer(cfg, model)
    for _ in range(2):
        loss = sum(model.losses([image(0), image(1)], TARGETS).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parts = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    still = tuple(f"backbone.body.{part}." for part in parts[: frozen + 1 if frozen else 0])
    for key, value in model.state_dict().items():
        if still and key.startswith(still):
            assert torch.equal(value, before[key]), key
        elif key.endswith("conv1.weight") or "cls_logits.weight" in key:
            assert not torch.equal(value, before[key]), key


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_computes_what_the_cpu_does(kind: str) -> None:
    everything = [
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000",
        "MODEL.RPN.POSITIVE_FRACTION", "1.0", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0",
        "MODEL.RESNETS.NORM", "FrozenBN",
    ]  # fmt: skip
    model = random_model(config(kind, *everything)).train()
    wanted = model.losses([image(0), image(1)], TARGETS)
    if kind == "retinanet":
        model.head.normaliser.fill_(100)
    on_gpu = [{name: value.cuda() for name, value in target.items()} for target in TARGETS]
    found = model.cuda().losses([image(0), image(1)], on_gpu)
    for name, value in wanted.items():  # TF32 convolutions
        torch.testing.assert_close(found[name].cpu(), value, rtol=3e-2, atol=1e-3)
    with torch.no_grad():
        assert model.eval().detect([image(0)])[0]["boxes"].is_cuda


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection(
        tmp_path_factory.mktemp("d") / "objects", num_train=6, num_val=3, num_classes=3, colour_cue=0.8
    )


@pytest.fixture
def data(drawn: Path) -> CocoDataset:
    return load_coco(drawn / "annotations" / "instances_train2017.json", drawn / "train2017")


class Stop(Exception):
    pass


def interrupt_at(iteration: int, patch: pytest.MonkeyPatch) -> None:
    original = loop._iterate

    def interrupted(*args):
        if args[4] == iteration:
            raise Stop
        return original(*args)

    patch.setattr(loop, "_iterate", interrupted)


def train(cfg, data: CocoDataset, *, resume: bool = False):
    """With a recorder of the run's folder."""
    options = {
        "recipe": {},
        "precision": {},
        "seed": cfg.SEED,
        "changed": lambda before: [],
        "has_run": has_run,
    }
    facts = {
        "name": "x",
        "dataset": {"name": "d", "sizes": {}, "checksum": "a"},
        "synthetic": True,
        "shortened": True,
    }
    with Recorder(cfg.OUTPUT_DIR, {}, kind="detection", tensorboard=False, **options) as recorder:
        recorder.claim(resume, **facts)
        return train_in(cfg, data, recorder, resume=resume)


SHORT = [
    "SOLVER.STEPS", "(3,)", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.MAX_ITER", "4", "INPUT.MIN_SIZE_TRAIN",
    "(64,)",
    "INPUT.RANDOM_FLIP", "horizontal", "SOLVER.IMS_PER_BATCH", "2", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.FPN.OUT_CHANNELS", "32",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["fpn", "retinanet"])
def test_stopped_and_resumed_is_uninterrupted(kind: str, data: CocoDataset, tmp_path: Path) -> None:
    whole = train(config(kind, *SHORT, "OUTPUT_DIR", str(tmp_path / "whole")), data)
    stopped = config(kind, *SHORT, "OUTPUT_DIR", str(tmp_path / "stopped"), "DATALOADER.NUM_WORKERS", "1")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(Stop):
            train(stopped, data)
    newest = checkpoints(tmp_path / "stopped")[0]
    assert newest.name == "model_0000001.pth"
    newest.write_bytes(newest.read_bytes()[:1000])  # a damaged file costs one checkpoint, not the run
    if kind == "retinanet":
        (tmp_path / "stopped" / "last_checkpoint").unlink()
    with pytest.warns(
        UserWarning, match=r"model_0000001.pth cannot be read .* going on from .*model_0000000"
    ):
        resumed = train(stopped, data, resume=True)
    state = resumed.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, state[name]), name
    logged = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    ]
    assert len(logged[0]) == 1
    assert logged[0] == logged[1]
    again = restore_model(stopped, tmp_path / "stopped" / "model_final.pth")
    assert predict(stopped, again, data) == predict(stopped, resumed, data)


def test_loss_falls(data: CocoDataset, tmp_path: Path) -> None:
    cfg = config(
        "fpn", *SHORT, "SOLVER.MAX_ITER", "40", "SOLVER.STEPS", "(39,)", "SOLVER.CHECKPOINT_PERIOD", "100",
        "OUTPUT_DIR", str(tmp_path),
    )  # fmt: skip
    train(cfg, data)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[1]["loss_rpn_cls"] < 0.58  # from log 2
    assert lines[1]["loss_rpn_loc"] < 0.75 * lines[0]["loss_rpn_loc"]
    parts = ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")
    assert lines[1]["total_loss"] == pytest.approx(sum(lines[1][name] for name in parts), rel=1e-5)


def test_unsuitable_data_and_files_are_refused(data: CocoDataset, tmp_path: Path) -> None:
    cfg = config("fpn", *SHORT, "OUTPUT_DIR", str(tmp_path))
    torch.save({"model": {}, "trainer": {}}, tmp_path / "model_0000001.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(ValueError, match="written by Detectron2; resume it with --engine detectron2"):
        train(cfg, data, resume=True)
    (tmp_path / "model_0000001.pth").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="no checkpoint can be read"):
        train(cfg, data, resume=True)
    for record in data.records:
        record["annotations"] = []
    with pytest.raises(ValueError, match="no image has a box to learn from"):
        train(cfg, data, resume=True)


@pytest.mark.parametrize("kind", ["fpn", "retinanet"])
def test_a_diverged_training_stops_and_names_the_checkpoint(
    kind: str, data: CocoDataset, tmp_path: Path
) -> None:
    cfg = config(
        kind, *SHORT, "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0",
        "SOLVER.CLIP_GRADIENTS.ENABLED", "False",
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError, match=r"at step \d; the last good checkpoint is .*model_000000\d"):
        train(cfg, data)


def test_boxes_follow_the_flip(data: CocoDataset) -> None:
    plain = TrainingBatches(data.records, config("fpn", "SOLVER.MAX_ITER", "30"), 0, 0)
    flipped = TrainingBatches(
        data.records, config("fpn", "SOLVER.MAX_ITER", "30", "INPUT.RANDOM_FLIP", "horizontal"), 0, 0
    )
    turned = 0
    for number in range(30):
        for first, second in zip(plain[number], flipped[number], strict=True):
            if torch.equal(first.image, second.image):
                assert torch.equal(first.boxes, second.boxes)
                continue
            turned += 1
            assert torch.equal(first.image.flip(2), second.image)
            width = first.image.shape[2]
            torch.testing.assert_close(second.boxes[:, [0, 2]], width - first.boxes[:, [2, 0]])
    assert 10 < turned < 50


def test_no_detection_is_no_error(data: CocoDataset) -> None:
    """Boxes that are not finite leave an empty list without a second side."""

    class Blind(torch.nn.Module):
        def detect(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            return [
                {"boxes": torch.tensor([]), "scores": torch.tensor([]), "labels": torch.tensor([]).long()}
            ]

    assert predict(config("fpn"), Blind(), data) == []  # type: ignore[arg-type]


def test_aspect_ratio_groups() -> None:
    records = [{"width": 10 + (i % 3 == 0) * 10, "height": 15} for i in range(12)]
    stream = batches(records, config("fpn"), 0)
    for _ in range(20):
        wide = {records[i]["width"] > records[i]["height"] for i in next(stream)}
        assert len(wide) == 1


def test_backbone_loading_is_complete_or_an_error() -> None:
    cfg = config("fpn")
    model = build_model(cfg)
    state = {
        k.removeprefix("backbone.bottom_up."): v
        for k, v in to_detectron2_state(random_model(cfg)).items()
        if "bottom_up" in k
    }
    assert load_backbone(model, state, "x") == len(state)
    assert all(
        torch.equal(v, to_detectron2_state(model)["backbone.bottom_up." + k]) for k, v in state.items()
    )
    del state["res3.0.conv1.weight"]
    with pytest.raises(
        WeightsError,
        match=r"1 tensors of the backbone are not in x \(backbone.bottom_up.res3.0.conv1.weight\)",
    ):
        load_backbone(model, state, "x")


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.glob("*_*.yaml")) if path.stem != "schedule_3x"],
    ids=lambda path: path.stem,
)
def test_our_configs_are_honoured(path: Path) -> None:
    assert unhonoured(load_config(path), defaults()) == []


@pytest.mark.parametrize(
    ("kind", "opts", "named"),
    [
        ("fpn", ["MODEL.RESNETS.DEPTH", "20"], "MODEL.RESNETS.DEPTH 20 (allowed: 18, 34, 50"),
        ("fpn", ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"],
        "MODEL.ROI_HEADS.NAME 'CascadeROIHeads' (allowed: "),
        ("fpn", ["MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p9']"],
        "features of the backbone: p2, p3, p4, p5, p6"),
        ("fpn", ["MODEL.RESNETS.OUT_FEATURES", "['res4', 'res5']"], "all of MODEL.RESNETS.OUT_FEATURES"),
        ("fpn", ["MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64]"], "one list for all feature maps"),
        ("fpn", ["SOLVER.AMP.ENABLED", "True"], "SOLVER.AMP.ENABLED True (only the default False)"),
        ("fpn", ["MODEL.RESNETS.NORM", "GN"], "MODEL.RESNETS.NORM 'GN' (allowed: 'FrozenBN', 'BN')"),
        ("fpn", ["MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"], "MODEL.RPN.BBOX_REG_LOSS_TYPE"),
        ("fpn", ["INPUT.CROP.ENABLED", "True"], "INPUT.CROP.ENABLED"),
        ("fpn", ["INPUT.RANDOM_FLIP", "vertical"],
        "INPUT.RANDOM_FLIP 'vertical' (allowed: 'none', 'horizontal')"),
        ("fpn", ["MODEL.RETINANET.NUM_CONVS", "2"], "MODEL.RETINANET.NUM_CONVS"),
        ("fpn", ["TEST.PRECISE_BN.ENABLED", "True"], "TEST.PRECISE_BN.ENABLED"),
        ("fpn", ["TEST.EVAL_PERIOD", "5"], "TEST.EVAL_PERIOD"),
        ("fpn", ["VIS_PERIOD", "5"], "VIS_PERIOD"),
        ("fpn", ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"], "SOLVER.LR_SCHEDULER_NAME"),
        ("fpn", ["MODEL.ROI_BOX_HEAD.NUM_FC", "1"], "MODEL.ROI_BOX_HEAD.NUM_FC 1 (2 with StandardROIHeads)"),
        ("retinanet", ["MODEL.FPN.IN_FEATURES", "['res4', 'res3', 'res5']"],
        "neighbouring stages up to res5"),
        ("c4", ["MODEL.RESNETS.RES2_OUT_CHANNELS", "128"], "MODEL.RESNETS.RES2_OUT_CHANNELS 128 (256 for"),
        ("c4", ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], "MODEL.BACKBONE.NAME"),
        ("fpn", ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"], "MODEL.RESNETS.DEPTH 18 (50 or more"),
        ("fpn", ["MODEL.RPN.IOU_THRESHOLDS", "[0.5]"], "MODEL.RPN.IOU_THRESHOLDS"),
        (
            "fpn",
            ["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128], [256], [256, 512]]"],
            "MODEL.ANCHOR_GENERATOR.SIZES",
        ),
    ],
)  # fmt: skip
def test_keys_that_are_not_honoured_are_named(kind: str, opts: list[str], named: str) -> None:
    found = unhonoured(load_config(CONFIGS / KINDS[kind], opts), defaults())
    assert any(named in line for line in found), found
    assert all(opts[0] in line or "Res5" in line or "Standard" in line for line in found), found


def test_every_key_is_honoured_or_refused() -> None:
    """A key is on the list, or any other value of it is refused; the list has no name that is no key."""
    usual = flat(defaults())
    for name in HONOURED:
        assert any(key == name or (name[-1] in "._" and key.startswith(name)) for key in usual), name
    listed = {k for k in usual if any(k == n or (n[-1] in "._" and k.startswith(n)) for n in HONOURED)}
    assert {
        "SOLVER.AMP.ENABLED",
        "SOLVER.NUM_DECAYS",
        "MODEL.FPN.NORM",
        "VIS_PERIOD",
    } <= usual.keys() - listed
    for key in sorted(usual.keys() - listed):
        cfg = defaults()
        *branches, leaf = key.split(".")
        node = cfg
        for branch in branches:
            node = node[branch]
        value = usual[key]
        node[leaf] = (not value) if isinstance(value, bool) else "other" if isinstance(value, str) else [9]
        assert [line for line in unhonoured(cfg, defaults()) if line.startswith(f"{key} ")], key
