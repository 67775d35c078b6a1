"""Shake-Shake networks for small images (Gastaldi, arXiv:1705.07485)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepaug.models.shake import shake_shake
from keepaug.models.staged import StagedNetwork, conv, initialise


class _Branch(nn.Module):
    """3 x 3 convolution, BatchNorm, ReLU, 3 x 3 convolution, BatchNorm; the input is activated already."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, active: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(active)), inplace=True)
        return cast(Tensor, self.bn2(self.conv2(hidden)))


class _Shortcut(nn.Module):
    """Two 1 x 1 convolutions side by side, one on the pixels one to the right and below; BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = conv(in_channels, out_channels // 2, 1)
        self.conv2 = conv(in_channels, out_channels // 2, 1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, active: Tensor) -> Tensor:
        step = self.stride
        straight = self.conv1(active[:, :, ::step, ::step])
        # As the released code: shift first, fill with zeros, then take every stride-th pixel.
        shifted = self.conv2(F.pad(active[:, :, 1:, 1:], (0, 1, 0, 1))[:, :, ::step, ::step])
        return cast(Tensor, self.bn(torch.cat([straight, shifted], dim=1)))


class ShakeShakeBlock(nn.Module):
    """Two branches, mixed with random weights, beside the identity (or the shifted 1 x 1 shortcut)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.branch1 = _Branch(in_channels, out_channels, stride)
        self.branch2 = _Branch(in_channels, out_channels, stride)
        changes = in_channels != out_channels
        self.shortcut = _Shortcut(in_channels, out_channels, stride) if changes else None

    def forward(self, features: Tensor) -> Tensor:
        """The block's output, not activated."""
        active = F.relu(features)
        mixed = shake_shake(self.branch1(active), self.branch2(active), training=self.training)
        return cast(Tensor, mixed + (features if self.shortcut is None else self.shortcut(active)))


def shake_shake_network(depth: int, width: int, num_classes: int) -> StagedNetwork:
    """Shake-Shake depth 2 x width d: three stages of (depth - 2) / 6 blocks, of d, 2 d and 4 d channels.

    Table 3 of the paper: 26 2x32d has 2.9 M parameters, 26 2x96d 26.2 M. The scheme is "Shake-Shake-Image".

    Args:
        depth: 6 n + 2; 26 in the paper.
        width: channels of the first stage, even; 32, 64 or 96 in the paper.
        num_classes: size of the output.

    Raises:
        ValueError: a depth that is not 6 n + 2, an odd width.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"the depth of a Shake-Shake network is 6 n + 2 (8, 14, 20, 26 ...), got {depth}")
    if width < 2 or width % 2:
        raise ValueError(f"the width of a Shake-Shake network must be even (32, 64, 96 ...), got {width}")
    channels, stages = 16, []
    for index in range(3):
        blocks = []
        for block in range((depth - 2) // 6):
            out = width * 2**index
            blocks.append(ShakeShakeBlock(channels, out, stride=2 if index > 0 and block == 0 else 1))
            channels = out
        stages.append(nn.Sequential(*blocks))
    stem = nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16))
    network = StagedNetwork(stem, stages, nn.ReLU(), channels=channels, num_classes=num_classes)
    initialise(network)
    return network
