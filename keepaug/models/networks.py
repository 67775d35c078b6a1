"""Networks by name: torchvision's ResNets, with the ImageNet stem or the one for small images, and Wide ResNets."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torchvision.models import resnet18, resnet34, resnet50, resnet101

from keepaug.models.wide_resnet import wide_resnet

__all__ = ["ARCHITECTURES", "STEMS", "build_network"]

ARCHITECTURES = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}
STEMS = ("imagenet", "cifar")


def build_network(arch: str, num_classes: int, *, stem: str = "imagenet", **options: Any) -> nn.Module:
    """A network with random weights.

    Args:
        arch: one of `ARCHITECTURES`, or `wrnDEPTH_WIDTH` (wrn28_10, wrn28_2, wrn16_1 ...).
        num_classes: size of the output.
        stem: "imagenet" (7 x 7 stride 2 and max pooling), or "cifar" (3 x 3 stride 1, no pooling), as the ResNet-18 of
            Cutout's released code. Only the former can become a Detectron2 backbone. Ignored by Wide ResNets.
        options: of the architecture: `dropout`, `shortcut` for Wide ResNets.

    Raises:
        ValueError: unknown architecture or stem, or fewer than one class.
    """
    wide = re.fullmatch(r"wrn(\d+)_(\d+)", arch)
    if wide:
        return wide_resnet(int(wide[1]), int(wide[2]), num_classes, **options)
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
    network = ARCHITECTURES[arch](weights=None, num_classes=num_classes, **options)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network
