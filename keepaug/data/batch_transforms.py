"""Crop, flip, normalisation and lighting of whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug.transfer import to_device

__all__ = [
    "CropFlip",
    "crop_flip",
    "draw_crop_flip",
    "lighting",
    "normalise",
    "random_crop_flip",
    "undo_crop_flip",
    "with_mirror",
]

BORDERS = ("zero", "reflect")
_MIRROR_BIT = 62  # the highest of an int64 seed, which drawn seeds leave free

# Eigenvalues and eigenvectors of ImageNet's colours (Krizhevsky et al., 2012), RGB in [0, 1].
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


class CropFlip(NamedTuple):
    """Where each image of a batch was cut out of its padded original, and whether it was mirrored then.

    Attributes:
        top: (N,) int64 first row in the padded image, 0 to 2 padding; `padding` is the middle.
        left: (N,) int64 first column.
        mirrored: (N,) bool.
        padding: pixels on each side.
        border: what was padded with, "zero" or "reflect" (the image mirrored at its outermost pixels).
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor
    padding: int
    border: str = "zero"


def draw_crop_flip(
    seeds: Tensor, *, padding: int = 4, flip: bool = True, alternate: bool = False, border: str = "zero"
) -> CropFlip:
    """The crop and flip of each image, decided by its own seed.

    Args:
        seeds: (N,) int64 >= 0, uniform over a range much larger than (2 padding + 1)^2 x 2.
        padding: pixels on each side.
        flip: mirror half of the images.
        alternate: mirror those whose seeds say so (`with_mirror`) instead.
        border: see `CropFlip`.
    """
    places = 2 * padding + 1
    drawn = seeds >> _MIRROR_BIT if alternate else seeds // places**2
    mirrored = (drawn % 2 == 1) & flip
    return CropFlip(seeds % places, (seeds // places) % places, mirrored, padding, border)


def with_mirror(seeds: Tensor, mirrored: Tensor) -> Tensor:
    """Seeds that say which images are mirrored.

    Args:
        seeds: (N,) int64 in [0, 2^62).
        mirrored: (N,) bool.
    """
    return seeds | (mirrored.long() << _MIRROR_BIT)


def crop_flip(images: Tensor, place: CropFlip) -> Tensor:
    """Padding, the crop of the old size and the flip.

    Args:
        images: (N, C, H, W).
        place: of each image.

    Returns:
        New tensor like `images`.

    Raises:
        ValueError: unknown border, or an image too small to be reflected.
    """
    num, _, height, width = images.shape
    padding, border, device = place.padding, place.border, images.device
    if border not in BORDERS or (border == "reflect" and padding >= min(height, width)):
        raise ValueError(
            f"border must be 'zero' or 'reflect', the latter with padding below {min(height, width)}; got {border!r}, "
            f"padding {padding}"
        )
    top, left, mirrored = (to_device(part, device)[:, None] for part in place[:3])
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(num, -1)
    columns = left + torch.where(mirrored, width - 1 - columns, columns)
    if border == "reflect":
        padded = images.permute(0, 2, 3, 1)
        rows = height - 1 - (height - 1 - (rows - padding).abs()).abs()
        columns = width - 1 - (width - 1 - (columns - padding).abs()).abs()
    else:
        padded = F.pad(images, (padding, padding, padding, padding)).permute(0, 2, 3, 1)
    batch = torch.arange(num, device=device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def undo_crop_flip(images: Tensor, place: CropFlip) -> tuple[Tensor, Tensor]:
    """Put what `crop_flip` cut out back where it was in the original.

    Args:
        images: (N, C, H, W), cropped and flipped.
        place: of each image.

    Returns:
        (N, C, H, W) in the original's geometry, 0 where the crop did not show it, and (N, H, W) bool: where it did.
    """
    height, width = images.shape[2:]
    # Without the flip, the way back is the crop of the padded crop at the opposite place.
    straight = torch.where(
        to_device(place.mirrored, images.device)[:, None, None, None], images.flip(-1), images
    )
    opposite = 2 * place.padding
    back = CropFlip(
        opposite - place.top, opposite - place.left, torch.zeros_like(place.mirrored), place.padding, "zero"
    )
    shown = crop_flip(straight.new_ones(len(images), 1, height, width), back)[:, 0] > 0
    return crop_flip(straight, back), shown


def random_crop_flip(
    images: Tensor, seeds: Tensor, *, padding: int = 4, flip: bool = True, border: str = "zero"
) -> Tensor:
    """Padding, a random crop of the old size and a horizontal flip, each image by its own seed.

    Args:
        images: (N, C, H, W).
        seeds: (N,) int64, see `draw_crop_flip`.
        padding: pixels on each side.
        flip: mirror half of the images.
        border: see `CropFlip`.

    Returns:
        New tensor like `images`.

    Raises:
        ValueError: unknown border, or an image too small to be reflected.
    """
    return crop_flip(images, draw_crop_flip(seeds, padding=padding, flip=flip, border=border))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Uint8 (N, 3, H, W) to float32: `(images / 255 - mean) / std`, mean and std for [0, 1]."""
    shape = (1, -1, 1, 1)
    shift = torch.tensor(mean).view(shape) * 255
    scale = 1 / (torch.tensor(std).view(shape) * 255)
    device = images.device
    return (images.float() - to_device(shift, device)) * to_device(scale, device)


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
    shift = to_device(shift / torch.tensor(std), images.device, images.dtype)
    return images + shift[:, :, None, None]
