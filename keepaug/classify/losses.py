"""What is minimised."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from keepaug.baselines import ConsistentLabels, MixedLabels, consistent_cross_entropy, mixed_cross_entropy
from keepaug.classify.config import ClassifyConfig


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
