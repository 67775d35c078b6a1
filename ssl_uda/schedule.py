"""The learning rate over the steps."""

from __future__ import annotations

import math


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
