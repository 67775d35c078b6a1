"""Stop at once when a loss is no longer a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["NonFiniteLossError", "check_finite", "start_reading"]


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


def start_reading(value: Tensor) -> Callable[[], float]:
    """Read a number back from a GPU without waiting for what is launched after this call.

    Args:
        value: one element, on any device.

    Returns:
        A function that waits for the number alone and returns it.
    """
    value = value.detach()
    if value.device.type != "cuda":
        number = float(value)
        return lambda: number
    host = torch.empty((), dtype=value.dtype, pin_memory=True)
    host.copy_(value.reshape(()), non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> float:
        copied.synchronize()
        return float(host)

    return read
