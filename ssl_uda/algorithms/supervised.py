"""The labelled images alone, or with UDA's training signal annealing (Xie et al., 2020, section 3.3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from keepaug.runs.distributed import Distributed
from ssl_uda.algorithms.common import LossParts, Outputs
from ssl_uda.choices import TSA

if TYPE_CHECKING:
    from ssl_uda.config import UdaConfig


def supervised_loss(
    outputs: Outputs, labels: Tensor, config: UdaConfig, step: int, world: Distributed | None = None
) -> LossParts:
    """The mean cross-entropy of the labelled images that annealing lets through.

    Args:
        outputs: logits; only the labelled ones are looked at.
        labels: (B,) int64.
        config: settings.
        step: for the annealing.
        world: the processes, which share the number that is divided by.
    """
    losses = supervised_losses(outputs.labelled, labels)
    threshold = tsa_threshold(config.tsa, step, config.steps, outputs.labelled.shape[1])
    mask = tsa_mask(outputs.labelled, labels, threshold)
    if world is not None and world.active:  # times the processes, because DDP takes their mean
        loss = masked_mean(losses, mask, world.sum(mask.sum())) * world.world_size
    else:
        loss = masked_mean(losses, mask)
    return LossParts(loss, {"supervised": loss.detach(), "trained_share": mask.mean()})


def supervised_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each labelled image, (N,) float32."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def tsa_threshold(schedule: str, step: int, total_steps: int, num_classes: int) -> float:
    """Training signal annealing: above which probability of its label an image is left out, from 1/K up to 1.

    Args:
        schedule: "linear" t, "log" 1 - exp(-5 t), "exp" exp(5 (t - 1)) with t = step / total_steps, or "off".
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
    """0 for labelled images predicted with a probability above the threshold; without gradient.

    Args:
        logits: (N, classes).
        labels: (N,) int64.
        threshold: see `tsa_threshold`.

    Returns:
        (N,) float32 of 0 and 1.
    """
    right = logits.detach().float().softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return (right <= threshold).float()


def masked_mean(losses: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Sum of the losses let through, divided by their number, or by 1 where there are none.

    Args:
        losses: (N,).
        mask: (N,) of 0 and 1.
        count: the number to divide by instead of the mask's sum, where this process holds a part.
    """
    count = mask.sum() if count is None else count
    return (losses * mask).sum() / count.clamp(min=1)
