"""torchvision's RPN, RoI heads and RetinaNet head with Detectron2's anchors, pooling and losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import _utils as utils
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, box_iou, roi_align, sigmoid_focal_loss

__all__ = [
    "Anchors",
    "DetectronRPN",
    "DetectronRetinaNetHead",
    "DetectronRoIHeads",
    "Pooler",
    "Res5Head",
    "box_loss",
]

Targets = list[dict[str, Tensor]]


def box_loss(predicted: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Sum of smooth L1, which with beta 0 is L1 (fvcore's rule)."""
    if beta < 1e-5:
        return F.l1_loss(predicted, wanted, reduction="sum")
    return F.smooth_l1_loss(predicted, wanted, beta=beta, reduction="sum")


class Anchors(nn.Module):
    """Detectron2's anchors: sizes outside, aspect ratios inside, unrounded, on the nominal strides.

    Args:
        cfg: the config.
        names: the feature maps, for example p2 to p6.
    """

    def __init__(self, cfg: Any, names: Sequence[str]) -> None:
        super().__init__()
        settings = cfg.MODEL.ANCHOR_GENERATOR
        self.strides = [2 ** int(name[-1]) for name in names]
        self.offset = settings.OFFSET
        sizes, ratios = list(settings.SIZES), list(settings.ASPECT_RATIOS)
        sizes = sizes * len(names) if len(sizes) == 1 else sizes
        ratios = ratios * len(names) if len(ratios) == 1 else ratios
        for level, (level_sizes, level_ratios) in enumerate(zip(sizes, ratios, strict=True)):
            self.register_buffer(f"cells{level}", _cells(level_sizes, level_ratios), persistent=False)

    def num_anchors_per_location(self) -> list[int]:
        """By feature map."""
        return [len(getattr(self, f"cells{level}")) for level in range(len(self.strides))]

    def forward(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """(total, 4) x0, y0, x1, y1 for each image."""
        found = []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            height, width = feature.shape[-2:]
            start = self.offset * stride
            y = torch.arange(start, height * stride, step=stride, dtype=torch.float32, device=feature.device)
            x = torch.arange(start, width * stride, step=stride, dtype=torch.float32, device=feature.device)
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            found.append((shifts + getattr(self, f"cells{level}")).reshape(-1, 4))
        return [torch.cat(found)] * len(images.image_sizes)


def _cells(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    cells = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            cells.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(cells)


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
            pooled = pooled.index_put((here,), self._align(features[name], rois[here], number))
        return pooled

    def _align(self, feature: Tensor, rois: Tensor, level: int) -> Tensor:
        return roi_align(feature, rois, self.resolution, 1 / 2**level, self.sampling_ratio, aligned=True)


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
        self.min_size = max(
            float(cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE), 1e-8
        )  # Detectron2 keeps sides > MIN_SIZE
        self.box_coder = utils.BoxCoder(tuple(rpn.BBOX_REG_WEIGHTS))
        self.batch_size_per_image = rpn.BATCH_SIZE_PER_IMAGE
        self.beta = rpn.SMOOTH_L1_BETA
        self.weight, self.box_weight = rpn.LOSS_WEIGHT, rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both losses divided by the nominal number of samples (Detectron2's normaliser), L1 for the boxes."""
        positive, negative = self.fg_bg_sampler(labels)
        taken_positive = torch.where(torch.cat(positive))[0]
        taken = torch.cat([taken_positive, torch.where(torch.cat(negative))[0]])
        normaliser = self.batch_size_per_image * len(labels)
        wanted = torch.cat(regression_targets)[taken_positive]
        boxes = box_loss(pred_bbox_deltas[taken_positive], wanted, self.beta)
        logits, target = objectness.flatten()[taken], torch.cat(labels)[taken]
        classes = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return self.weight * classes / normaliser, self.box_weight * boxes / normaliser


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
        image_shapes: list[tuple[int, int]],
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
        """Cross-entropy, and L1 of the true class's box over the number of all samples; label 0 is the background."""
        positive = torch.where(labels > 0)[0]
        own = deltas.reshape(len(labels), -1, 4)[positive, labels[positive]]
        boxes = box_loss(own, wanted[positive], self.beta) / max(len(labels), 1)
        return {"loss_cls": F.cross_entropy(logits, labels), "loss_box_reg": self.box_weight * boxes}


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
        self.matcher = utils.Matcher(settings.IOU_THRESHOLDS[1], settings.IOU_THRESHOLDS[0], True)
        self.coder = utils.BoxCoder(tuple(settings.BBOX_REG_WEIGHTS))
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
            boxes = boxes + box_loss(
                outputs["bbox_regression"][index][here], deltas, settings.SMOOTH_L1_LOSS_BETA
            )
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
