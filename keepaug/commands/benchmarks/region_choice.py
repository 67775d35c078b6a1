"""Ways of choosing a region below the quantile, for `keepaug benchmark regions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug import region_scores, sample_regions
from keepaug.runs.timing import Table, interleaved


def _quantile(scores: Tensor, tau: float) -> Tensor:
    threshold = torch.quantile(scores, tau, dim=1, keepdim=True)
    return (scores <= threshold).double().multinomial(1)


def _kthvalue(scores: Tensor, tau: float) -> Tensor:
    threshold = scores.kthvalue(max(1, int(tau * scores.shape[1])), dim=1, keepdim=True).values
    return (scores <= threshold).double().multinomial(1)


def _argsort(scores: Tensor, tau: float) -> Tensor:
    order = scores.argsort(dim=1)
    place = (torch.rand(len(scores), 1, device=scores.device) * max(1, int(tau * scores.shape[1]))).long()
    return order.gather(1, place)


def regions_section(
    device: torch.device, *, rounds: int = 7, shrink: bool = False
) -> tuple[Table, dict[str, Any]]:
    """Ways of scoring all regions, and of choosing one below the quantile."""
    batch, side, size = (8, 64, 16) if shrink else (64, 224, 40)
    heat = torch.rand(batch, side, side, device=device)
    scores = region_scores(heat, size)[0].flatten(1)
    variants: dict[str, Callable[[], object]] = {
        "scores (integral image)": lambda: region_scores(heat, size),
        "scores and choice (ours)": lambda: sample_regions(heat, size),
        "choice: torch.quantile": lambda: _quantile(scores, 0.6),
        "choice: kthvalue": lambda: _kthvalue(scores, 0.6),
        "choice: argsort": lambda: _argsort(scores, 0.6),
    }
    if not shrink:
        variants["scores: dense average pooling"] = lambda: F.avg_pool2d(heat[:, None], size, stride=1)
    seconds = interleaved(variants, 2 if shrink else max(3, rounds // 2), device)
    base = seconds["scores and choice (ours)"]
    rows = [[name, f"{1000 * value:.1f}", f"{value / base:.2f}"] for name, value in seconds.items()]
    return ([f"batch {batch}, {side} px, regions of {size}", "ms", "of ours"], rows), {
        n: v / base for n, v in seconds.items()
    }
