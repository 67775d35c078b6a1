"""A sheet of what an augmentation does to a few images."""

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

__all__ = ["draw_views"]


def draw_views(
    rows: Sequence[Tensor], heat: Tensor, path: Path, *, mean: Sequence[float], std: Sequence[float]
) -> Path:
    """The first row, then the saliency, then the others; one column for each image.

    Args:
        rows: (N, 3, H, W) normalised each, for example the images and what the network is trained on.
        heat: (N, h, w) saliency of the first; shown at the images' size.
        path: PNG file.
        mean: of the normalisation.
        std: of the normalisation.
    """
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    shown = [(row.float().cpu() * scale + shift).clamp(0, 1) for row in rows]
    if heat.shape[1:] != rows[0].shape[2:]:
        heat = F.interpolate(heat[:, None], size=rows[0].shape[2:], mode="nearest")[:, 0]
    peak = heat.flatten(1).amax(dim=1).clamp(min=1e-12)[:, None, None]
    shown.insert(1, (heat / peak).sqrt().cpu()[:, None].expand(-1, 3, -1, -1))
    bordered = F.pad(torch.stack(shown), (1, 1, 1, 1), value=1.0)
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in bordered], dim=1)
    picture = to_pil_image((sheet * 255).round().to(torch.uint8))
    factor = max(1, 1100 // max(1, picture.width))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return write_bytes_atomic(path, buffer.getvalue())
