"""What the examples learn from, so that they need no download: drawn squares and discs."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset


def shapes(num: int = 64, side: int = 32) -> TensorDataset:
    """Noise with a bright square (class 0) or disc (class 1) somewhere."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(num, 3, side, side, generator=generator) / 4, torch.arange(num) % 2
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    for image, label in zip(images, labels, strict=True):
        offset = (grid - torch.randint(8, side - 8, (2, 1, 1), generator=generator)).abs().float()
        image[:, (offset.amax(dim=0) if label == 0 else offset.norm(dim=0)) < 6] += 2
    return TensorDataset(images, labels)
