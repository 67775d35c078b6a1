"""Crop, flip, colours and normalisation of whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug.choices import BORDERS
from keepaug.transfer import to_device

Border = str | tuple[float, ...]
_MIRROR_BIT = 62  # the highest of an int64 seed, which drawn seeds leave free

# Eigenvalues and eigenvectors of ImageNet's colours (Krizhevsky et al., 2012), RGB in [0, 1].
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_GREY = (0.299, 0.587, 0.114)


class CropFlip(NamedTuple):
    """Where each image of a batch was cut out of its padded original, and whether it was mirrored then.

    Attributes:
        top: (N,) int64 first row in the padded image, 0 to 2 padding; `padding` is the middle.
        left: (N,) int64 first column.
        mirrored: (N,) bool.
        padding: pixels on each side.
        border: what was padded with, "zero", "reflect" (the image mirrored at its outermost pixels), or a
            colour, one number per channel (the mean, say, which AutoAugment's code pads with).
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor
    padding: int
    border: Border = "zero"


def draw_crop_flip(
    seeds: Tensor, *, padding: int = 4, flip: bool = True, alternate: bool = False, border: Border = "zero"
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
    num, channels, height, width = images.shape
    padding, border, device = place.padding, place.border, images.device
    known = border in BORDERS if isinstance(border, str) else len(border) == channels
    if not known or (border == "reflect" and padding >= min(height, width)):
        raise ValueError(
            f"border must be 'zero', 'reflect', with padding below {min(height, width)}, or {channels} "
            f"numbers; got {border!r}, padding {padding}"
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
        if not isinstance(border, str):
            outside = F.pad(images.new_zeros(height, width, 1), (0, 0, *[padding] * 4), value=1).bool()
            padded = torch.where(outside, to_device(torch.tensor(border), device, images.dtype), padded)
    batch = torch.arange(num, device=device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def undo_crop_flip(images: Tensor, place: CropFlip) -> tuple[Tensor, Tensor]:
    """Put what `crop_flip` cut out back where it was in the original.

    Args:
        images: (N, C, H, W), cropped and flipped.
        place: of each image.

    Returns:
        (N, C, H, W) in the original's geometry, 0 where not shown, and (N, H, W) bool: where shown.
    """
    height, width = images.shape[2:]
    # Without the flip, the way back is the crop of the padded crop at the opposite place.
    mirrored = to_device(place.mirrored, images.device).view(-1, 1, 1, 1)
    straight = torch.where(mirrored, images.flip(-1), images)
    opposite = 2 * place.padding
    left, mirrored = opposite - place.left, torch.zeros_like(place.mirrored)
    back = CropFlip(opposite - place.top, left, mirrored, place.padding, "zero")
    shown = crop_flip(straight.new_ones(len(images), 1, height, width), back)[:, 0] > 0
    return crop_flip(straight, back), shown


def random_crop_flip(
    images: Tensor, seeds: Tensor, *, padding: int = 4, flip: bool = True, border: Border = "zero"
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


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Uint8 (N, 3, H, W) to float32: `(images / 255 - mean) / std`, mean and std for [0, 1]."""
    shape = (1, -1, 1, 1)
    shift = torch.tensor(mean).view(shape) * 255
    scale = 1 / (torch.tensor(std).view(shape) * 255)
    device = images.device
    return (images.float() - to_device(shift, device)) * to_device(scale, device)


class Colours(NamedTuple):
    """How the colours of each image change, in all of its views; None where they do not.

    Attributes:
        strength: (N, 3), of brightness, contrast and saturation: 0 leaves, 1 takes all away, -1 doubles.
        order: (N, 3) int64, which of them comes first, second and third.
        shift: (N, 3) added to red, green and blue in [0, 255].
    """

    strength: Tensor | None
    order: Tensor | None
    shift: Tensor | None


def draw_colours(
    num: int, *, jitter: float = 0.0, lighting: float = 0.0, generator: torch.Generator | None = None
) -> Colours:
    """One draw per image of the ImageNet recipe's colour jitter and PCA noise, as in CutMix's released code.

    Args:
        num: number of images N.
        jitter: the strengths are uniform in [-jitter, jitter], their order is random; 0.4 in the recipe.
        lighting: standard deviation of the coefficients of the PCA noise; 0.1 in the recipe.
        generator: CPU generator.
    """
    strength = order = shift = None
    if jitter:
        strength = (2 * torch.rand(num, 3, generator=generator) - 1) * jitter
        order = torch.rand(num, 3, generator=generator).argsort(dim=1)
    if lighting:
        alpha = torch.randn(num, 3, generator=generator) * lighting
        shift = (alpha * torch.tensor(_EIGENVALUES)) @ torch.tensor(_EIGENVECTORS).T * 255
    return Colours(strength, order, shift)


def change_colours(images: Tensor, strong: Tensor | None, colours: Colours) -> tuple[Tensor, Tensor | None]:
    """The same change for all views of an image.

    Where they agree before, they agree after, and a pasted patch fits. As in the released code nothing is
    clipped to [0, 255], and the contrast is about the mean grey; that of the clean view for all of them.

    Args:
        images: (N, 3, H, W), uint8 or floating in [0, 255].
        strong: another view, (N, 3, H, W), or several, (N, V, 3, H, W); or None.
        colours: of N images.

    Returns:
        Both in floating point, in [0, 255] but for what goes beyond.
    """
    views = [one if one.is_floating_point() else one.float() for one in (images, strong) if one is not None]

    def per_image(values: Tensor, view: Tensor) -> Tensor:
        """(N,) or (N, 3) to the shape of a view."""
        values = to_device(values, view.device, view.dtype)
        return values.view(len(values), *[1] * (view.ndim - 4), -1, 1, 1)

    if colours.strength is not None and colours.order is not None:
        grey = to_device(torch.tensor(_GREY), images.device).view(3, 1, 1)
        for turn in colours.order.unbind(dim=1):
            share = colours.strength.gather(1, turn[:, None])[:, 0]
            greys = [(view * grey).sum(dim=-3, keepdim=True) for view in views]
            mean = greys[0].mean(dim=(1, 2, 3))
            for index, (view, own) in enumerate(zip(views, greys, strict=True)):
                target = own * per_image(share * (turn == 2), view)
                target = target + per_image(mean, view) * per_image(share * (turn == 1), view)
                views[index] = view * per_image(1 - share, view) + target
    if colours.shift is not None:
        views = [view + per_image(colours.shift, view) for view in views]
    return views[0], views[1] if strong is not None else None
