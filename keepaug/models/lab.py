"""A small network for 32 x 32 images that learns fast: many seeds on a CPU or in minutes of a GPU.

After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498); own code.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepaug.models.staged import StagedNetwork, conv

# Channels of the three groups; the paper's networks for 94 % and for 95 %.
WIDTHS = {"lab": (64, 256, 256), "lab_large": (128, 384, 384)}
# The network's output is divided by this: a learning rate then serves the last layer as well as the others.
_DIVISOR = 9.0
_PATCH = 2


class LabNetwork(StagedNetwork):
    """Whitening convolution, three groups of two 3 x 3 convolutions, maximum over what is left, linear layer.

    Fully convolutional to that maximum: any image of 10 x 10 or more, so that a map of half the resolution
    needs no other network. The first layer is ordinary until `whiten` fixes its filters by images.

    Args:
        widths: channels of the three groups.
        num_classes: size of the output.
    """

    def __init__(self, widths: tuple[int, int, int], num_classes: int) -> None:
        filters = 2 * 3 * _PATCH**2
        stem = nn.Sequential(nn.Conv2d(3, filters, _PATCH), nn.GELU())
        stages = [_group(*pair) for pair in zip((filters, *widths[:2]), widths, strict=True)]
        super().__init__(stem, stages, nn.Identity(), channels=widths[-1], num_classes=num_classes)
        self.fc = nn.Linear(widths[-1], num_classes, bias=False)
        nn.init.zeros_(self.whitening_bias)

    @property
    def whitening(self) -> nn.Conv2d:
        """The first layer."""
        return cast(nn.Conv2d, self.stem[0])  # type: ignore[index]

    @property
    def whitening_bias(self) -> Tensor:
        """The first layer's bias; while it takes no gradient, the first group's input needs none either."""
        return cast(Tensor, self.whitening.bias)

    def whiten(self, images: Tensor) -> None:
        """Take the first layer's filters from training images, for good: they are not trained from here on.

        Args:
            images: (N, 3, H, W), normalised as the network will see them; some thousands are plenty.

        Raises:
            ValueError: too few patches to find their 12 directions.
        """
        filters = whitening_filters(images, _PATCH)
        with torch.no_grad():
            self.whitening.weight.copy_(torch.cat([filters, -filters]))
        self.whitening.weight.requires_grad_(False)

    def classify(self, features: Tensor) -> Tensor:
        """Logits from the last stage's output."""
        return cast(Tensor, self.fc(features.amax(dim=(2, 3))) / _DIVISOR)


def whitening_filters(images: Tensor, size: int, *, eps: float = 5e-4) -> Tensor:
    """Filters whose outputs over the images' patches are uncorrelated, of variance 1 (section 3.2).

    Args:
        images: (N, C, H, W).
        size: side of the patches in pixels.
        eps: added to the variances, against amplifying what hardly varies.

    Returns:
        (C size^2, C, size, size) float32: the eigenvectors of the patches' covariance over the square roots
        of their variances, the largest first.

    Raises:
        ValueError: fewer patches than a patch has values.
    """
    channels = images.shape[1]
    patches = F.unfold(images.float(), size).transpose(1, 2).flatten(0, 1).double()
    if len(patches) < patches.shape[1]:
        raise ValueError(
            f"{patches.shape[1]} whitening filters need at least as many patches, got {len(patches)} from "
            f"images of {tuple(images.shape)}: give more images"
        )
    variances, vectors = torch.linalg.eigh(patches.T.cov())
    filters = (vectors / (variances + eps).sqrt()).T.flip(0)
    return filters.float().view(-1, channels, size, size)


def lab_network(arch: str, num_classes: int) -> LabNetwork:
    """`lab` or `lab_large` with fresh weights.

    Args:
        arch: a key of `WIDTHS`.
        num_classes: size of the output.
    """
    return LabNetwork(WIDTHS[arch], num_classes)


def _group(in_channels: int, out_channels: int) -> nn.Sequential:
    out = out_channels
    first = nn.Sequential(_identity_conv(in_channels, out), nn.MaxPool2d(2), *_normalised(out))
    return nn.Sequential(first, nn.Sequential(_identity_conv(out, out), *_normalised(out)))


def _normalised(channels: int) -> tuple[nn.Module, nn.Module]:
    """BatchNorm with a bias only and statistics that follow fast, then the activation."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm, nn.GELU()


def _identity_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The first `in_channels` filters pass their channel on; the others are random (section 3.1)."""
    layer = conv(in_channels, out_channels, 3)
    nn.init.dirac_(layer.weight[:in_channels].data)
    return layer
