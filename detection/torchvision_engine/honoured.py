"""Which keys of a config this engine honours; the others must keep Detectron2's default."""

from __future__ import annotations

from typing import Any

from detection.config import flat

__all__ = ["unhonoured"]

_ALWAYS = (
    "VERSION", "OUTPUT_DIR", "SEED", "DATASETS.", "VIS_PERIOD", "CUDNN_BENCHMARK",
    "MODEL.META_ARCHITECTURE", "MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.PIXEL_", "MODEL.MASK_ON",
    "MODEL.BACKBONE.", "MODEL.FPN.IN_FEATURES", "MODEL.FPN.OUT_CHANNELS", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
    "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.ANCHOR_GENERATOR.OFFSET",
    "MODEL.RPN.IN_FEATURES", "MODEL.RPN.IOU_THRESHOLDS", "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.POSITIVE_FRACTION", "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", "MODEL.RPN.BBOX_REG_WEIGHTS",
    "MODEL.RPN.SMOOTH_L1_BETA", "MODEL.RPN.LOSS_WEIGHT", "MODEL.RPN.PRE_NMS_TOPK_", "MODEL.RPN.POST_NMS_TOPK_",
    "MODEL.RPN.NMS_THRESH",
    "MODEL.ROI_HEADS.NAME", "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "MODEL.ROI_BOX_HEAD.NAME", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", "MODEL.ROI_BOX_HEAD.FC_DIM", "MODEL.ROI_BOX_HEAD.NUM_FC",
    "MODEL.RETINANET.NUM_CLASSES", "MODEL.RETINANET.IN_FEATURES", "MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.RETINANET.PRIOR_PROB", "MODEL.RETINANET.SCORE_THRESH_TEST", "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.RETINANET.NMS_THRESH_TEST", "MODEL.RETINANET.BBOX_REG_WEIGHTS", "MODEL.RETINANET.FOCAL_LOSS_",
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "MODEL.RESNETS.DEPTH", "MODEL.RESNETS.OUT_FEATURES", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.NORM",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "INPUT.MIN_SIZE_", "INPUT.MAX_SIZE_", "INPUT.RANDOM_FLIP", "INPUT.FORMAT",
    "DATALOADER.NUM_WORKERS", "DATALOADER.ASPECT_RATIO_GROUPING", "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    "SOLVER.LR_SCHEDULER_NAME", "SOLVER.MAX_ITER", "SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV",
    "SOLVER.WEIGHT_DECAY", "SOLVER.GAMMA", "SOLVER.STEPS", "SOLVER.WARMUP_", "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH", "SOLVER.BIAS_LR_FACTOR", "SOLVER.CLIP_GRADIENTS.",
    "TEST.DETECTIONS_PER_IMAGE",
)  # fmt: skip
_LIMITED: dict[str, tuple[Any, ...]] = {
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN"),
    "MODEL.BACKBONE.NAME": (
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_retinanet_resnet_fpn_backbone",
    ),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (0, 2),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal"),
}


def unhonoured(cfg: Any, defaults: Any) -> list[str]:
    """Keys set to something that this engine would not do.

    Args:
        cfg: the config.
        defaults: `detection.config.defaults()`.

    Returns:
        "KEY VALUE (why or what is allowed)", for an error message; empty when all is honoured.
    """
    found, values, usual = [], flat(cfg), flat(defaults)
    for key, value in values.items():
        if key in _LIMITED and value not in _LIMITED[key]:
            found.append(f"{key} {value!r} (allowed: {', '.join(map(repr, _LIMITED[key]))})")
        elif _plain(value) != _plain(usual[key]) and not key.startswith(_ALWAYS):
            found.append(f"{key} {value!r} (only the default {usual[key]!r})")
    if (
        values["MODEL.BACKBONE.NAME"] == "build_resnet_fpn_backbone"
        and values["MODEL.ROI_BOX_HEAD.NUM_FC"] != 2
    ):
        found.append(f"MODEL.ROI_BOX_HEAD.NUM_FC {values['MODEL.ROI_BOX_HEAD.NUM_FC']} (2 with FPN)")
    c4 = (
        values["MODEL.ROI_HEADS.NAME"] == "Res5ROIHeads"
        and values["MODEL.META_ARCHITECTURE"] == "GeneralizedRCNN"
    )
    if c4 and "fpn" in values["MODEL.BACKBONE.NAME"]:
        found.append("MODEL.ROI_HEADS.NAME Res5ROIHeads with an FPN backbone (StandardROIHeads)")
    return found


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
