"""torchvision's ResNets by name, with the ImageNet stem or the one for small images."""

from __future__ import annotations

from torch import nn
from torchvision.models import ResNet, resnet18, resnet34, resnet50, resnet101

__all__ = ["ARCHITECTURES", "STEMS", "build_network"]

ARCHITECTURES = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}
STEMS = ("imagenet", "cifar")


def build_network(arch: str, num_classes: int, *, stem: str = "imagenet") -> ResNet:
    """A network with random weights.

    Args:
        arch: one of `ARCHITECTURES`.
        num_classes: size of the output.
        stem: "imagenet" (7 x 7 stride 2 and max pooling), or "cifar" (3 x 3 stride 1, no pooling), as the ResNet-18 of
            Cutout's released code. Only the former can become a Detectron2 backbone.

    Raises:
        ValueError: unknown architecture or stem, or fewer than one class.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
    network = ARCHITECTURES[arch](weights=None, num_classes=num_classes)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network
