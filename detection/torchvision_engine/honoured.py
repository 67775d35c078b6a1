"""Which keys of a config this engine honours; the others must keep Detectron2's default."""

from __future__ import annotations

from typing import Any

from detection.config import flat

# A name that ends in "." or "_" stands for every key that begins with it.
HONOURED = (
    "VERSION", "OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK", "FLOAT32_PRECISION", "DATASETS.",
    "MODEL.META_ARCHITECTURE", "MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.PIXEL_", "MODEL.BACKBONE.",
    "MODEL.FPN.IN_FEATURES", "MODEL.FPN.OUT_CHANNELS", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
    "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.ANCHOR_GENERATOR.OFFSET",
    "MODEL.RPN.IN_FEATURES", "MODEL.RPN.IOU_THRESHOLDS", "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.POSITIVE_FRACTION", "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", "MODEL.RPN.BBOX_REG_WEIGHTS",
    "MODEL.RPN.SMOOTH_L1_BETA", "MODEL.RPN.LOSS_WEIGHT", "MODEL.RPN.PRE_NMS_TOPK_",
    "MODEL.RPN.POST_NMS_TOPK_",
    "MODEL.RPN.NMS_THRESH",
    "MODEL.ROI_HEADS.NAME", "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "MODEL.ROI_BOX_HEAD.NAME", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
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
    "SOLVER.LR_SCHEDULER_NAME", "SOLVER.MAX_ITER", "SOLVER.BASE_LR", "SOLVER.BASE_LR_END", "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV", "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.GAMMA", "SOLVER.STEPS", "SOLVER.WARMUP_", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.IMS_PER_BATCH",
    "SOLVER.BIAS_LR_FACTOR", "SOLVER.CLIP_GRADIENTS.", "TEST.DETECTIONS_PER_IMAGE",
)  # fmt: skip
_LIMITED: dict[str, tuple[Any, ...]] = {
    "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "StandardROIHeads"),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN"),
    "MODEL.BACKBONE.NAME": (
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_retinanet_resnet_fpn_backbone",
    ),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("norm", "value"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
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
        elif _plain(value) != _plain(usual[key]) and not _is_honoured(key):
            found.append(f"{key} {value!r} (only the default {usual[key]!r})")
    wanted = {**_for_backbone(cfg), **_for_detector(cfg)}
    found += [
        f"{key} {values[key]!r} ({why})"
        for key, (fits, why) in wanted.items()
        if not fits and not any(line.startswith(f"{key} ") for line in found)
    ]
    return found


def _is_honoured(key: str) -> bool:
    return any(key == name or (name[-1] in "._" and key.startswith(name)) for name in HONOURED)


Rules = dict[str, tuple[bool, str]]


def _for_backbone(cfg: Any) -> Rules:
    """What the network's parts need from each other: whether it fits, and what would."""
    resnets, fpn = cfg.MODEL.RESNETS, cfg.MODEL.FPN
    stages = ["res2", "res3", "res4", "res5"]
    width = 64 if resnets.DEPTH < 50 else 256
    rules = {
        "MODEL.RESNETS.OUT_FEATURES": (
            len(resnets.OUT_FEATURES) > 0 and set(resnets.OUT_FEATURES) <= set(stages),
            "some of res2, res3, res4, res5",
        ),
        "MODEL.RESNETS.NUM_GROUPS": (
            width == 256 or resnets.NUM_GROUPS == 1,
            f"1 for ResNet-{resnets.DEPTH}",
        ),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": (
            width == resnets.RES2_OUT_CHANNELS,
            f"{width} for ResNet-{resnets.DEPTH}",
        ),
    }
    if "fpn" in cfg.MODEL.BACKBONE.NAME:
        used = list(fpn.IN_FEATURES)
        fits = bool(used) and used == stages[-len(used) :] and set(used) <= set(resnets.OUT_FEATURES)
        rules["MODEL.FPN.IN_FEATURES"] = (
            fits,
            "neighbouring stages up to res5, in rising order, all of MODEL.RESNETS.OUT_FEATURES",
        )
    return rules


def _for_detector(cfg: Any) -> Rules:
    model, anchors = cfg.MODEL, cfg.MODEL.ANCHOR_GENERATOR
    retinanet, heads = model.META_ARCHITECTURE == "RetinaNet", model.ROI_HEADS
    takers = {"RETINANET": model.RETINANET} if retinanet else {"RPN": model.RPN, "ROI_HEADS": heads}
    made = set(model.RESNETS.OUT_FEATURES)
    if "fpn" in model.BACKBONE.NAME:
        made = {name.replace("res", "p") for name in model.FPN.IN_FEATURES} | {"p6"}
        made |= {"p7"} if model.BACKBONE.NAME.startswith("build_retinanet") else set()
    rules = {
        f"MODEL.{name}.IN_FEATURES": (
            set(taker.IN_FEATURES) <= made,
            f"features of the backbone: {', '.join(sorted(made))}",
        )
        for name, taker in takers.items()
    }
    used = next(iter(takers.values())).IN_FEATURES
    for key, levels in (("SIZES", anchors.SIZES), ("ASPECT_RATIOS", anchors.ASPECT_RATIOS)):
        listed = len(levels) in (1, len(used)) and all(isinstance(level, list | tuple) for level in levels)
        rules[f"MODEL.ANCHOR_GENERATOR.{key}"] = (
            listed and len({len(level) for level in levels}) == 1,
            f"one list for all feature maps, or one for each of {', '.join(used)}, all of one length",
        )
    if retinanet:
        rules["MODEL.BACKBONE.NAME"] = (
            model.BACKBONE.NAME == "build_retinanet_resnet_fpn_backbone",
            "build_retinanet_resnet_fpn_backbone for RetinaNet",
        )
        rules["MODEL.RETINANET.IOU_THRESHOLDS"] = (len(model.RETINANET.IOU_THRESHOLDS) == 2, "two numbers")
        return rules
    rules["MODEL.RPN.IOU_THRESHOLDS"] = (len(model.RPN.IOU_THRESHOLDS) == 2, "two numbers")
    rules["MODEL.ROI_HEADS.IOU_THRESHOLDS"] = (len(heads.IOU_THRESHOLDS) == 1, "one number")
    if heads.NAME == "Res5ROIHeads":
        rules["MODEL.BACKBONE.NAME"] = (
            model.BACKBONE.NAME == "build_resnet_backbone",
            "build_resnet_backbone with Res5ROIHeads",
        )
        rules["MODEL.RESNETS.DEPTH"] = (
            model.RESNETS.DEPTH > 34,
            "50 or more with Res5ROIHeads, whose res5 has bottleneck blocks",
        )
        for key, features in (("RPN", model.RPN.IN_FEATURES), ("ROI_HEADS", heads.IN_FEATURES)):
            rules[f"MODEL.{key}.IN_FEATURES"] = (list(features) == ["res4"], "[res4] with Res5ROIHeads")
        return rules
    rules["MODEL.BACKBONE.NAME"] = (
        model.BACKBONE.NAME == "build_resnet_fpn_backbone",
        "build_resnet_fpn_backbone with StandardROIHeads",
    )
    rules["MODEL.ROI_BOX_HEAD.NAME"] = (
        model.ROI_BOX_HEAD.NAME == "FastRCNNConvFCHead",
        "FastRCNNConvFCHead with StandardROIHeads",
    )
    rules["MODEL.ROI_BOX_HEAD.NUM_FC"] = (model.ROI_BOX_HEAD.NUM_FC == 2, "2 with StandardROIHeads")
    return rules


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
