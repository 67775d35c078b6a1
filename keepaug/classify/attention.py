"""Where a network looks, from its last feature map: the attention of Attentive CutMix's paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from keepaug.models.weights import Classifier, load_classifier
from keepaug.modes import evaluating


def stages_of(network: nn.Module) -> list[nn.Module]:
    """The stages of a residual network in the order of the forward pass.

    Raises:
        ValueError: another kind of network.
    """
    if isinstance(network, ResNet):
        return [network.layer1, network.layer2, network.layer3, network.layer4]
    stages = getattr(network, "stages", None)
    if isinstance(stages, nn.ModuleList):
        return list(stages)
    raise ValueError(f"{type(network).__name__} has no stages: take one of the residual networks")


@torch.no_grad()
def feature_attention(network: nn.Module, images: Tensor) -> Tensor:
    """Mean magnitude over the channels of the last stage's output, in evaluation mode.

    Modes and BatchNorm statistics are left as found.

    Args:
        network: with stages, see `stages_of`.
        images: (N, 3, H, W) normalised.

    Returns:
        (N, h, w) float32 of the feature map's size: 7 x 7 of a ResNet at 224 x 224.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output)

    handle = stages_of(network)[-1].register_forward_hook(keep)
    try:
        with evaluating(network):
            network(images)
    finally:
        handle.remove()
    return found[0].float().abs().mean(dim=1)


def load_teacher(path: str | Path, classes: list[str]) -> Classifier:
    """The network in a `weights.pt` of this project.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a network for other classes.
    """
    teacher = load_classifier(path)
    if teacher.classes != classes:
        raise ValueError(
            f"the teacher {path} knows {len(teacher.classes)} classes and the data has {len(classes)}, or "
            "they differ; take one trained on this data"
        )
    return teacher
