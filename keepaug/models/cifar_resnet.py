"""The ResNets for small images of He et al. (arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from keepaug.models.staged import StagedNetwork, conv, initialise

SHORTCUTS = ("padded", "projection")


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm beside the identity.

    Where the shape changes, every second pixel is taken and the channels are padded with zeros on both sides
    (`shortcut="padded"`, the paper's option A), or a 1 x 1 convolution and BatchNorm ("projection", B).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = out_channels - in_channels
        changes = stride != 1 or self.padding > 0
        self.shortcut: nn.Sequential | None = None
        if changes and shortcut == "projection":
            projection = conv(in_channels, out_channels, 1, stride=stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        """The block's output, activated."""
        branch = F.relu(self.bn1(self.conv1(features)), inplace=True)
        branch = self.bn2(self.conv2(branch))
        if self.shortcut is not None:
            features = self.shortcut(features)
        elif self.padding or self.stride > 1:
            before = self.padding // 2
            features = features[:, :, :: self.stride, :: self.stride]
            features = F.pad(features, (0, 0, 0, 0, before, self.padding - before))
        return F.relu(cast(Tensor, branch + features), inplace=True)


def cifar_resnet(depth: int, num_classes: int, *, shortcut: str = "padded") -> StagedNetwork:
    """ResNet-depth: three stages of (depth - 2) / 6 blocks with 16, 32 and 64 channels.

    Args:
        depth: 6 n + 2: 20, 32, 44, 56, 110, 1202 in the paper; 110 has 1.7 M parameters.
        num_classes: size of the output.
        shortcut: "padded" (option A, which the paper uses for these networks) or "projection" (option B, as
            the ResNets of CutMix's and PyramidNet's released code).

    Raises:
        ValueError: a depth that is not 6 n + 2, unknown shortcut.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"the depth of a ResNet for small images is 6 n + 2 (8, 14 ... 110), got {depth}")
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut must be one of {', '.join(SHORTCUTS)}, got {shortcut!r}")
    channels, stages = 16, []
    for index in range(3):
        blocks = []
        for block in range((depth - 2) // 6):
            out = 16 * 2**index
            stride = 2 if index > 0 and block == 0 else 1
            blocks.append(CifarBlock(channels, out, stride=stride, shortcut=shortcut))
            channels = out
        stages.append(nn.Sequential(*blocks))
    stem = nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    network = StagedNetwork(stem, stages, nn.Identity(), channels=channels, num_classes=num_classes)
    initialise(network)
    return network
