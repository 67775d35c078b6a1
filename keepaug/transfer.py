"""Copies between the host and a GPU that do not stall what the GPU has to do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`values.to(device, dtype)`; from the host to a GPU without waiting for it.

    The way back does wait: without it, torch copies into pinned memory that is read before it is filled.
    """
    return values.to(device, dtype, non_blocking=values.device.type == "cpu")


def start_reading(values: Tensor) -> Callable[[], Tensor]:
    """Read numbers back from a GPU without waiting for what is launched after this call.

    Args:
        values: on any device.

    Returns:
        A function that waits for the numbers alone and returns them on the CPU.
    """
    values = values.detach()
    if values.device.type != "cuda":
        copy = values.clone()
        return lambda: copy
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> Tensor:
        copied.synchronize()
        return host

    return read
