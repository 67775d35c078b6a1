"""Wide ResNets for small images (Zagoruyko and Komodakis, arXiv:1605.07146)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from keepaug.models.staged import StagedNetwork, conv, initialise

SHORTCUTS = ("activated", "raw")


class WideBlock(nn.Module):
    """BatchNorm, ReLU, 3 x 3 convolution, twice, with dropout in between, beside the identity.

    Where the shape changes the shortcut is a 1 x 1 convolution of the activated input
    (`shortcut="activated"`) or of the input itself ("raw").
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, dropout: float, shortcut: str
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.dropout = dropout
        self.activated = shortcut == "activated"
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, 1, stride=stride) if changes else None

    def forward(self, features: Tensor) -> Tensor:
        """The block's output, not activated."""
        active = F.relu(self.bn1(features), inplace=True)
        if self.shortcut is not None:
            features = self.shortcut(active if self.activated else features)
        branch = F.relu(self.bn2(self.conv1(active)), inplace=True)
        if self.dropout:
            branch = F.dropout(branch, self.dropout, self.training)
        return cast(Tensor, features + self.conv2(branch))


def wide_resnet(
    depth: int, width: int, num_classes: int, *, dropout: float = 0.0, shortcut: str = "activated"
) -> StagedNetwork:
    """WRN-depth-width: three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times width channels.

    Args:
        depth: 6 n + 4: 10, 16, 22, 28, 40 ...
        width: the factor, 1 or more; 10 has 36.5 M parameters at depth 28, 2 has 1,467,610.
        num_classes: size of the output.
        dropout: between a block's convolutions; 0.3 in the Wide ResNet paper and in Cutout's released code
            for WRN-28-10, none in AutoAugment's and in UDA's.
        shortcut: what goes into the 1 x 1 convolution where the shape changes: "activated" as in the authors'
            and Cutout's code, "raw" as in UDA's (google-research/uda, `residual_only_activation`), which also
            draws the last layer's weights up to 1 / sqrt(num_classes), not 1 / sqrt(channels); equal sizes.

    Raises:
        ValueError: a depth that is not 6 n + 4, a width below 1, dropout outside [0, 1), unknown shortcut.
    """
    if depth < 10 or (depth - 4) % 6:
        near = max(10, round((depth - 4) / 6) * 6 + 4)
        raise ValueError(f"the depth of a Wide ResNet is 6 n + 4 (10, 16, 22 ...), got {depth}; try {near}")
    if width < 1:
        raise ValueError(f"the width of a Wide ResNet must be 1 or more, got {width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut must be one of {', '.join(SHORTCUTS)}, got {shortcut!r}")
    channels, stages = 16, []
    for index in range(3):
        blocks = []
        for block in range((depth - 4) // 6):
            stride = 2 if index > 0 and block == 0 else 1
            out = 16 * width * 2**index
            blocks.append(WideBlock(channels, out, stride=stride, dropout=dropout, shortcut=shortcut))
            channels = out
        stages.append(nn.Sequential(*blocks))
    tail = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    network = StagedNetwork(conv(3, 16, 3), stages, tail, channels=channels, num_classes=num_classes)
    initialise(network)
    if shortcut == "raw":
        bound = num_classes**-0.5
        nn.init.uniform_(network.fc.weight, -bound, bound)
    return network
