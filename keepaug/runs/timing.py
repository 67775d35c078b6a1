"""Timing variants side by side, for `tools/benchmark.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["Table", "interleaved"]

Table = tuple[list[str], list[list[str]]]
"""Head and rows of a table of text."""


def interleaved(
    variants: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each variant, taking turns, after one round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, call in variants.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
