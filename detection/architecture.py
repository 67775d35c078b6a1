"""Which ResNet weights are, told from their shapes, and the names of its tensors on both sides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.other_networks import other_network, part_of_another

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models.resnet import ResNet

_BLOCKS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
_NORM = ("weight", "bias", "running_mean", "running_var")


class ArchitectureError(ValueError):
    """Not a ResNet that Detectron2 can build."""


@dataclass(frozen=True)
class Architecture:
    """A torchvision ResNet.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        num_groups: of the 3 x 3 convolutions; 32 for ResNeXt-50 32x4d.
        width_per_group: 64; 128 for wide ResNets, 4 for ResNeXt-50 32x4d.
    """

    depth: int
    num_groups: int = 1
    width_per_group: int = 64

    @property
    def block(self) -> str:
        """Basic or bottleneck."""
        return "basic" if self.depth < 50 else "bottleneck"

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks of the four stages."""
        return next(blocks for (_, blocks), depth in _BLOCKS.items() if depth == self.depth)

    @property
    def name(self) -> str:
        """The usual name, for example ResNet-50 or ResNeXt-50 32x4d."""
        if self.num_groups > 1:
            return f"ResNeXt-{self.depth} {self.num_groups}x{self.width_per_group}d"
        if self.width_per_group != 64:
            return f"Wide ResNet-{self.depth}-{self.width_per_group // 64}"
        return f"ResNet-{self.depth}"

    def build(self, *, num_classes: int = 1) -> ResNet:
        """Torchvision's network with random weights."""
        # Not above: a conversion without verification needs no torchvision, half of its start-up time.
        from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

        block = BasicBlock if self.block == "basic" else Bottleneck
        return ResNet(
            block, [*self.blocks], num_classes, groups=self.num_groups, width_per_group=self.width_per_group
        )

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """The backbone's keys in torchvision and their shapes, without classifier and batch counters."""
        shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
        shapes |= {f"bn1.{part}": (64,) for part in _NORM}

        def convolution(name: str, norm: str, shape: tuple[int, ...]) -> None:
            shapes[f"{name}.weight"] = shape
            shapes.update({f"{norm}.{part}": (shape[0],) for part in _NORM})

        channels = 64
        for stage, blocks in enumerate(self.blocks, start=1):
            planes = 64 * 2 ** (stage - 1)
            for index in range(blocks):
                prefix, entered = f"layer{stage}.{index}", channels
                if self.block == "basic":
                    channels = planes
                    layers = [(planes, entered, 3, 3), (planes, planes, 3, 3)]
                else:
                    channels = 4 * planes
                    width = planes * self.width_per_group // 64 * self.num_groups
                    layers = [
                        (width, entered, 1, 1),
                        (width, width // self.num_groups, 3, 3),
                        (channels, width, 1, 1),
                    ]
                for number, shape in enumerate(layers, start=1):
                    convolution(f"{prefix}.conv{number}", f"{prefix}.bn{number}", shape)
                if index == 0 and entered != channels:
                    convolution(f"{prefix}.downsample.0", f"{prefix}.downsample.1", (channels, entered, 1, 1))
        return shapes


def infer(state: Mapping[str, Tensor]) -> Architecture:
    """The architecture of a state dict with torchvision's keys, or what stands in the way.

    Raises:
        ArchitectureError: not a ResNet, or one whose stem or blocks Detectron2's ResNet does not have.
    """
    _refuse_others(state)
    counts = []
    for stage in range(1, 5):
        found = {int(m[1]) for key in state if (m := re.match(rf"layer{stage}\.(\d+)\.", key))}
        counts.append(len(found))
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    if (depth := _BLOCKS.get((block, tuple(counts)))) is None:
        known = ", ".join(str(depth) for depth in sorted(_BLOCKS.values()))
        raise ArchitectureError(
            f"stages of {counts} {block} blocks are no ResNet-{known}: CIFAR ResNets (20, 56, 110) and "
            "shortened networks cannot become a Detectron2 backbone; a stage of 0 blocks means a truncated "
            "file"
        )
    if block == "basic":
        return Architecture(depth)
    middle = state.get("layer1.0.conv2.weight")
    if middle is None or middle.ndim != 4 or not middle.shape[1]:
        raise ArchitectureError("layer1.0.conv2.weight is missing or no convolution: a truncated file")
    groups = middle.shape[0] // middle.shape[1]
    return Architecture(depth, groups, middle.shape[0] // groups)


def is_complete(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has every tensor of some ResNet's trunk."""
    try:
        return infer(state).expected_shapes().keys() <= state.keys()
    except ArchitectureError:
        return False


def _refuse_others(state: Mapping[str, Tensor]) -> None:
    if what := (part_of_another(state) or other_network(state)):
        raise ArchitectureError(what)
    if "conv1.weight" not in state or "layer1.0.conv1.weight" not in state:
        some = ", ".join(list(state)[:4])
        raise ArchitectureError(
            f"no ResNet: conv1.weight or layer1.0.conv1.weight is missing; the keys begin with {some}"
        )
    stem = tuple(state["conv1.weight"].shape)
    if stem[2:] == (3, 3):
        raise ArchitectureError(
            f"conv1.weight is {stem}: the 3 x 3 stem for small images (CIFAR); Detectron2's ResNet starts "
            "with 7 x 7 stride 2: train with stem=imagenet"
        )
    if stem != (64, 3, 7, 7):
        raise ArchitectureError(f"conv1.weight is {stem}, expected (64, 3, 7, 7): RGB images and 64 channels")


_TO_DETECTRON2 = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.(\d+)\.conv(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
)
_TO_TORCHVISION = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res(\d)\.(\d+)\.conv(\d)\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}."),
    (r"^res(\d)\.(\d+)\.conv(\d)\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.conv{m[3]}."),
    (r"^res(\d)\.(\d+)\.shortcut\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.1."),
    (r"^res(\d)\.(\d+)\.shortcut\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.0."),
)


def _rename(key: str, rules: tuple) -> str:  # type: ignore[type-arg]
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return str(renamed)
    raise KeyError(key)


def detectron2_key(key: str) -> str:
    """Detectron2's name of a torchvision backbone tensor.

    Raises:
        KeyError: it has none.
    """
    return _rename(key, _TO_DETECTRON2)


def bare_key(key: str) -> str:
    """A detector's key as a bare backbone's: one file serves FPN and C4, whose res5 sits in its head."""
    for prefix in ("backbone.bottom_up.", "backbone.", "roi_heads."):
        key = key.removeprefix(prefix)
    return key


def torchvision_key(key: str) -> str:
    """Torchvision's name of a bare Detectron2 backbone tensor.

    Raises:
        KeyError: it has none.
    """
    return _rename(key, _TO_TORCHVISION)


_FROM_CAFFE2 = (
    (r"^conv1_", "stem.conv1_"),
    (r"^res_conv1_bn_", "stem.conv1.norm_"),
    (r"^(res[2-5])_(\d+)_branch1_bn_", r"\1.\2.shortcut.norm_"),
    (r"^(res[2-5])_(\d+)_branch1_", r"\1.\2.shortcut_"),
    (r"^(res[2-5])_(\d+)_branch2([abc])_bn_", lambda m: f"{m[1]}.{m[2]}.conv{' abc'.index(m[3])}.norm_"),
    (r"^(res[2-5])_(\d+)_branch2([abc])_", lambda m: f"{m[1]}.{m[2]}.conv{' abc'.index(m[3])}_"),
)
_CAFFE2_PARTS = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}


def caffe2_to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A backbone under Caffe2's names (`res2_0_branch2a_w`) under Detectron2's, or None if it is none.

    Its norms are only scale and shift: the statistics become 0 and 1, as Detectron2 itself takes them.
    Everything else, the classifier among it, keeps its name; momenta and the unused bias of the first
    convolution are left out, as there.
    """
    if "conv1_w" not in state or not any(key.startswith("res2_0_branch2a_") for key in state):
        return None
    import torch

    found = {}
    for key, value in state.items():
        try:
            name, _, part = _rename(key, _FROM_CAFFE2).rpartition("_")
            found[f"{name}.{_CAFFE2_PARTS[part]}"] = value
        except KeyError:
            if not key.endswith("_momentum"):
                found[key] = value
    found.pop("stem.conv1.bias", None)
    for key in [key for key in found if key.endswith("norm.weight")]:
        norm = key.removesuffix("weight")
        found.setdefault(f"{norm}running_mean", torch.zeros_like(found[key]))
        found.setdefault(f"{norm}running_var", torch.ones_like(found[key]))
    return found
