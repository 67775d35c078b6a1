"""The common shape of our networks: a stem, stages of blocks, a tail, average pooling and a linear layer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class StagedNetwork(nn.Module):
    """stem -> stages -> tail -> average pooling -> linear layer.

    The explicit stages are what the early head taps: no hooks, so that torch.compile sees plain code.

    Args:
        stem: from images to the first stage's input.
        stages: each an nn.Sequential of blocks.
        tail: what comes between the last stage and the pooling (an activation, perhaps with BatchNorm).
        channels: of the tail's output.
        num_classes: size of the output.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: list[nn.Sequential],
        tail: nn.Module,
        *,
        channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.tail = tail
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) images to (N, classes) logits."""
        features = self.stem(images)
        for stage in self.stages:
            features = stage(features)
        return self.classify(features)

    def classify(self, features: Tensor) -> Tensor:
        """Logits from the last stage's output."""
        return cast(Tensor, self.fc(self.tail(features).mean(dim=(2, 3))))


def conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    pad = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, pad, groups=groups, bias=False)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """He et al.'s normal initialisation by fan-out of all convolutions; linear biases 0.

    The standard deviation sqrt(2 / (k * k * out_channels)) is that of the released Wide ResNet, PyramidNet
    and AutoAugment code; BatchNorm starts as the identity, as PyTorch leaves it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
