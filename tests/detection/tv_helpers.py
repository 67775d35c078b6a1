"""Small detectors of the torchvision engine, and the same ones in Detectron2."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from detection.config import load_config
from detection.torchvision_engine.build import build_model

CONFIGS = Path(__file__).parents[2] / "configs" / "detection"
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "60", "MODEL.RPN.POST_NMS_TOPK_TEST", "40",
    "INPUT.MIN_SIZE_TRAIN", "(96,)",
    "INPUT.MIN_SIZE_TEST", "96", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.WARMUP_ITERS", "2",
    "MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.RETINANET.NUM_CLASSES", "3", "SEED", "3",
]  # fmt: skip
KINDS = {
    "fpn": "small_faster_rcnn_R_18_FPN.yaml",
    "c4": "small_faster_rcnn_R_50_C4.yaml",
    "retinanet": "small_retinanet_R_18_FPN.yaml",
}
TARGETS = [
    {"boxes": torch.tensor([[10.0, 12, 50, 60], [40, 30, 90, 80]]), "labels": torch.tensor([0, 2])},
    {"boxes": torch.tensor([[5.0, 5, 40, 45]]), "labels": torch.tensor([1])},
]


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
            value.fill_(0.2)  # 16 residual blocks would otherwise grow without bounds
        elif "box_predictor" in name or "bbox_pred" in name or "bbox_reg." in name or "cls_logits" in name:
            value.normal_(0, 0.05)
    return model.eval()


def to_detectron2(cfg):
    """The same config with all of Detectron2's keys."""
    from detectron2.config import get_cfg

    theirs = get_cfg()
    theirs.merge_from_other_cfg(type(theirs)(json.loads(json.dumps(cfg))))
    return theirs


def detectron2_model(cfg, state=None):
    from detectron2.modeling import build_model as build

    model = build(to_detectron2(cfg))
    if state is not None:
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected
        assert all("pixel" in key or "anchor" in key or "num_batches" in key for key in missing)
    return model


def image(seed: int = 0, height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
