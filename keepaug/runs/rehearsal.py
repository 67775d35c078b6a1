"""What `--dry-run` measures: a few real steps, and from them the hours and the memory of a run."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

WARM_UP, MEASURED = 1, 3
Item = TypeVar("Item")


@dataclass(frozen=True)
class Rehearsal:
    """A run, judged by its first steps.

    Attributes:
        steps: that are left of the run.
        seconds: of a step, mean of the measured ones; 0 where nothing is left.
        measured: steps.
        memory: largest so far, in bytes: of the process on a CPU, of torch's tensors on a GPU.
        device: that computes.
    """

    steps: int
    seconds: float
    measured: int
    memory: int
    device: torch.device

    @property
    def hours(self) -> float:
        """Of the steps that are left; evaluations come on top."""
        return self.steps * self.seconds / 3600

    def lines(self, runs: int = 0) -> str:
        """What a dry run ends with.

        Args:
            runs: of training, as long as this one, all together; 0: it is none.
        """
        whole = f" and in all {in_words(runs * self.hours)}" if runs > 1 else ""
        beside = f" per run{whole}; evaluations come on top" if runs else ""
        where = "this process" if self.device.type == "cpu" else f"tensors on {self.device}"
        return facts(
            measured=f"{self.measured} step{'s' * (self.measured != 1)} of {in_words(self.seconds / 3600)}",
            time=f"{self.steps:,} step{'s' * (self.steps != 1)}, {in_words(self.hours)}{beside}",
            memory=f"{self.memory / 1e9:.2f} GB, {where}",
        )


def rehearse(
    step: Callable[[], object],
    steps: int,
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Rehearsal:
    """Do a few steps, the first of them to warm up, and say what all of them take.

    Args:
        step: does one, its images among it.
        steps: that are left of the run; never are more than that done.
        device: that computes; a GPU is waited for.
        clock: seconds.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize(device)
        return clock()

    times = [now()]
    for _ in range(min(steps, WARM_UP + MEASURED)):
        step()
        times.append(now())
    measured = times[WARM_UP:] if len(times) > WARM_UP + 1 else times
    number = len(measured) - 1
    seconds = (measured[-1] - measured[0]) / number if number else 0.0
    memory = torch.cuda.max_memory_allocated(device) if on_gpu else _peak_resident()
    return Rehearsal(steps, seconds, number, memory, device)


def _peak_resident() -> int:
    """Largest memory of this process so far, in bytes; 0 where the system does not say it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def endless(batches: Iterable[Item]) -> Iterator[Item]:
    """One epoch after another."""
    while True:
        yield from batches


def facts(**lines: str) -> str:
    """A line for each, their beginnings in a column."""
    return "\n".join(f"{key + ':':<11}{value}" for key, value in lines.items())


def in_words(hours: float) -> str:
    """A time with its unit: `0.41 s`, `12 min`, `13.4 hours`."""
    seconds = 3600 * hours
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if hours < 2 else f"{hours:,.1f} hours"


def settings_lines(settings: Mapping[str, Any]) -> str:
    """`settings: key=value ...`, in lines of at most 110 characters."""
    items = [f"{key}={value}".replace(" ", "") for key, value in settings.items()]
    return textwrap.fill(
        " ".join(items),
        110,
        initial_indent=f"{'settings:':<11}",
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
    )
