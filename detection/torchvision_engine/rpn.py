"""torchvision's region proposal network with Detectron2's losses and selection of proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image

from detection.torchvision_engine.boxes import Anchors, Sizes, box_loss


class DetectronRPN(RegionProposalNetwork):
    """torchvision's RPN with Detectron2's losses."""

    def __init__(self, cfg: Any, names: Sequence[str], channels: int) -> None:
        rpn = cfg.MODEL.RPN
        anchors = Anchors(cfg, names)
        head = RPNHead(channels, anchors.num_anchors_per_location()[0])
        for layer in head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        super().__init__(
            anchors,
            head,
            fg_iou_thresh=rpn.IOU_THRESHOLDS[1],
            bg_iou_thresh=rpn.IOU_THRESHOLDS[0],
            batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
            positive_fraction=rpn.POSITIVE_FRACTION,
            pre_nms_top_n={"training": rpn.PRE_NMS_TOPK_TRAIN, "testing": rpn.PRE_NMS_TOPK_TEST},
            post_nms_top_n={"training": rpn.POST_NMS_TOPK_TRAIN, "testing": rpn.POST_NMS_TOPK_TEST},
            nms_thresh=rpn.NMS_THRESH,
            score_thresh=0.0,
        )
        self.names = list(names)
        self.min_size = float(cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE)
        self.box_coder = BoxCoder(tuple(rpn.BBOX_REG_WEIGHTS))
        self.batch_size_per_image = rpn.BATCH_SIZE_PER_IMAGE
        self.beta = rpn.SMOOTH_L1_BETA
        self.weight, self.box_weight = rpn.LOSS_WEIGHT, rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: Sizes,
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best proposals of each image and their logits.

        torchvision ranks by the sigmoid, which in float32 makes many confident proposals equal, and drops NaN
        silently. Detectron2 ranks by the logit and stops a training that has diverged.

        Raises:
            FloatingPointError: in training, a proposal is infinite or NaN.
        """
        logits = objectness.detach().reshape(len(proposals), -1)
        best = self._get_top_n_idx(logits, num_anchors_per_level)
        counts = torch.tensor(num_anchors_per_level, device=logits.device)
        levels = torch.repeat_interleave(torch.arange(len(counts), device=logits.device), counts)
        boxes_found, logits_found = [], []
        for image, shape in enumerate(image_shapes):
            boxes, scores, level = (part[best[image]] for part in (proposals[image], logits[image], levels))
            finite = boxes.isfinite().all(dim=1) & scores.isfinite()
            if self.training and not bool(finite.all()):
                raise FloatingPointError("proposals are infinite or NaN: the training has diverged")
            boxes = clip_boxes_to_image(boxes, shape)
            keep = finite & (boxes[:, 2:] - boxes[:, :2] > self.min_size).all(dim=1)
            boxes, scores, level = boxes[keep], scores[keep], level[keep]
            keep = batched_nms(boxes, scores, level, self.nms_thresh)[: self.post_nms_top_n()]
            boxes_found.append(boxes[keep])
            logits_found.append(scores[keep])
        return boxes_found, logits_found

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both losses divided by the nominal number of samples (as Detectron2 does), L1 for the boxes."""
        positive, negative = self.fg_bg_sampler(labels)
        taken_positive = torch.where(torch.cat(positive))[0]
        taken = torch.cat([taken_positive, torch.where(torch.cat(negative))[0]])
        normaliser = self.batch_size_per_image * len(labels)
        wanted = torch.cat(regression_targets)[taken_positive]
        boxes = box_loss(pred_bbox_deltas[taken_positive], wanted, self.beta)
        logits, target = objectness.flatten()[taken], torch.cat(labels)[taken]
        classes = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return self.weight * classes / normaliser, self.box_weight * boxes / normaliser
