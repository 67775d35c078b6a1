"""AugMix's consistency loss: three views of an image should be classified alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ConsistentLabels(NamedTuple):
    """Labels of a batch that holds three views of each image.

    Attributes:
        labels: (N,) int64, for 3 N images.
        weight: of the Jensen-Shannon divergence; 12 in the paper.
    """

    labels: Tensor
    weight: float


def three_views(
    clean: Tensor, first: Tensor, second: Tensor, labels: Tensor, *, weight: float = 12.0
) -> tuple[Tensor, ConsistentLabels]:
    """One batch of the clean images and two augmented views of each, for `consistent_cross_entropy`.

    Args:
        clean: (N, C, H, W).
        first: like `clean`, one draw of the augmentation.
        second: like `clean`, another.
        labels: (N,) integer classes.
        weight: of the divergence.

    Returns:
        (3 N, C, H, W), and its labels.

    Raises:
        ValueError: views whose shapes differ.
    """
    if not clean.shape == first.shape == second.shape:
        raise ValueError(
            f"the three views must have one shape, got {tuple(clean.shape)}, {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    return torch.cat([clean, first, second]), ConsistentLabels(labels, weight)


def jensen_shannon(clean: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of three predictions, batch mean (Hendrycks et al., 2020, section 3).

    `(KL(p || m) + KL(p1 || m) + KL(p2 || m)) / 3` with m the mean of the three, in nats.

    Args:
        clean: (N, classes) logits.
        first: (N, classes).
        second: (N, classes).

    Returns:
        Scalar in [0, log 3].
    """
    logs = torch.stack([F.log_softmax(logits, dim=1) for logits in (clean, first, second)])
    # The released code's clamp: log m stays finite where all three are certain that it is another class.
    mean = logs.exp().mean(dim=0).clamp(1e-7, 1).log()
    return (logs.exp() * (logs - mean)).sum(dim=2).mean()


def consistent_cross_entropy(
    logits: Tensor, labels: ConsistentLabels, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the clean images plus the weighted divergence (AugMix, equation 3 of section 3).

    Args:
        logits: (3 N, classes), in the order of `three_views`.
        labels: of the N images.
        label_smoothing: of the cross-entropy, in [0, 1].

    Returns:
        Scalar.

    Raises:
        ValueError: not three logits per label.
    """
    if len(logits) != 3 * len(labels.labels):
        raise ValueError(f"expected logits of 3 x {len(labels.labels)} images, got {len(logits)}")
    clean, first, second = logits.chunk(3)
    loss = F.cross_entropy(clean, labels.labels, label_smoothing=label_smoothing)
    return loss + labels.weight * jensen_shannon(clean, first, second)
