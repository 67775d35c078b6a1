"""torchvision's RetinaNet head with Detectron2's matching, normaliser and decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, box_iou, sigmoid_focal_loss

from detection.torchvision_engine.boxes import Anchors, Targets, box_loss


class DetectronRetinaNetHead(RetinaNetHead):
    """torchvision's RetinaNet head with Detectron2's matching, normaliser and decoding."""

    def __init__(self, cfg: Any, names: Sequence[str], channels: int) -> None:
        settings = cfg.MODEL.RETINANET
        anchors = Anchors(cfg, names)
        super().__init__(channels, anchors.num_anchors_per_location()[0], settings.NUM_CLASSES)
        self.anchors = anchors
        prior = settings.PRIOR_PROB
        nn.init.constant_(self.classification_head.cls_logits.bias, -math.log((1 - prior) / prior))
        self.settings, self.detections = settings, cfg.TEST.DETECTIONS_PER_IMAGE
        self.matcher = Matcher(settings.IOU_THRESHOLDS[1], settings.IOU_THRESHOLDS[0], True)
        self.coder = BoxCoder(tuple(settings.BBOX_REG_WEIGHTS))
        # Moving average of the number of matched anchors: saved with the checkpoint for an exact resume.
        self.register_buffer("normaliser", torch.tensor(100.0), persistent=False)

    def losses(self, outputs: dict[str, Tensor], anchors: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Focal and box loss over the moving average of the number of matched anchors in the batch.

        Args:
            outputs: cls_logits (N, A, K) and bbox_regression (N, A, 4).
            anchors: (A, 4).
            targets: boxes and labels (0 to K - 1).
        """
        settings, matched = self.settings, []
        for target in targets:
            if len(target["boxes"]):
                matched.append(self.matcher(box_iou(target["boxes"], anchors)))
            else:
                matched.append(torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device))
        match = torch.stack(matched)
        positive, valid = match >= 0, match != self.matcher.BETWEEN_THRESHOLDS
        self.normaliser.lerp_(positive.sum().clamp(min=1).to(self.normaliser.dtype), 0.1)
        wanted = torch.zeros_like(outputs["cls_logits"])
        boxes = outputs["bbox_regression"].sum() * 0
        for index, target in enumerate(targets):
            here = torch.where(positive[index])[0]
            truth = match[index][here]
            wanted[index, here, target["labels"][truth]] = 1
            deltas = self.coder.encode_single(target["boxes"][truth], anchors[here])
            found = outputs["bbox_regression"][index][here]
            boxes = boxes + box_loss(found, deltas, settings.SMOOTH_L1_LOSS_BETA)
        classes = sigmoid_focal_loss(
            outputs["cls_logits"][valid],
            wanted[valid],
            alpha=settings.FOCAL_LOSS_ALPHA,
            gamma=settings.FOCAL_LOSS_GAMMA,
            reduction="sum",
        )
        return {"loss_cls": classes / self.normaliser, "loss_box_reg": boxes / self.normaliser}

    def detect(
        self, outputs: dict[str, Tensor], anchors: Tensor, counts: list[int]
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, not clipped before suppression (as Detectron2)."""
        settings, found = self.settings, []
        for logits, deltas in zip(outputs["cls_logits"], outputs["bbox_regression"], strict=True):
            boxes, scores, labels = [], [], []
            levels = zip(logits.split(counts), deltas.split(counts), anchors.split(counts), strict=True)
            for level_logits, level_deltas, level_anchors in levels:
                probability = level_logits.sigmoid().flatten()
                above = torch.where(probability > settings.SCORE_THRESH_TEST)[0]
                best, order = probability[above].topk(min(settings.TOPK_CANDIDATES_TEST, len(above)))
                place = above[order]
                anchor = place // level_logits.shape[1]
                boxes.append(self.coder.decode_single(level_deltas[anchor], level_anchors[anchor]))
                scores.append(best)
                labels.append(place % level_logits.shape[1])
            all_boxes, all_scores, all_labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
            keep = batched_nms(all_boxes, all_scores, all_labels, settings.NMS_THRESH_TEST)[: self.detections]
            found.append({"boxes": all_boxes[keep], "scores": all_scores[keep], "labels": all_labels[keep]})
        return found
