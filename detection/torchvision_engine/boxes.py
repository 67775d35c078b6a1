"""Anchors and the box loss, as Detectron2 has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

Targets = list[dict[str, Tensor]]
Sizes = list[tuple[int, int]]


def box_loss(predicted: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Sum of smooth L1, which with beta 0 is L1 (fvcore's rule)."""
    if beta < 1e-5:
        return F.l1_loss(predicted, wanted, reduction="sum")
    return F.smooth_l1_loss(predicted, wanted, beta=beta, reduction="sum")


class Anchors(nn.Module):
    """Detectron2's anchors: sizes outside, aspect ratios inside, unrounded, on the nominal strides.

    Args:
        cfg: the config.
        names: the feature maps, for example p2 to p6.
    """

    def __init__(self, cfg: Any, names: Sequence[str]) -> None:
        super().__init__()
        settings = cfg.MODEL.ANCHOR_GENERATOR
        self.strides = [2 ** int(name[-1]) for name in names]
        self.offset = settings.OFFSET
        sizes, ratios = list(settings.SIZES), list(settings.ASPECT_RATIOS)
        sizes = sizes * len(names) if len(sizes) == 1 else sizes
        ratios = ratios * len(names) if len(ratios) == 1 else ratios
        for level, (level_sizes, level_ratios) in enumerate(zip(sizes, ratios, strict=True)):
            self.register_buffer(f"cells{level}", _cells(level_sizes, level_ratios), persistent=False)

    def num_anchors_per_location(self) -> list[int]:
        """By feature map."""
        return [len(getattr(self, f"cells{level}")) for level in range(len(self.strides))]

    def forward(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """(total, 4) x0, y0, x1, y1 for each image."""
        found = []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            height, width = feature.shape[-2:]
            start = self.offset * stride
            y = torch.arange(start, height * stride, step=stride, dtype=torch.float32, device=feature.device)
            x = torch.arange(start, width * stride, step=stride, dtype=torch.float32, device=feature.device)
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            found.append((shifts + getattr(self, f"cells{level}")).reshape(-1, 4))
        return [torch.cat(found)] * len(images.image_sizes)


def _cells(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    cells = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            cells.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(cells)
