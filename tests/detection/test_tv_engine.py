"""The torchvision engine computes what Detectron2 computes, learns, and resumes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detection.coco import load_coco
from detection.config import defaults, load_config
from detection.reading import WeightsError
from detection.torchvision_engine.build import build_model
from detection.torchvision_engine.data import TrainingBatches, batches, resized_shape
from detection.torchvision_engine.honoured import unhonoured
from detection.torchvision_engine.loop import (
    build_optimizer,
    last_checkpoint,
    learning_rate,
    predict,
    restore_model,
    train,
)
from detection.torchvision_engine.weights import load_backbone, load_detectron2_state, to_detectron2_state
from keepaug.data.synthetic import write_detection

CONFIGS = Path(__file__).parents[2] / "configs" / "detection"
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "60", "MODEL.RPN.POST_NMS_TOPK_TEST", "40", "INPUT.MIN_SIZE_TRAIN", "(96,)",
    "INPUT.MIN_SIZE_TEST", "96", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "2",
    "MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.RETINANET.NUM_CLASSES", "3", "SEED", "3",
]  # fmt: skip
KINDS = {
    "fpn": "small_faster_rcnn_R_18_FPN.yaml",
    "c4": "small_faster_rcnn_R_50_C4.yaml",
    "retinanet": "small_retinanet_R_18_FPN.yaml",
}


def config(kind: str, *opts: str):
    return load_config(CONFIGS / KINDS[kind], [*SMALL, *opts])


def random_model(cfg):
    """Every tensor matters, and scores spread, so that a misplaced one shows."""
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("bn3.weight"):
            value.fill_(0.2)  # 19 residual blocks would otherwise grow without bounds
        elif "box_predictor" in name or "bbox_pred" in name or "bbox_reg." in name or "cls_logits" in name:
            value.normal_(0, 0.05)
    return model.eval()


def detectron2_model(cfg, state):
    from detectron2.modeling import build_model as build

    from detection.detectron2_engine import to_detectron2_config

    model = build(to_detectron2_config(cfg))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("pixel" in key or "anchor" in key or "num_batches" in key for key in missing)
    return model


def image(seed: int = 0, height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


TARGETS = [
    {"boxes": torch.tensor([[10.0, 12, 50, 60], [40, 30, 90, 80]]), "labels": torch.tensor([0, 2])},
    {"boxes": torch.tensor([[5.0, 5, 40, 45]]), "labels": torch.tensor([1])},
]


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", KINDS)
def test_same_weights_same_detections(kind: str) -> None:
    cfg = config(
        kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.02", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.03"
    )
    ours = random_model(cfg)
    theirs = detectron2_model(cfg, to_detectron2_state(ours)).eval()
    for seed in range(2):
        pixels = image(seed)
        with torch.no_grad():
            found = ours.detect([pixels])[0]
            wanted = theirs([{"image": pixels, "height": 96, "width": 128}])[0]["instances"]
        size = torch.tensor([128.0, 96, 128, 96])
        boxes = torch.minimum(found["boxes"].clamp(min=0), size)
        assert len(wanted) > 10
        assert len(boxes) == len(wanted)
        torch.testing.assert_close(found["scores"], wanted.scores, rtol=1e-4, atol=1e-5)
        assert (
            found["labels"] == wanted.pred_classes
        ).double().mean() > 0.97  # equal scores may change places
        torch.testing.assert_close(boxes.sum(0), wanted.pred_boxes.tensor.sum(0), rtol=1e-3, atol=0.5)


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", KINDS)
def test_same_weights_same_losses(kind: str) -> None:
    """With all anchors and proposals sampled, so that no random choice is left."""
    opts = [
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000",
        "MODEL.RPN.POSITIVE_FRACTION", "1.0", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0",
        "MODEL.RPN.SMOOTH_L1_BETA", "0.1", "MODEL.RESNETS.NORM", "FrozenBN",
    ]  # fmt: skip
    cfg = config(kind, *opts)
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    ours = random_model(cfg).train()
    theirs = detectron2_model(cfg, to_detectron2_state(ours)).train()
    inputs = []
    for seed, target in enumerate(TARGETS):
        instances = Instances((96, 128))
        instances.gt_boxes, instances.gt_classes = Boxes(target["boxes"].clone()), target["labels"]
        inputs.append({"image": image(seed), "instances": instances, "height": 96, "width": 128})
    found = ours.losses([image(0), image(1)], TARGETS)
    with EventStorage():
        wanted = theirs(inputs)
    names = {"loss_rpn_cls": "loss_objectness", "loss_rpn_loc": "loss_rpn_box_reg"}
    assert len(found) == len(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[names.get(name, name)], value, rtol=2e-3, atol=1e-4)


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("height", "width", "short", "long"),
    [(480, 640, 800, 1333), (427, 640, 192, 320), (100, 1000, 96, 200), (640, 427, 640, 1333)],
)
def test_resizing_as_detectron2(height: int, width: int, short: int, long: int) -> None:
    from detectron2.data.transforms import ResizeShortestEdge

    assert resized_shape(height, width, short, long) == ResizeShortestEdge.get_output_shape(
        height, width, short, long
    )


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_schedule_as_detectron2(name: str) -> None:
    from detectron2.solver import build_lr_scheduler

    from detection.detectron2_engine import to_detectron2_config

    cfg = config(
        "fpn",
        "SOLVER.LR_SCHEDULER_NAME",
        name,
        "SOLVER.MAX_ITER",
        "40",
        "SOLVER.STEPS",
        "(20, 30)",
        "SOLVER.WARMUP_ITERS",
        "7",
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(to_detectron2_config(cfg), optimizer)
    for iteration in range(40):
        assert learning_rate(cfg, iteration) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), (
            iteration
        )
        optimizer.step()
        scheduler.step()


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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection(
        tmp_path_factory.mktemp("d") / "objects", num_train=6, num_val=3, num_classes=3, colour_cue=0.8
    )


@pytest.mark.parametrize("kind", ["fpn", "retinanet"])
def test_stopped_and_resumed_is_uninterrupted(kind: str, drawn: Path, tmp_path: Path) -> None:
    data = load_coco(drawn / "annotations" / "instances_train2017.json", drawn / "train2017")
    opts = [
        "SOLVER.STEPS",
        "(4,)",
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "DATALOADER.NUM_WORKERS",
        "0",
        "SOLVER.MAX_ITER",
        "5",
    ]
    whole = train(config(kind, *opts, "OUTPUT_DIR", str(tmp_path / "whole")), data)
    stopped = config(kind, *opts, "OUTPUT_DIR", str(tmp_path / "stopped"))

    class Stop(Exception):
        pass

    import detection.torchvision_engine.loop as loop

    original = loop._iterate

    def interrupted(*args):
        if args[4] == 3:
            raise Stop
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_iterate", interrupted)
        with pytest.raises(Stop):
            train(stopped, data)
    assert last_checkpoint(tmp_path / "stopped").name == "model_0000001.pth"
    resumed = train(stopped, data, resume=True)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    again = restore_model(stopped, tmp_path / "stopped" / "model_final.pth")
    assert predict(stopped, again, data) == predict(stopped, resumed, data)


def test_loss_falls_and_unsuitable_data_is_refused(drawn: Path, tmp_path: Path) -> None:
    import json

    data = load_coco(drawn / "annotations" / "instances_train2017.json", drawn / "train2017")
    cfg = config("fpn", "SOLVER.MAX_ITER", "25", "SOLVER.STEPS", "(24,)", "OUTPUT_DIR", str(tmp_path / "run"))
    train(cfg, data)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["total_loss"] < 2.0
    for record in data.records:
        record["annotations"] = []
    with pytest.raises(ValueError, match="no image has a box"):
        train(cfg, data)


def test_boxes_follow_resizing_and_flip(drawn: Path) -> None:
    data = load_coco(drawn / "annotations" / "instances_train2017.json", drawn / "train2017")
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_*.yaml")), ids=lambda p: p.stem)
def test_our_configs_are_honoured(path: Path) -> None:
    if path.stem.startswith("schedule"):
        pytest.skip("a base, not a config")
    assert unhonoured(load_config(path), defaults()) == []


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["SOLVER.AMP.ENABLED", "True"], "SOLVER.AMP.ENABLED True"),
        (["MODEL.RESNETS.NORM", "GN"], "MODEL.RESNETS.NORM 'GN' (allowed: 'FrozenBN', 'BN')"),
        (["MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"], "MODEL.RPN.BBOX_REG_LOSS_TYPE"),
        (["INPUT.CROP.ENABLED", "True"], "INPUT.CROP.ENABLED"),
        (["MODEL.RETINANET.NUM_CONVS", "2"], "MODEL.RETINANET.NUM_CONVS"),
        (["TEST.PRECISE_BN.ENABLED", "True"], "TEST.PRECISE_BN.ENABLED"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"], "SOLVER.LR_SCHEDULER_NAME"),
    ],
)
def test_keys_that_are_not_honoured_are_named(opts, named: str) -> None:
    found = unhonoured(load_config(CONFIGS / KINDS["fpn"], opts), defaults())
    assert len(found) == 1
    assert named in found[0]
