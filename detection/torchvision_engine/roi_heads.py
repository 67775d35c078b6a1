"""torchvision's RoI heads with Detectron2's pooling, initialisation, loss and selection of detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from detection.torchvision_engine.boxes import Sizes, Targets, box_loss


class Pooler(nn.Module):
    """RoIAlign with half-pixel alignment, each box on the pyramid level of its size (FPN paper, Eq. 1).

    Args:
        names: feature maps in rising stride.
        resolution: side of the output.
        sampling_ratio: 0 samples as many points as a bin has pixels.
    """

    def __init__(self, names: Sequence[str], resolution: int, sampling_ratio: int) -> None:
        super().__init__()
        self.names, self.resolution, self.sampling_ratio = list(names), resolution, sampling_ratio
        self.levels = [int(name[-1]) for name in names]

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], image_sizes: Any) -> Tensor:
        """(total boxes, C, resolution, resolution)."""
        index = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat([index, torch.cat(boxes)], dim=1)
        if len(self.names) == 1:
            return self._align(features[self.names[0]], rois, self.levels[0])
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=0).sqrt()
        level = torch.floor(4 + torch.log2(side / 224 + 1e-8)).clamp(self.levels[0], self.levels[-1])
        some = features[self.names[0]]
        pooled = some.new_zeros(len(rois), some.shape[1], self.resolution, self.resolution)
        for name, number in zip(self.names, self.levels, strict=True):
            here = torch.nonzero(level == number)[:, 0]
            pooled.index_put_((here,), self._align(features[name], rois[here], number))
        return pooled

    def _align(self, feature: Tensor, rois: Tensor, level: int) -> Tensor:
        return roi_align(feature, rois, self.resolution, 1 / 2**level, self.sampling_ratio, aligned=True)


class Res5Head(nn.Module):
    """C4's head: the fifth stage on pooled features, then the mean."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.layer4 = stage

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, channels)."""
        mean: Tensor = self.layer4(pooled).mean(dim=(2, 3))
        return mean


def _predictor(channels: int, num_classes: int) -> FastRCNNPredictor:
    predictor = FastRCNNPredictor(channels, num_classes + 1)
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    for layer in (predictor.cls_score, predictor.bbox_pred):
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        predictor.bbox_pred.weight[:4] = 0  # the background has no box; Detectron2 has no such rows
    return predictor


class DetectronRoIHeads(RoIHeads):
    """torchvision's RoI heads with Detectron2's pooling, initialisation and L1 loss.

    Args:
        cfg: the config.
        stage: the fifth stage for C4; None builds the two-layer head of FPN.
        channels: of the head's output (C4) or of the pyramid (FPN).
    """

    def __init__(self, cfg: Any, stage: nn.Module | None, channels: int) -> None:
        heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
        pooler = Pooler(heads.IN_FEATURES, box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO)
        head: nn.Module
        if stage is not None:
            head = Res5Head(stage)
        else:
            layers = TwoMLPHead(channels * box.POOLER_RESOLUTION**2, box.FC_DIM)
            for layer in (layers.fc6, layers.fc7):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)
            head, channels = layers, box.FC_DIM
        super().__init__(
            pooler,
            head,
            _predictor(channels, heads.NUM_CLASSES),
            fg_iou_thresh=heads.IOU_THRESHOLDS[0],
            bg_iou_thresh=heads.IOU_THRESHOLDS[0],
            batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
            positive_fraction=heads.POSITIVE_FRACTION,
            bbox_reg_weights=tuple(box.BBOX_REG_WEIGHTS),
            score_thresh=heads.SCORE_THRESH_TEST,
            nms_thresh=heads.NMS_THRESH_TEST,
            detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        self.beta, self.box_weight = box.SMOOTH_L1_BETA, box.BBOX_REG_LOSS_WEIGHT
        self.append_truth = heads.PROPOSAL_APPEND_GT

    def add_gt_proposals(self, proposals: list[Tensor], gt_boxes: list[Tensor]) -> list[Tensor]:
        """With the true boxes among the proposals, unless the config says no."""
        if not self.append_truth:
            return proposals
        found: list[Tensor] = super().add_gt_proposals(proposals, gt_boxes)
        return found

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation, losses in training."""
        if not self.training:
            detections: tuple[list[dict[str, Tensor]], dict[str, Tensor]] = super().forward(
                features, proposals, image_shapes
            )
            return detections
        sampled, _, labels, wanted = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, sampled, image_shapes))
        logits, deltas = self.box_predictor(pooled)
        losses = self.losses(logits, deltas, torch.cat(labels), torch.cat(wanted))
        return [], losses

    def losses(self, logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, and L1 of the true class's box, over the number of all samples.

        Args:
            logits: (R, K + 1), the background first.
            deltas: (R, 4 (K + 1)).
            labels: (R,); 0 is the background.
            wanted: (R, 4) encoded boxes.
        """
        number = max(len(labels), 1)
        positive = torch.where(labels > 0)[0]
        own = deltas.reshape(len(labels), -1, 4)[positive, labels[positive]]
        boxes = box_loss(own, wanted[positive], self.beta) / number
        classes = F.cross_entropy(logits, labels, reduction="sum") / number
        return {"loss_cls": classes, "loss_box_reg": self.box_weight * boxes}

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: Sizes,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, scores and labels (from 1) of each image.

        torchvision drops boxes thinner than 0.01 pixels before suppression, Detectron2 empty ones after it.
        """
        counts = [len(boxes) for boxes in proposals]
        boxes_found, scores_found, labels_found = [], [], []
        all_boxes = self.box_coder.decode(box_regression, proposals).split(counts)
        all_scores = F.softmax(class_logits, -1).split(counts)
        for boxes, scores, shape in zip(all_boxes, all_scores, image_shapes, strict=True):
            finite = boxes.isfinite().flatten(1).all(dim=1) & scores.isfinite().all(dim=1)
            boxes, scores = clip_boxes_to_image(boxes[finite], shape)[:, 1:], scores[finite, 1:]
            proposal, label = torch.where(scores > self.score_thresh)
            boxes, scores = boxes[proposal, label], scores[proposal, label]
            keep = batched_nms(boxes, scores, label, self.nms_thresh)[: self.detections_per_img]
            boxes_found.append(boxes[keep])
            scores_found.append(scores[keep])
            labels_found.append(label[keep] + 1)
        return boxes_found, scores_found, labels_found
