"""An early head: logits after the first stage, for a cheap saliency map (section 3.1 of the paper)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from keepaug.models.splits import split


class EarlyHeadNetwork(nn.Module):
    """A network with average pooling and a linear layer after its first stage (or first block).

    In training the forward pass returns both logits, for the loss `L + 0.3 L_early` ("the same as the
    Inception Network"); in evaluation those of the network alone. `forward_early` runs only the first layers:
    pass it to `saliency_map(model, images, labels, forward=model.forward_early)`.

    Args:
        network: one of ours, torchvision's or timm's, as `build_network` makes them.
        after: "stage" (the whole first stage) or "block" (its first); the paper says "the first block".

    Raises:
        ValueError: unknown `after`, or the network has no such block.
        TypeError: a network of another kind.
    """

    def __init__(self, network: nn.Module, *, after: str = "stage") -> None:
        super().__init__()
        self.network = network
        self.after = after
        self._split = split(network, after)
        self.head = nn.Linear(self._split.channels, self._split.num_classes)

    def _head(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.head(features.mean(dim=(2, 3))))

    def forward_early(self, images: Tensor) -> Tensor:
        """(N, classes) logits of the early head; the later layers do not run."""
        return self._head(self._split.early(images))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, classes) logits; in training, the early head's as well."""
        if not self.training:
            return cast(Tensor, self.network(images))
        early, logits = self._split.both(images)
        return logits, self._head(early)
