"""Cut (Eq. 2) and paste (Eq. 3) on batches, without writing into their inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keepaug.regions import Regions, region_mask
from keepaug.transfer import to_device


def check_batch(images: Tensor, name: str = "images") -> None:
    """Refuse what is no batch (N, C, H, W), with the way to one.

    Raises:
        TypeError: no tensor: a PIL image, an array, a list.
        ValueError: a tensor of another shape.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        return
    error = ValueError if isinstance(images, Tensor) else TypeError
    got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    raise error(
        f"{name} must be a batch, a tensor of the shape (N, C, H, W), got {got}: call it on a batch, "
        "after the loader, not on one image in a Compose or a Dataset; torch.stack makes a batch of a list"
    )


def check_labels(images: Tensor, labels: Tensor) -> None:
    """Refuse anything but one class, or one row of one-hot or soft labels, per image of a batch.

    Raises:
        TypeError: no tensor.
        ValueError: another shape.
    """
    check_batch(images)
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}: pass torch.tensor(labels)")
    if labels.ndim not in (1, 2) or len(labels) != len(images):
        raise ValueError(
            f"labels must have the shape ({len(images)},), or ({len(images)}, classes) where they are "
            f"one-hot or soft; got {tuple(labels.shape)}"
        )


def _check(images: Tensor, regions: Regions, name: str) -> None:
    check_batch(images, name)
    if regions.top.shape != images.shape[:1]:
        raise ValueError(
            f"there must be one region per image: got {regions.top.numel()} regions for {images.shape[0]} "
            f"images"
        )


def _mask(images: Tensor, regions: Regions) -> Tensor:
    return region_mask(regions.to(images.device), (images.shape[2], images.shape[3]))[:, None]


def _like(result: Tensor, images: Tensor) -> Tensor:
    """`result` in the memory format of `images`."""
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        return result.contiguous(memory_format=torch.channels_last)
    return result


def cut(images: Tensor, regions: Regions, fill: float | Sequence[float] | Tensor = 0.0) -> Tensor:
    """x~ = (1 - M(S)) x + M(S) fill (Eq. 2; section 2 for a fill other than 0).

    Args:
        images: (N, C, H, W), any dtype.
        regions: one box per image.
        fill: a number, one per channel, or a tensor that broadcasts to the images (noise, for example).

    Returns:
        A new tensor like `images`.

    Raises:
        ValueError: wrong shapes, or a fill that fits neither the channels nor the images.
    """
    _check(images, regions, "images")
    return fill_where(_mask(images, regions), images, fill)


def fill_where(mask: Tensor, images: Tensor, fill: float | Sequence[float] | Tensor) -> Tensor:
    """`fill` (as in `cut`) where the mask (N, 1, H, W) holds."""
    if isinstance(fill, int | float):
        return _like(images.masked_fill(mask, fill), images)
    if not isinstance(fill, Tensor):
        fill = to_device(torch.tensor(fill, dtype=images.dtype), images.device)
    if fill.ndim == 1:
        if len(fill) != images.shape[1]:
            raise ValueError(f"fill has {len(fill)} numbers, but the images have {images.shape[1]} channels")
        fill = fill[None, :, None, None]
    try:
        fill = fill.expand(images.shape)
    except RuntimeError as error:
        raise ValueError(
            f"fill of the shape {tuple(fill.shape)} does not broadcast to the images, {tuple(images.shape)}"
        ) from error
    return _like(torch.where(mask, to_device(fill, images.device, images.dtype), images), images)


def paste(source: Tensor, target: Tensor, regions: Regions) -> Tensor:
    """x~ = M(S) source + (1 - M(S)) target (Eq. 3).

    Args:
        source: (N, C, H, W), shown inside the boxes (the clean images, for selective-paste).
        target: the same shape, dtype and device, shown outside.
        regions: one box per image.

    Returns:
        A new tensor like `target`.

    Raises:
        ValueError: source and target differ, or not one region per image.
    """
    _check(target, regions, "target")
    if (source.shape, source.dtype, source.device) != (target.shape, target.dtype, target.device):
        raise ValueError(
            f"source and target must agree in shape, dtype and device; got {tuple(source.shape)} "
            f"{source.dtype} {source.device} and {tuple(target.shape)} {target.dtype} {target.device}"
        )
    return _like(torch.where(_mask(target, regions), source, target), target)
