"""Unsupervised data augmentation (Xie et al., 2020), as in google-research/uda `image/main.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keepaug.runs.distributed import Distributed
from ssl_uda.algorithms.common import LossParts, Outputs
from ssl_uda.algorithms.supervised import supervised_loss
from ssl_uda.choices import CONSISTENCY

if TYPE_CHECKING:
    from ssl_uda.config import UdaConfig


def uda_loss(
    outputs: Outputs, labels: Tensor, config: UdaConfig, step: int, world: Distributed | None = None
) -> LossParts:
    """The labelled loss, and the divergence of the strong view's prediction from the clean view's, sharpened.

    Args:
        outputs: logits of all three.
        labels: (B,) int64.
        config: settings.
        step: for training signal annealing.
        world: the processes.

    Returns:
        The loss (equation 1); the consistency: a mean over all images, those below the confidence counting 0.
    """
    parts = supervised_loss(outputs, labels, config, step, world)
    clean, strong = outputs.clean, outputs.strong
    confident = confidence_mask(clean, config.confidence)
    distances = consistency_losses(sharpened(clean, config.temperature), strong, config.consistency)
    consistency = (distances * confident).mean()
    total = parts.total + config.weight * consistency
    figures = parts.figures | {"consistency": consistency.detach(), "mask_rate": confident.mean()}
    if config.entropy:
        entropy = entropies(clean).mean()
        total = total + config.entropy * entropy
        figures["entropy"] = entropy.detach()
    return LossParts(total, figures)


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
        kind: "kl", the divergence KL(target || prediction) of the recipe, or "cross_entropy", which is larger
            by the target's entropy and has the same gradient.

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
    """1 where the clean view's largest probability (temperature 1) is above the threshold; no gradient.

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
