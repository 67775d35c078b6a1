"""What is minimised, and at which learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from keepaug.baselines import ConsistentLabels, MixedLabels, consistent_cross_entropy, mixed_cross_entropy
from keepaug.classify.config import ClassifyConfig

__all__ = ["learning_rate", "loss_of"]


def learning_rate(config: ClassifyConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then cosine to 0 per step, or steps at epochs."""
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return config.lr * (step + 1) / (config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        total = config.epochs - config.warmup_epochs
        return config.lr * 0.5 * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / total))
    return config.lr * config.gamma ** sum(int(epoch) >= milestone for milestone in config.milestones)


def loss_of(output: Any, targets: Tensor | MixedLabels | ConsistentLabels, config: ClassifyConfig) -> Tensor:
    """The loss of a network's output; with an early head, that head's too (section 3.1).

    Args:
        output: logits, or the pair of logits and the early head's.
        targets: as the method returned them.
        config: label_smoothing and early_weight.
    """
    if isinstance(output, tuple):  # with the early head's logits
        main, early = output
        return loss_of(main, targets, config) + config.early_weight * loss_of(early, targets, config)
    if isinstance(targets, ConsistentLabels):
        return consistent_cross_entropy(output.float(), targets, label_smoothing=config.label_smoothing)
    if isinstance(targets, MixedLabels):
        return mixed_cross_entropy(output.float(), targets, label_smoothing=config.label_smoothing)
    return F.cross_entropy(output.float(), targets, label_smoothing=config.label_smoothing)
