"""The same weights under Detectron2's names and under torchvision's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from detection.architecture import bare_key, detectron2_key, torchvision_key
from detection.reading import WeightsError
from detection.torchvision_engine.build import Detector, FasterRCNN

_PAIRS = (
    ("proposal_generator.rpn_head.conv.", "rpn.head.conv.0.0."),
    ("proposal_generator.rpn_head.objectness_logits.", "rpn.head.cls_logits."),
    ("proposal_generator.rpn_head.anchor_deltas.", "rpn.head.bbox_pred."),
    ("roi_heads.box_head.fc1.", "roi_heads.box_head.fc6."),
    ("roi_heads.box_head.fc2.", "roi_heads.box_head.fc7."),
    ("roi_heads.box_predictor.", "roi_heads.box_predictor."),
    ("head.cls_score.", "head.classification_head.cls_logits."),
    ("head.bbox_pred.", "head.regression_head.bbox_reg."),
    ("backbone.top_block.p6.", "backbone.fpn.extra_blocks.p6."),
    ("backbone.top_block.p7.", "backbone.fpn.extra_blocks.p7."),
)
_RPN_HEAD = "proposal_generator.rpn_head."
_LAST_LAYERS = (  # what depends on the number of classes and anchors
    "roi_heads.box_predictor.", "head.cls_score.", "head.bbox_pred.",
    f"{_RPN_HEAD}objectness_logits.", f"{_RPN_HEAD}anchor_deltas.",
)  # fmt: skip
_SUBNETS = (
    ("head.cls_subnet.", "head.classification_head.conv."),
    ("head.bbox_subnet.", "head.regression_head.conv."),
)
_FPN = (
    ("backbone.fpn_lateral", "backbone.fpn.inner_blocks."),
    ("backbone.fpn_output", "backbone.fpn.layer_blocks."),
)


def _theirs(model: Detector, key: str) -> str:
    """Detectron2's name of one of the model's tensors."""
    fpn = model.backbone.fpn is not None
    if key.startswith("backbone.body."):
        below = detectron2_key(key.removeprefix("backbone.body."))
        return ("backbone.bottom_up." if fpn else "backbone.") + below
    if key.startswith("roi_heads.box_head.layer4."):
        return "roi_heads." + detectron2_key(key.removeprefix("roi_heads.box_head."))
    for theirs, ours in _PAIRS:
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    for theirs, ours in _SUBNETS:  # torchvision nests convolution and ReLU, Detectron2 lists them in turn
        if key.startswith(ours):
            number, _, rest = key.removeprefix(ours).split(".", 2)
            return f"{theirs}{2 * int(number)}.{rest}"
    for theirs, ours in _FPN:
        if key.startswith(ours):
            number, _, rest = key.removeprefix(ours).split(".", 2)
            return f"{theirs}{model.backbone.in_features[int(number)][-1]}.{rest}"
    raise KeyError(key)


def _class_order(model: Detector, key: str) -> Callable[[Tensor, bool], Tensor] | None:
    """Faster R-CNN's classes: torchvision has the background first, Detectron2 last and no box for it."""
    if not isinstance(model, FasterRCNN):
        return None
    if re.fullmatch(r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", key):
        return lambda value, ours: (
            torch.cat([value[-1:], value[:-1]]) if ours else torch.cat([value[1:], value[:1]])
        )
    if re.fullmatch(r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", key):
        return lambda value, ours: torch.cat([torch.zeros_like(value[:4]), value]) if ours else value[4:]
    return None


def _names(model: Detector) -> dict[str, str]:
    """Ours -> theirs."""
    return {key: _theirs(model, key) for key in model.state_dict() if not key.endswith("num_batches_tracked")}


def load_detectron2_state(model: Detector, state: Mapping[str, Tensor]) -> None:
    """Fill the model from a Detectron2 detector's tensors, all of them.

    Raises:
        WeightsError: tensors missing, left over or of another shape.
    """
    names = _names(model)
    ignored = ("pixel_mean", "pixel_std", "num_batches_tracked")
    given = {k: one for k, one in state.items() if not k.endswith(ignored) and "cell_anchors" not in k}
    missing, extra = sorted(set(names.values()) - given.keys()), sorted(given.keys() - set(names.values()))
    if missing or extra:
        raise WeightsError(
            f"not the weights of this detector: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(extra)} have no place ({', '.join(extra[:3])}); use the "
            "config it was trained with"
        )
    _fill(model, {ours: given[theirs] for ours, theirs in names.items()})


def _fill(model: Detector, state: Mapping[str, Tensor]) -> None:
    own, ready = model.state_dict(), {}
    for key, value in state.items():
        order = _class_order(model, key)
        value = order(value, True) if order else value
        if value.shape != own[key].shape:
            raise WeightsError(
                f"{_theirs(model, key)} has the shape {tuple(value.shape)}, the config wants "
                f"{tuple(own[key].shape)}; check NUM_CLASSES and MODEL.RESNETS"
            )
        ready[key] = value
    model.load_state_dict(ready, strict=False)


def to_detectron2_state(model: Detector) -> dict[str, Tensor]:
    """The model's tensors under Detectron2's names, on the CPU."""
    found = {}
    for ours, theirs in _names(model).items():
        value = model.state_dict()[ours].detach()
        order = _class_order(model, ours)
        found[theirs] = (order(value, False) if order else value).cpu().clone()
    return found


def load_backbone(model: Detector, state: Mapping[str, Tensor], source: str | Path) -> int:
    """Fill the backbone (and C4's head) from a converted classifier, or all that fits from a detector.

    Of a detector of other numbers of classes or anchors the last layers are left as they are, and it is said.

    Args:
        model: to be filled.
        state: Detectron2's keys: bare (`res2...`) or of a detector.
        source: for messages.

    Returns:
        Number of tensors loaded.

    Raises:
        WeightsError: a backbone tensor that the file lacks.
    """
    own = model.state_dict()
    ready, missing, fresh = {}, [], []
    for ours, theirs in _names(model).items():
        bare = bare_key(theirs)
        key = theirs if theirs in state else bare
        last = key in state and theirs.startswith(_LAST_LAYERS)
        if last and state[key].shape != _their_shape(model, ours, own[ours]):
            fresh.append(theirs)
        elif key in state:
            ready[ours] = state[key]
        elif _is_resnet(bare):
            missing.append(theirs)
    if missing:
        raise WeightsError(
            f"{len(missing)} tensors of the backbone are not in {source} ({', '.join(missing[:3])}); convert "
            "the classifier with keepaug convert and check MODEL.RESNETS against its sidecar"
        )
    _fill(model, ready)
    if fresh:
        print(
            f"note: {', '.join(fresh)} start from random weights: {source} has them for another number of "
            "classes or anchors",
            flush=True,
        )
    return len(ready)


def _their_shape(model: Detector, ours: str, value: Tensor) -> torch.Size:
    order = _class_order(model, ours)
    return (order(value, False) if order else value).shape


def _is_resnet(bare: str) -> bool:
    try:
        torchvision_key(bare)
    except KeyError:
        return False
    return True
