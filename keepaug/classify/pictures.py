"""A picture of what the network sees and what the augmentation does."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.runs.files import write_bytes_atomic

__all__ = ["draw_augmented"]


def draw_augmented(
    images: Tensor, heat: Tensor, inputs: Tensor, path: Path, *, mean: Sequence[float], std: Sequence[float]
) -> Path:
    """Three rows: the images, their saliency, and what the network is trained on.

    Args:
        images: (N, 3, H, W) normalised.
        heat: (N, h, w); shown at the images' size.
        inputs: (N, 3, H, W) augmented.
        path: PNG file.
        mean: of the normalisation.
        std: of the normalisation.
    """
    shift = torch.tensor(mean).view(1, 3, 1, 1)
    scale = torch.tensor(std).view(1, 3, 1, 1)

    def pixels(batch: Tensor) -> Tensor:
        return (batch.float().cpu() * scale + shift).clamp(0, 1)

    if heat.shape[1:] != images.shape[2:]:
        heat = F.interpolate(heat[:, None], size=images.shape[2:], mode="nearest")[:, 0]
    peak = heat.flatten(1).amax(dim=1).clamp(min=1e-12)[:, None, None]
    grey = (heat / peak).sqrt().cpu()[:, None].expand(-1, 3, -1, -1)
    rows = torch.stack([pixels(images), grey, pixels(inputs)])
    bordered = F.pad(rows, (1, 1, 1, 1), value=1.0)
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in bordered], dim=1)
    picture = to_pil_image((sheet * 255).round().to(torch.uint8))
    factor = max(1, 1100 // max(1, picture.width))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return write_bytes_atomic(path, buffer.getvalue())
