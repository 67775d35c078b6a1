"""PyramidNet (Han et al., arXiv:1610.02915) with ShakeDrop, for small images."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from keepaug.models.shake import ShakeDrop
from keepaug.models.staged import StagedNetwork, conv, initialise

EXPANSION = 4


class PyramidBlock(nn.Module):
    """Bottleneck with a BatchNorm before, no activation at either end, and a zero-padded identity.

    Args:
        in_channels: of the input.
        width: of the 3 x 3 convolution; the output has four times as many channels.
        stride: 1 or 2; the identity is then averaged over 2 x 2 pixels.
        drop: ShakeDrop's probability.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int = 1, drop: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, EXPANSION * width, 1)
        self.bn4 = nn.BatchNorm2d(EXPANSION * width)
        self.shake_drop = ShakeDrop(drop)
        self.stride = stride
        self.padding = EXPANSION * width - in_channels

    def forward(self, features: Tensor) -> Tensor:
        """The block's output, not activated."""
        branch = self.conv1(self.bn1(features))
        branch = self.conv2(F.relu(self.bn2(branch), inplace=True))
        branch = self.conv3(F.relu(self.bn3(branch), inplace=True))
        branch = self.shake_drop(self.bn4(branch))
        if self.stride > 1:
            features = F.avg_pool2d(features, self.stride, ceil_mode=True)
        return branch + F.pad(features, (0, 0, 0, 0, 0, self.padding))


def pyramid_net(depth: int, alpha: int, num_classes: int, *, shake_drop: float = 0.5) -> StagedNetwork:
    """PyramidNet-depth with bottlenecks, whose width grows by `alpha` from the first block to the last.

    Depth 272, alpha 200: 26.0 M parameters (table 4 of the PyramidNet paper; "26M" in AutoAugment's).

    Args:
        depth: 9 n + 2: 11, 20, 29 ... 164, 272.
        alpha: widening, 1 or more; 0: 200.
        num_classes: size of the output.
        shake_drop: the last block's probability of being perturbed, 1 - p_L; linear from the first block on,
            l / L of it in block l (0.5 in AutoAugment's code); 0: none.

    Raises:
        ValueError: a depth that is not 9 n + 2, alpha below 1, shake_drop outside [0, 1].
    """
    if depth < 11 or (depth - 2) % 9:
        near = max(11, round((depth - 2) / 9) * 9 + 2)
        raise ValueError(f"a bottleneck PyramidNet's depth is 9 n + 2 (11 ... 272), got {depth}; try {near}")
    alpha = alpha or 200
    if alpha < 1:
        raise ValueError(f"alpha must be 1 or more, got {alpha}")
    if not 0 <= shake_drop <= 1:
        raise ValueError(f"shake_drop must be in [0, 1], got {shake_drop}")
    num_blocks = (depth - 2) // 9
    channels, stages = 16, []
    for index in range(3):
        blocks = []
        for block in range(num_blocks):
            number = index * num_blocks + block + 1
            share = number / (3 * num_blocks)
            width = math.floor(16 + alpha * share + 0.5)
            stride = 2 if index > 0 and block == 0 else 1
            blocks.append(PyramidBlock(channels, width, stride=stride, drop=shake_drop * share))
            channels = EXPANSION * width
        stages.append(nn.Sequential(*blocks))
    stem = nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16))
    tail = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    network = StagedNetwork(stem, stages, tail, channels=channels, num_classes=num_classes)
    initialise(network)
    return network
