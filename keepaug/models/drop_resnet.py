"""torchvision's ResNets with dropout, DropPath or DropBlock, as Ghiasi et al. (arXiv:1810.12890, 4.1).

The baselines "Dropout", "DropPath" and "DropBlock" of table 6 of the KeepAugment paper are that paper's. The
keys of the weights are torchvision's.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}
BLOCK_SIZE = 7


def drop_block(features: Tensor, probability: Tensor, *, block_size: int = BLOCK_SIZE) -> Tensor:
    """Set squares of every channel and image to 0 and scale the rest up (DropBlock's algorithm 1).

    Seeds are drawn where a whole block fits, with the rate gamma of equation 1, so that about the share
    `probability` is dropped. What is kept is divided by its share in the batch.

    Args:
        features: (N, C, H, W) floating.
        probability: () share to drop, 1 - keep_prob, on the same device (a tensor, not to recompile).
        block_size: side of a block; at most the features' smaller side is used.
    """
    height, width = features.shape[2:]
    side = min(block_size, height, width)
    valid = (height - side + 1, width - side + 1)
    gamma = probability * (height * width / (side**2 * valid[0] * valid[1]))
    seeds = torch.rand(*features.shape[:2], *valid, device=features.device) < gamma
    dropped = F.max_pool2d(F.pad(seeds.to(features.dtype), [side - 1] * 4), side, stride=1)
    kept = 1 - dropped
    share = kept.mean(dtype=torch.float32).clamp(min=1 / kept.numel())
    return features * kept / share.to(features.dtype)


class _Scheduled(nn.Module):
    """A probability that `schedule_drops` moves from 0 to its target; not part of the state dict."""

    now: Tensor

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("now", torch.tensor(target), persistent=False)

    def extra_repr(self) -> str:
        """Shown by print()."""
        return f"target={self.target:g}"


class DropBlock(_Scheduled):
    """`drop_block` in training, nothing in evaluation.

    Args:
        target: 1 - keep_prob at the end of training.
        block_size: side of a block.
    """

    def __init__(self, target: float, *, block_size: int = BLOCK_SIZE) -> None:
        super().__init__(target)
        self.block_size = block_size

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return drop_block(features, self.now, block_size=self.block_size) if self.training else features


class DropPath(_Scheduled):
    """Drops a residual branch per image in training and scales up the others, nothing in evaluation.

    Args:
        target: 1 - keep_prob at the end of training.
    """

    def forward(self, branch: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if not self.training:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, 1, device=branch.device) >= self.now
        return branch * (kept / (1 - self.now)).to(branch.dtype)


class _DropBasicBlock(BasicBlock):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop, self.drop_skip, self.drop_path = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.drop(self.relu(self.bn1(self.conv1(x))))
        out = self.drop(self.bn2(self.conv2(out)))
        skip = self.drop_skip(x if self.downsample is None else self.downsample(x))
        return cast(Tensor, self.relu(self.drop_path(out) + skip))


class _DropBottleneck(Bottleneck):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop, self.drop_skip, self.drop_path = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.drop(self.relu(self.bn1(self.conv1(x))))
        out = self.drop(self.relu(self.bn2(self.conv2(out))))
        out = self.drop(self.bn3(self.conv3(out)))
        skip = self.drop_skip(x if self.downsample is None else self.downsample(x))
        return cast(Tensor, self.relu(self.drop_path(out) + skip))


def drop_resnet(
    arch: str, num_classes: int, *, dropout: float = 0.0, drop_path: float = 0.0, drop_block: float = 0.0
) -> ResNet:
    """A ResNet that drops activations in its last two groups (layer3 and layer4).

    All three are the settings of the DropBlock paper: they act on the last two groups, with a quarter of the
    probability in the first of these. Dropout is fixed and follows each convolution's BatchNorm and ReLU in
    the residual branches. DropBlock does the same with 7 x 7 blocks and on the skip connections as well,
    DropPath drops whole branches of the last group only (where the paper found it best); the probability of
    these two is meant to rise, see `schedule_drops`.

    Args:
        arch: resnet18, resnet34, resnet50 or resnet101.
        num_classes: size of the output.
        dropout: probability, 1 - keep_prob; 0.3 in the paper's table 1.
        drop_path: the same, 0.1.
        drop_block: the same, 0.1.

    Raises:
        ValueError: unknown architecture, a probability outside [0, 1).
    """
    if arch not in LAYERS:
        raise ValueError(f"dropout, drop_path and drop_block are for {', '.join(LAYERS)}, got {arch!r}")
    for name, value in (("dropout", dropout), ("drop_path", drop_path), ("drop_block", drop_block)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    kind, layers = LAYERS[arch]
    # Building draws the same random weights as torchvision's function.
    block = _DropBasicBlock if kind is BasicBlock else _DropBottleneck
    network = ResNet(block, layers, num_classes=num_classes)
    for stage, share in ((network.layer3, 0.25), (network.layer4, 1.0)):
        for block in stage:
            drops: list[nn.Module] = []
            if dropout:
                drops.append(nn.Dropout(dropout * share))
            if drop_block:
                drops.append(DropBlock(drop_block * share))
                block.drop_skip = DropBlock(drop_block * share)
            if drops:
                block.drop = nn.Sequential(*drops)
            if drop_path and stage is network.layer4:
                block.drop_path = DropPath(drop_path)
    return network


@torch.no_grad()
def schedule_drops(network: nn.Module, progress: float) -> None:
    """Set DropBlock's and DropPath's probabilities to `progress` times their targets (the paper's section 3).

    Call it before each step with the share of training that is done; without it the targets hold from the
    start. Networks without such layers are left alone.

    Raises:
        ValueError: progress outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    for module in network.modules():
        if isinstance(module, _Scheduled):
            module.now.fill_(module.target * progress)
