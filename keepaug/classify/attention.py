"""Where a network looks, from its last feature map: the attention of Attentive CutMix's paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from keepaug.models.networks import build_network
from keepaug.runs.checkpoint import read_weights_only

__all__ = ["feature_attention", "load_teacher", "stages_of"]


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

    modes = [(module, module.training) for module in network.modules()]
    handle = stages_of(network)[-1].register_forward_hook(keep)
    try:
        for module, _ in modes:
            module.training = False
        network(images)
    finally:
        handle.remove()
        for module, training in modes:
            module.training = training
    return found[0].float().abs().mean(dim=1)


def load_teacher(path: str | Path, classes: list[str]) -> nn.Module:
    """The network in a `weights.pt` of this project, frozen.

    Raises:
        ValueError: not such a file, or a network for other classes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: teacher wants the weights.pt of a run")
    content = read_weights_only(path)
    if not isinstance(content, dict) or (
        missing := {"arch", "stem", "state_dict", "classes"} - content.keys()
    ):
        raise ValueError(
            f"{path} is no weights.pt of a run"
            + (f": it lacks {', '.join(sorted(missing))}" if isinstance(content, dict) else "")
        )
    if content["classes"] != classes:
        raise ValueError(
            f"the teacher {path} knows {len(content['classes'])} classes and the data has {len(classes)}, or they differ; take "
            "one trained on this data"
        )
    network = build_network(content["arch"], len(classes), stem=content["stem"])
    network.load_state_dict(content["state_dict"])
    return network.eval().requires_grad_(False)
