"""Stop at once when a loss is no longer a number."""

from __future__ import annotations

import math
from pathlib import Path

__all__ = ["NonFiniteLossError", "check_finite"]


class NonFiniteLossError(RuntimeError):
    """Training diverged; says when, and what to go back to."""


def check_finite(loss: float, step: int, last_checkpoint: str | Path | None, *, what: str = "loss") -> None:
    """Raise when `loss`, or whatever else `what` says, is NaN or infinite.

    Raises:
        NonFiniteLossError: names the step and the last good checkpoint.
    """
    if math.isfinite(loss):
        return
    back = (
        f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "there is no checkpoint yet"
    )
    raise NonFiniteLossError(
        f"the {what} is {loss} at step {step}; {back}. Lower the learning rate, clip the gradients, or train in float32"
    )
