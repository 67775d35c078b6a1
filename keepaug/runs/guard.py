"""Stop when a loss, or what it comes from, is no longer a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from keepaug.runs.errors import NonFiniteLossError
from keepaug.transfer import start_reading


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
        f"the {what} is {loss} at step {step}; {back}. Lower the learning rate, clip the gradients, or "
        f"train in float32"
    )


def only_finite(values: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """Let a step go on with what may have diverged, and find out at its end.

    Args:
        values: saliency maps, for example, which regions cannot be chosen from when they are not numbers.

    Returns:
        The values with 0 for NaN and infinity, and a reading of their sum, for `check_finite`.
    """
    return values.nan_to_num(0.0, 0.0, 0.0), start_reading(values.sum())
