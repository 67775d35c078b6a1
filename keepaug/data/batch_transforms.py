"""Crop, flip, normalisation and lighting of whole batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["lighting", "normalise", "random_crop_flip"]

# Eigenvalues and eigenvectors of ImageNet's colours (Krizhevsky et al., 2012), RGB in [0, 1].
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def random_crop_flip(
    images: Tensor, seeds: Tensor, *, padding: int = 4, flip: bool = True, border: str = "zero"
) -> Tensor:
    """Padding, a random crop of the old size and a horizontal flip, each image by its own seed.

    Args:
        images: (N, C, H, W).
        seeds: (N,) int64 >= 0, uniform over a range much larger than (2 padding + 1)^2 x 2.
        padding: pixels on each side.
        flip: mirror half of the images.
        border: what is padded with, "zero" or "reflect" (the image mirrored at its outermost pixels).

    Returns:
        New tensor like `images`.

    Raises:
        ValueError: unknown border, or an image too small to be reflected.
    """
    num, _, height, width = images.shape
    if border not in ("zero", "reflect") or (border == "reflect" and padding >= min(height, width)):
        raise ValueError(
            f"border must be 'zero' or 'reflect', the latter with padding below {min(height, width)}; got {border!r}, "
            f"padding {padding}"
        )
    seeds = seeds.to(images.device)
    places = 2 * padding + 1
    top, left = seeds % places, (seeds // places) % places
    mirrored = ((seeds // places**2) % 2 == 1) & flip
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(num, -1)
    columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - columns, columns)
    if border == "reflect":
        padded = images.permute(0, 2, 3, 1)
        rows = height - 1 - (height - 1 - (rows - padding).abs()).abs()
        columns = width - 1 - (width - 1 - (columns - padding).abs()).abs()
    else:
        padded = F.pad(images, (padding, padding, padding, padding)).permute(0, 2, 3, 1)
    batch = torch.arange(num, device=images.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Uint8 (N, 3, H, W) to float32: `(images / 255 - mean) / std`, mean and std for [0, 1]."""
    shape = (1, -1, 1, 1)
    shift = torch.tensor(mean, device=images.device).view(shape) * 255
    scale = 1 / (torch.tensor(std, device=images.device).view(shape) * 255)
    return (images.float() - shift) * scale


def lighting(
    images: Tensor, std: Sequence[float], *, strength: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """PCA colour noise of the ImageNet recipe on normalised images, one draw per image.

    Args:
        images: (N, 3, H, W) normalised.
        std: the normalisation's, for [0, 1].
        strength: standard deviation of the coefficients; 0.1 in the recipe.
        generator: CPU generator.
    """
    alpha = torch.randn(len(images), 3, generator=generator) * strength
    shift = (alpha * torch.tensor(_EIGENVALUES)) @ torch.tensor(_EIGENVECTORS).T
    shift = (shift / torch.tensor(std)).to(images.device, images.dtype)
    return images + shift[:, :, None, None]
