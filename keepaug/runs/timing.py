"""Timing variants side by side, for `keepaug benchmark`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Table = tuple[list[str], list[list[str]]]
"""Head and rows of a table of text."""


def interleaved(
    variants: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    processor_time: bool = False,
) -> dict[str, float]:
    """Median seconds of each variant, taking turns, after a round of warming up; on a GPU of ten calls each.

    Args:
        variants: what to time, by name.
        rounds: how often each is timed.
        device: where they compute; a GPU is waited for.
        processor_time: count this process's time on the processor: for a busy machine, and one thread.
    """
    now = time.process_time if processor_time else time.perf_counter
    calls = 10 if device.type == "cuda" else 1  # so that launching ahead counts, as it does in training
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, call in variants.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = now()
            for _ in range(calls):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append((now() - start) / calls)
    return {name: statistics.median(values) for name, values in seconds.items()}
