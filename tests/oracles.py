"""Slow references, written from the paper's text with nested loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def saliency(model: nn.Module, image: Tensor, label: int | None) -> Tensor:
    """|gradient of the label's logit|, maximum over channels, for one image alone (section 3)."""
    model.eval()
    pixels = image[None].clone().requires_grad_(True)
    logits = model(pixels)[0]
    target = logits.max() if label is None else logits[label]
    (gradient,) = torch.autograd.grad(target, pixels)
    height, width = image.shape[1:]
    heat = torch.zeros(height, width)
    for i in range(height):
        for j in range(width):
            heat[i, j] = max(abs(float(gradient[0, c, i, j])) for c in range(image.shape[0]))
    return heat


def candidates(
    shape: tuple[int, int], size: tuple[int, int], placement: str
) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of all candidate regions."""
    (height, width), (h, w) = shape, size
    if placement == "inside":
        return [(t, left, h, w) for t in range(height - h + 1) for left in range(width - w + 1)]
    boxes = []
    for i in range(height):
        for j in range(width):
            top, left = max(i - h // 2, 0), max(j - w // 2, 0)
            bottom, right = min(i - h // 2 + h, height), min(j - w // 2 + w, width)
            boxes.append((top, left, bottom - top, right - left))
    return boxes


def importance(heat: Tensor, box: tuple[int, int, int, int]) -> float:
    """I(S) = sum of g over S (Eq. 1)."""
    top, left, height, width = box
    return math.fsum(float(heat[i, j]) for i in range(top, top + height) for j in range(left, left + width))


def allowed(heat: Tensor, size: tuple[int, int], tau: float, prefer: str, placement: str) -> set[int]:
    """Indices of the candidates below (above) the tau-quantile of all candidates' importance (the Remark)."""
    scores = [importance(heat, box) for box in candidates(tuple(heat.shape), size, placement)]
    number = len(scores)
    below = math.floor(tau * number + 1e-9)
    if prefer == "low":
        limit = max(1, below)
        return {i for i, s in enumerate(scores) if sum(o < s for o in scores) < limit}
    limit = max(1, number - below)
    return {i for i, s in enumerate(scores) if sum(o > s for o in scores) < limit}


def cut(image: Tensor, box: tuple[int, int, int, int], fill: float) -> Tensor:
    """(1 - M) x + M fill (Eq. 2)."""
    top, left, height, width = box
    out = image.clone()
    for i in range(top, top + height):
        for j in range(left, left + width):
            out[:, i, j] = fill
    return out


def paste(source: Tensor, target: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """M x + (1 - M) x' (Eq. 3)."""
    top, left, height, width = box
    out = target.clone()
    for i in range(top, top + height):
        for j in range(left, left + width):
            out[:, i, j] = source[:, i, j]
    return out
