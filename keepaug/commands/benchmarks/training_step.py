"""How a training step is computed, and where its time goes, for `keepaug benchmark step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from keepaug.commands.benchmarks.classifier_step import Step, case_of
from keepaug.runs.timing import Table, interleaved

NETWORKS = ("resnet18", "lab")
# The first that occurs in an operator's name; an operator's own time, without those that it calls.
PARTS = {
    "convolutions": ("convolution", "conv", "mkldnn_", "thnn_conv"),
    "normalization": ("batch_norm",),
    "activations": ("gelu", "relu", "threshold", "silu"),
    "pooling": ("pool",),
    "optimizer": ("_foreach", "optimizer"),
}


def _part(name: str) -> str:
    low = name.lower()
    return next((part for part, words in PARTS.items() if any(word in low for word in words)), "rest")


def _shares(step: Step, device: torch.device) -> dict[str, float]:
    """Of one step's time on the device, by part."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    for _ in range(2):  # the first is slow itself
        with profile(activities=activities) as seen:
            step()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = dict.fromkeys((*PARTS, "rest"), 0.0)
    for event in seen.key_averages():
        times[_part(event.key)] += getattr(event, own)
    whole = sum(times.values()) or 1.0
    return {part: value / whole for part, value in times.items()}


def step_section(
    device: torch.device,
    *,
    arch: Sequence[str] = (),
    batch: int = 128,
    side: int = 32,
    rounds: int = 7,
    processor_time: bool = False,
    shrink: bool = False,
) -> tuple[Table, dict[str, Any]]:
    """A step in float32 and bf16, eager and compiled, as multiples of the first; the eager ones' parts."""
    rows, figures = [], {}
    for network in arch or (("resnet8",) if shrink else NETWORKS):
        cases = {
            f"{'bf16' if bf16 else 'float32'}, {'compiled' if compiled else 'eager'}": case_of(
                network, device, batch, side, bf16, compiled, shrink
            )
            for bf16 in (False, True)
            for compiled in (False, True)
        }
        steps: dict[str, Step] = {name: case.step for name, case in cases.items()}
        seconds = interleaved(steps, 1 if shrink else rounds, device, processor_time=processor_time)
        base = seconds["float32, eager"]
        figures[network] = {name: {"ratio": value / base} for name, value in seconds.items()}
        title = f"{network}, batch {len(cases['float32, eager'].images)}"
        rows.append([title, *[""] * (len(PARTS) + 3)])
        for name, value in seconds.items():
            shares = _shares(steps[name], device) if name.endswith("eager") else {}
            figures[network][name] |= shares
            parts = [f"{shares[part]:.2f}" if shares else "" for part in (*PARTS, "rest")]
            rows.append([f"  {name}", f"{1000 * value:.1f}", f"{value / base:.2f}", *parts])
    machine = f"{device.type}, {torch.get_num_threads()} thread(s), channels_last"
    return ([machine, "ms", "ratio", *PARTS, "rest"], rows), figures
