"""UDA's objective (Xie et al., 2020), one small pure function for each part, as in google-research/uda `image/main.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "CONSISTENCY",
    "TSA",
    "confidence_mask",
    "consistency_losses",
    "entropies",
    "masked_mean",
    "sharpened",
    "supervised_losses",
    "tsa_mask",
    "tsa_threshold",
]

TSA = ("off", "linear", "log", "exp")
CONSISTENCY = ("kl", "cross_entropy")


def sharpened(logits: Tensor, temperature: float) -> Tensor:
    """The target distribution: softmax of the logits divided by the temperature, without gradient.

    Args:
        logits: (N, classes) of the clean view.
        temperature: above 0; 0.4 in the recipe, 1 changes nothing, smaller sharpens.

    Returns:
        (N, classes) float32, rows sum to 1, detached.

    Raises:
        ValueError: a temperature of 0 or less.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; 1 leaves the target as it is")
    return (logits.detach().float() / temperature).softmax(dim=1)


def consistency_losses(target: Tensor, logits: Tensor, kind: str = "kl") -> Tensor:
    """How far the strong view's prediction is from the target, for each image.

    Args:
        target: (N, classes) probabilities; no gradient goes into it.
        logits: (N, classes) of the strong view.
        kind: "kl", the divergence KL(target || prediction) of the recipe, or "cross_entropy", which is larger by the
            target's entropy and has the same gradient.

    Returns:
        (N,) float32, >= 0.

    Raises:
        ValueError: unknown kind, or shapes that differ.
    """
    if kind not in CONSISTENCY:
        raise ValueError(f"kind must be one of {', '.join(CONSISTENCY)}, got {kind!r}")
    if target.shape != logits.shape:
        raise ValueError(
            f"target and logits must have one shape, got {tuple(target.shape)} and {tuple(logits.shape)}"
        )
    target = target.detach()
    cross = -(target * logits.float().log_softmax(dim=1)).sum(dim=1)
    return cross if kind == "cross_entropy" else cross + torch.xlogy(target, target).sum(dim=1)


def confidence_mask(logits: Tensor, threshold: float) -> Tensor:
    """1 where the clean view's largest probability, at temperature 1, is above the threshold; without gradient.

    Args:
        logits: (N, classes).
        threshold: 0.8 in the recipe; a negative one lets all images through.

    Returns:
        (N,) float32 of 0 and 1.
    """
    return (logits.detach().float().softmax(dim=1).amax(dim=1) > threshold).float()


def entropies(logits: Tensor) -> Tensor:
    """Entropy of each prediction in nats; the recipe's optional entropy term is its mean over the clean view.

    Args:
        logits: (N, classes); the gradient goes into them.

    Returns:
        (N,) float32.
    """
    logs = logits.float().log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def tsa_threshold(schedule: str, step: int, total_steps: int, num_classes: int) -> float:
    """Training signal annealing: above which probability of its label an image is left out, from 1/K up to 1.

    Args:
        schedule: "linear" t, "log" 1 - exp(-5 t), "exp" exp(5 (t - 1)) with t = step / total_steps, or "off" (infinity).
        step: from 0.
        total_steps: of the run.
        num_classes: K.

    Raises:
        ValueError: unknown schedule.
    """
    share = step / total_steps
    if schedule == "off":
        return math.inf
    if schedule == "linear":
        risen = share
    elif schedule == "log":
        risen = 1 - math.exp(-5 * share)
    elif schedule == "exp":
        risen = math.exp(5 * (share - 1))
    else:
        raise ValueError(f"schedule must be one of {', '.join(TSA)}, got {schedule!r}")
    return risen * (1 - 1 / num_classes) + 1 / num_classes


def tsa_mask(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """0 for labelled images whose label is predicted with a probability above the threshold; without gradient.

    Args:
        logits: (N, classes).
        labels: (N,) int64.
        threshold: see `tsa_threshold`.

    Returns:
        (N,) float32 of 0 and 1.
    """
    right = logits.detach().float().softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return (right <= threshold).float()


def supervised_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each labelled image, (N,) float32."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def masked_mean(losses: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Sum of the losses let through, divided by their number, or by 1 where there are none.

    Args:
        losses: (N,).
        mask: (N,) of 0 and 1.
        count: the number to divide by instead of the mask's sum, where this process holds a part of the batch only.
    """
    count = mask.sum() if count is None else count
    return (losses * mask).sum() / count.clamp(min=1)
