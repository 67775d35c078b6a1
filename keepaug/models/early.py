"""An early head: logits after the first stage, for a cheap saliency map (section 3.1 of the paper)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

__all__ = ["AFTER", "EarlyHeadNetwork"]

AFTER = ("stage", "block")


class EarlyHeadNetwork(nn.Module):
    """A ResNet with average pooling and a linear layer after its first stage (or first block).

    In training the forward pass returns both logits, for the loss `L + 0.3 L_early` ("the same as the Inception
    Network"); in evaluation those of the network alone. `forward_early` runs only the first layers: pass it to
    `saliency_map(model, images, labels, forward=model.forward_early)`.

    Args:
        network: torchvision's ResNet, with any stem.
        after: "stage" (all blocks of layer1) or "block" (the first of them); the paper says "the first block".
    """

    def __init__(self, network: ResNet, *, after: str = "stage") -> None:
        super().__init__()
        if after not in AFTER:
            raise ValueError(f"after must be one of {', '.join(AFTER)}, got {after!r}")
        if not isinstance(network, ResNet):
            raise TypeError(f"the early head needs torchvision's ResNet, got {type(network).__name__}")
        self.network = network
        self.after = after
        parameter = next(network.parameters())
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            training = network.training
            channels = self._early(torch.zeros(1, 3, 32, 32, device=parameter.device), probe=True).shape[1]
            network.train(training)
        self.head = nn.Linear(channels, network.fc.out_features)

    def _early(self, images: Tensor, *, probe: bool = False) -> Tensor:
        network = self.network.eval() if probe else self.network
        features = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        return cast(
            Tensor, network.layer1[0](features) if self.after == "block" else network.layer1(features)
        )

    def _head(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.head(features.mean(dim=(2, 3))))

    def forward_early(self, images: Tensor) -> Tensor:
        """(N, classes) logits of the early head; the later layers do not run."""
        return self._head(self._early(images))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, classes) logits; in training, the early head's as well."""
        early = self._early(images)
        network, features = self.network, early
        if self.after == "block":
            features = network.layer1[1:](features)
        features = network.layer4(network.layer3(network.layer2(features)))
        logits = cast(Tensor, network.fc(network.avgpool(features).flatten(1)))
        return (logits, self._head(early)) if self.training else logits
