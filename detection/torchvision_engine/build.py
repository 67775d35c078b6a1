"""The detector of a config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from detection.torchvision_engine.backbone import Backbone, build_resnet, stage_channels
from detection.torchvision_engine.boxes import Targets
from detection.torchvision_engine.retinanet_head import DetectronRetinaNetHead
from detection.torchvision_engine.roi_heads import DetectronRoIHeads
from detection.torchvision_engine.rpn import DetectronRPN

_DETECTRON2_NAMES = {"loss_objectness": "loss_rpn_cls", "loss_rpn_box_reg": "loss_rpn_loc"}


class Detector(nn.Module):
    """Shared by both detectors: normalisation and batching.

    Args:
        cfg: the config.
        backbone: its feature maps.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, cfg: Any, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        values = (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        mean, std = (torch.tensor(list(one)).view(-1, 1, 1) for one in values)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def batch(self, images: list[Tensor]) -> ImageList:
        """Normalise (3, H, W) images of 0-255 in INPUT.FORMAT, pad them with 0 to one size."""
        device = self.pixel_mean.device
        normalised = [(image.to(device).float() - self.pixel_mean) / self.pixel_std for image in images]
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in normalised]
        multiple = self.backbone.size_divisibility
        height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
        padded = [
            F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in normalised
        ]
        return ImageList(torch.stack(padded), sizes)

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Named losses of a batch; the total is their sum."""
        raise NotImplementedError

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Boxes (K, 4) in the pixels of the given images, scores (K,), labels (K,) from 0, best first."""
        raise NotImplementedError


class FasterRCNN(Detector):
    """Faster R-CNN, C4 or FPN."""

    def __init__(self, cfg: Any) -> None:
        network = build_resnet(cfg)
        super().__init__(cfg, Backbone(network, cfg))
        channels = stage_channels(cfg)
        c4 = cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads"
        width = channels["res4"] if c4 else cfg.MODEL.FPN.OUT_CHANNELS
        self.rpn = DetectronRPN(cfg, cfg.MODEL.RPN.IN_FEATURES, width)
        block, inputs = (network.layer4, channels["res5"]) if c4 else (None, width)
        self.roi_heads = DetectronRoIHeads(cfg, block, inputs)

    def _run(
        self, images: list[Tensor], targets: Targets | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        batch = self.batch(images)
        features = self.backbone(batch.tensors)
        proposals, rpn_losses = self.rpn(batch, {name: features[name] for name in self.rpn.names}, targets)
        detections, losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        named = {_DETECTRON2_NAMES[name]: value for name, value in rpn_losses.items()}
        return detections, {**losses, **named}

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Of RPN and RoI heads."""
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        return self._run(images, shifted)[1]

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections; torchvision's label 0 is the background."""
        return [{**found, "labels": found["labels"] - 1} for found in self._run(images, None)[0]]


class RetinaNet(Detector):
    """RetinaNet."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg, Backbone(build_resnet(cfg), cfg))
        self.names = list(cfg.MODEL.RETINANET.IN_FEATURES)
        self.head = DetectronRetinaNetHead(cfg, self.names, cfg.MODEL.FPN.OUT_CHANNELS)

    def _outputs(self, images: list[Tensor]) -> tuple[ImageList, list[Tensor], dict[str, Tensor], Tensor]:
        batch = self.batch(images)
        pyramid = self.backbone(batch.tensors)
        features = [pyramid[name] for name in self.names]
        return batch, features, self.head(features), self.head.anchors(batch, features)[0]

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Focal and box loss."""
        _, _, outputs, anchors = self._outputs(images)
        return self.head.losses(outputs, anchors, targets)

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections."""
        _, features, outputs, anchors = self._outputs(images)
        counts = [
            feature.shape[2] * feature.shape[3] * number
            for feature, number in zip(features, self.head.anchors.num_anchors_per_location(), strict=True)
        ]
        return self.head.detect(outputs, anchors, counts)


def build_model(cfg: Any) -> Detector:
    """The detector of a config with random weights, in training mode.

    Args:
        cfg: `detection.config` tree; keys not honoured must have been refused (`honoured.unhonoured`).
    """
    return RetinaNet(cfg) if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else FasterRCNN(cfg)
