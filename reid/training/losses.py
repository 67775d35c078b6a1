"""Batch-hard triplet loss, center loss and the learning rate of Bag of Tricks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def batch_hard_triplet(features: Tensor, labels: Tensor, *, margin: float = 0.3) -> Tensor:
    """Mean of max(0, farthest positive - nearest negative + margin), Euclidean (Hermans et al., 2017).

    Computed in float32, also under autocast: distances between near features cancel in bfloat16.

    Args:
        features: (N, D) floating.
        labels: (N,) integer.
        margin: of the hinge.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: only one identity in the batch.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = features.float()
        squared = (x**2).sum(dim=1)
        distances = (squared[:, None] + squared[None] - 2 * x @ x.T).clamp(min=1e-12).sqrt()
        same = labels[:, None] == labels[None]
        if labels.device.type == "cpu" and bool(same.all()):
            raise ValueError("the triplet loss needs two identities or more in a batch, got one")
        positive = distances.masked_fill(~same, -torch.inf).max(dim=1).values
        negative = distances.masked_fill(same, torch.inf).min(dim=1).values
        return (positive - negative + margin).clamp(min=0).mean()


class CenterLoss(nn.Module):
    """Mean squared distance to the identity's center (Wen et al., 2016); no factor 1/2, as in the release.

    Args:
        num_identities: number of centers.
        feature_dim: D.
        generator: draws the first centers, standard normal.
    """

    def __init__(
        self, num_identities: int, feature_dim: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        # The spelling is that of saved checkpoints.
        self.centres = nn.Parameter(torch.randn(num_identities, feature_dim, generator=generator))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar, float32.

        Args:
            features: (N, D).
            labels: (N,) integer.
        """
        with torch.autocast(features.device.type, enabled=False):
            return ((features.float() - self.centres[labels]) ** 2).sum(dim=1).mean()

    def rescale_gradient(self, weight: float) -> None:
        """Undo the loss's weight for the centers, which learn at their own rate (reid-strong-baseline)."""
        if self.centres.grad is not None:
            self.centres.grad.mul_(1 / weight)


def learning_rate(
    epoch: int,
    *,
    base: float,
    warmup_epochs: int = 10,
    warmup_factor: float = 0.01,
    milestones: Sequence[int] = (40, 70),
    gamma: float = 0.1,
) -> float:
    """The rate of an epoch: linear warm-up, then steps (reid-strong-baseline's WarmupMultiStepLR).

    Args:
        epoch: from 0. The released code counts from 1: its first epoch has a tenth of the way behind it, and
            the rate falls when epoch 40 begins.
        base: after the warm-up.
        warmup_epochs: length of the warm-up.
        warmup_factor: where the warm-up begins, relative to `base`.
        milestones: counted from 1.
        gamma: factor at each milestone.
    """
    number = epoch + 1
    factor = 1.0
    if number < warmup_epochs:
        done = number / warmup_epochs
        factor = warmup_factor * (1 - done) + done
    return base * factor * gamma ** bisect_right(list(milestones), number)
