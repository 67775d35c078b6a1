"""The learning rate over the steps."""

from __future__ import annotations

import math

__all__ = ["ema_decay", "learning_rate"]


def learning_rate(step: int, total_steps: int, peak: float, warmup_steps: int = 0) -> float:
    """UDA's schedule: linear warm-up, then `peak * cos(7 pi / 16 * t)`, which ends at 0.195 of the peak.

    Args:
        step: from 0.
        total_steps: of the run.
        peak: 0.03 in the recipe.
        warmup_steps: 0 in the recipe.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * math.cos(7 / 16 * math.pi * min(max(share, 0.0), 1.0))


def ema_decay(step: int, total_steps: int, decay: float, *, ramp: bool = True) -> float:
    """The decay of the averaged weights after a step, so that the average of a short run is not its random beginning.

    A constant decay leaves `decay ** total_steps` of the random weights in the average: with 0.9999 and 3,000 steps 74 %, an
    accuracy by chance. Where it would be more than 2 % the decay rises as min(decay, (1 + step) / (10 + step)), as
    TensorFlow's `num_updates` does it; the recipes' 500,000 steps keep the constant one.

    Args:
        step: from 0.
        total_steps: of the run.
        decay: 0.9999 in UDA's recipe, 0.999 in FixMatch's.
        ramp: False keeps it constant whatever the number of steps.
    """
    if not ramp or decay**total_steps <= 0.02:
        return decay
    return min(decay, (1 + step) / (10 + step))
