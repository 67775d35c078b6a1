"""What a run says before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keepaug.runs.precision import fast_bf16
from keepaug.runs.rehearsal import facts


def header(
    folder: Path, run: Mapping[str, Any], network: nn.Module, device: torch.device, step: int, work: str
) -> str:
    """Five lines: folder, data, network, training, computing.

    Args:
        folder: of the run.
        run: of `describe_run`.
        network: that is trained.
        device: where.
        step: steps done before.
        work: how much of what.
    """
    config, data, numbers = run["config"], run["dataset"], run["precision"]
    sizes = ", ".join(f"{number:,} {split}" for split, number in data["sizes"].items())
    drawn = " (drawn by the program)" if run["synthetic"] else ""
    parameters = sum(one.numel() for one in network.parameters())
    origin = run["started_from"]
    where = (
        f"{device}, {torch.cuda.get_device_name(device)}"
        if device.type == "cuda"
        else (f"{device}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}")
    )
    precision = str(numbers.get("precision", "float32"))
    if precision == "bf16" and device.type == "cpu":
        precision += f" ({fast_bf16() or 'slow on this processor'}); precision=float32 is the other"
    return facts(
        folder=f"{folder}, {f'resuming at step {step}' if step else 'new'}",
        data=f"{data['name']}{drawn}: {sizes}",
        network=f"{config.get('arch', type(network).__name__)}, {parameters:,} parameters, from "
        f"{origin.get('file') if origin else 'random weights'}",
        training=f"{work}, seed {run['seed']}",
        computing=f"{where}, {precision}",
    )
