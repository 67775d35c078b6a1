"""Where a network is tapped for an early head: its first stage or block, and the rest, without hooks."""

from __future__ import annotations

import copy
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torchvision import models as tv

from keepaug.choices import AFTER
from keepaug.models.staged import StagedNetwork
from keepaug.modes import evaluating

_INCEPTION = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
    "maxpool2",
)  # fmt: skip
# Children that run first, the child that ends with the first stage, how many of its elements (None: all).
_TORCHVISION: dict[type[nn.Module], tuple[tuple[str, ...], str, int | None]] = {
    tv.ResNet: (("conv1", "bn1", "relu", "maxpool"), "layer1", None),
    tv.AlexNet: ((), "features", 3),
    tv.ConvNeXt: ((), "features", 2),
    tv.DenseNet: ((), "features", 5),
    tv.EfficientNet: ((), "features", 2),
    tv.GoogLeNet: (("conv1", "maxpool1", "conv2", "conv3", "maxpool2"), "inception3a", None),
    tv.Inception3: (_INCEPTION, "Mixed_5b", None),
    tv.MNASNet: ((), "layers", 9),
    tv.MobileNetV2: ((), "features", 2),
    tv.MobileNetV3: ((), "features", 2),
    tv.RegNet: (("stem",), "trunk_output", 1),
    tv.ShuffleNetV2: (("conv1", "maxpool"), "stage2", None),
    tv.SqueezeNet: ((), "features", 4),
    tv.SwinTransformer: ((), "features", 2),
    tv.VGG: ((), "features", -1),  # up to the first pooling
}


class EarlySplit(Protocol):
    """A network in two parts that share its layers."""

    channels: int
    num_classes: int

    def early(self, images: Tensor) -> Tensor:
        """(N, channels, h, w) features of the first part; the second does not run."""

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The early features and the network's logits."""


def split(network: nn.Module, after: str) -> EarlySplit:
    """Find the first stage of one of our networks, of torchvision's or of timm's.

    Args:
        network: built by `build_network`, or the like.
        after: "stage", or "block" for the first block alone.

    Raises:
        ValueError: unknown `after`, or a network that has no such block.
        TypeError: a network of another kind.
    """
    if after not in AFTER:
        raise ValueError(f"after must be one of {', '.join(AFTER)}, got {after!r}")
    if isinstance(network, StagedNetwork):
        return _Staged(network, after)
    for kind, where in _TORCHVISION.items():
        if isinstance(network, kind):
            return _Torchvision(network, after, *where)
    if all(hasattr(network, name) for name in ("forward_intermediates", "forward_head", "feature_info")):
        return _Timm(network, after)
    known = ", ".join(kind.__name__ for kind in _TORCHVISION)
    raise TypeError(
        f"no early head is known for {type(network).__name__}: it needs one of our networks, torchvision's "
        f"{known} or a timm network with forward_intermediates; use saliency full or low_resolution instead"
    )


class _Staged:
    def __init__(self, network: StagedNetwork, after: str) -> None:
        self.network = network
        self.in_block = after == "block"
        self.channels = _probe(network, self.early).shape[1]
        self.num_classes = network.fc.out_features

    def early(self, images: Tensor) -> Tensor:
        stage = cast(nn.Sequential, self.network.stages[0])
        first = stage[0] if self.in_block else stage
        return cast(Tensor, first(self.network.stem(images)))

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        early = features = self.early(images)
        if self.in_block:
            for block in cast(nn.Sequential, self.network.stages[0])[1:]:
                features = block(features)
        for stage in self.network.stages[1:]:
            features = stage(features)
        return early, self.network.classify(features)


class _Torchvision:
    """The second part: a shallow copy of the network whose first children do nothing."""

    def __init__(
        self, network: nn.Module, after: str, before: tuple[str, ...], name: str, count: int | None
    ) -> None:
        if getattr(network, "aux_logits", False):
            raise ValueError(f"{type(network).__name__} has heads of its own: build it with aux_logits=False")
        child = getattr(network, name)
        if count == -1:
            count = 1 + next(i for i, layer in enumerate(child) if isinstance(layer, nn.MaxPool2d))
        layers = [child] if count is None else list(child)
        first, rest = layers[:count] if count else layers, layers[count:] if count else []
        if after == "block":
            stage = first[-1]
            if type(stage).forward is not nn.Sequential.forward:
                raise ValueError(
                    f"the first stage of {type(network).__name__} is not a sequence of blocks: set "
                    f"early_after=stage"
                )
            first, rest = [*first[:-1], stage[0]], [*stage[1:], *rest]
        self.first = nn.Sequential(*(getattr(network, one) for one in before), *first)
        self.rest = copy.copy(network)
        self.rest._modules = dict(network._modules)
        self.rest._modules.update({one: nn.Identity() for one in before}, **{name: nn.Sequential(*rest)})
        self.channels_last = isinstance(network, tv.SwinTransformer)
        features, logits = _probe(network, self.both, side=32 if isinstance(network, tv.ResNet) else 96)
        self.channels, self.num_classes = features.shape[1], logits.shape[1]

    def early(self, images: Tensor) -> Tensor:
        features = self.first(images)
        return cast(Tensor, features.permute(0, 3, 1, 2) if self.channels_last else features)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.first(images)
        early = features.permute(0, 3, 1, 2) if self.channels_last else features
        return early, self.rest(features)


class _Timm:
    """By timm's own `forward_intermediates`, which can stop early."""

    def __init__(self, network: Any, after: str) -> None:
        if after == "block":
            raise ValueError("timm's networks give features per stage: set early_after=stage")
        # Index 0 is a stem's activation in some families (ResNets), the first stage in others.
        infos = list(network.feature_info)
        stems = ("act1", "conv1", "bn1", "stem", "conv_stem", "features.norm0")
        self.network = network
        self.index = next((i for i, info in enumerate(infos) if not info["module"].startswith(stems)), 0)
        self.channels = int(infos[self.index]["num_chs"])
        self.num_classes = int(network.num_classes)
        side = network.default_cfg["input_size"][-1]
        (early, logits), plain = _probe(network, lambda x: (self.both(x), network(x)), side=side)
        if early.shape[1] != self.channels or not torch.allclose(logits, plain, rtol=1e-3, atol=1e-4):
            raise TypeError(
                f"timm's {type(network).__name__} does not compute its logits from forward_intermediates: no "
                "early head; use saliency full or low_resolution instead"
            )

    def early(self, images: Tensor) -> Tensor:
        found = self.network.forward_intermediates(
            images, indices=[self.index], stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        return cast(Tensor, found[0])

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        last, found = self.network.forward_intermediates(images, indices=[self.index], output_fmt="NCHW")
        return found[0], self.network.forward_head(last)


def _probe(network: nn.Module, forward: Any, *, side: int = 32) -> Any:
    """What `forward` returns for an empty picture, in evaluation; modes and random state as found."""
    parameter = next(network.parameters())
    with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(network):
        return forward(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))
