"""FixMatch (Sohn et al., arXiv:2001.07685), as in google-research/fixmatch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from keepaug.runs.distributed import Distributed
from ssl_uda.algorithms.common import LossParts, Outputs

if TYPE_CHECKING:
    from ssl_uda.config import UdaConfig


def pseudo_labels(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The clean view's most probable classes, and which of them are believed; both without gradient.

    Args:
        logits: (N, classes).
        threshold: of the largest probability; 0.95 in the recipe.

    Returns:
        (N,) int64, and (N,) float32 of 0 and 1.
    """
    probability, label = logits.detach().float().softmax(dim=1).max(dim=1)
    return label, (probability >= threshold).float()


def fixmatch_loss(
    outputs: Outputs, labels: Tensor, config: UdaConfig, step: int, world: Distributed | None = None
) -> LossParts:
    """Cross-entropy of the labelled images, and of the strong view against the clean view's believed classes.

    Args:
        outputs: logits of all three.
        labels: (B,) int64.
        config: settings.
        step: unused.
        world: unused: every term is a mean of equally many images per process.

    Returns:
        The loss (equations 3 and 4); the second term: a mean over all images, those not believed counting 0.
    """
    clean, strong = outputs.clean, outputs.strong
    supervised = F.cross_entropy(outputs.labelled.float(), labels)
    believed, mask = pseudo_labels(clean, config.confidence)
    pseudo = (F.cross_entropy(strong.float(), believed, reduction="none") * mask).mean()
    figures = {"supervised": supervised.detach(), "consistency": pseudo.detach(), "mask_rate": mask.mean()}
    return LossParts(supervised + config.weight * pseudo, figures)
