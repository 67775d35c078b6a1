"""What the plain augmentations share: checks, draws and regions from one generator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keepaug.ops import check_batch
from keepaug.regions import Regions, Size, given, random_regions, sample_regions
from keepaug.transfer import to_device


class Draw(NamedTuple):
    """What is drawn before importance is looked at: which images, and how large their regions.

    Attributes:
        size: of the regions, one for all or (N, 2) int64 with a size per image (1 x 1 where nothing is done).
        applied: (N,) bool; None for all images.
    """

    size: Size
    applied: Tensor | None

    def first(self) -> Draw:
        """The same for the first image alone."""
        size = self.size[:1] if isinstance(self.size, Tensor) else self.size
        return Draw(size, None if self.applied is None else self.applied[:1])


def check_probability(p: float) -> None:
    """Refuse what is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability and must be in [0, 1], got {p}")


def check_images(images: Tensor, saliency: Tensor | None = None) -> None:
    """Refuse shapes other than (N, C, H, W) and a saliency other than (N, H, W)."""
    check_batch(images)
    expected = (images.shape[0], *images.shape[2:])
    if saliency is not None and saliency.shape != expected:
        raise ValueError(
            f"saliency must have the shape {expected} for images of {tuple(images.shape)}, got "
            f"{tuple(saliency.shape)}"
        )


def uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform float64 on the generator's device (CPU without one), where the sizes are drawn."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(shape, device=device, dtype=torch.float64, **given(generator))


def regions_for(
    images: Tensor,
    saliency: Tensor | None,
    size: Size,
    *,
    applied: Tensor | None = None,
    tau: float | None,
    prefer: str = "low",
    placement: str,
    generator: torch.Generator | None,
) -> Regions:
    """Uniform regions without tau, saliency-aware ones with it; no region where `applied` is False."""
    check_images(images, saliency)
    if tau is None:
        shape = (images.shape[2], images.shape[3])
        regions = random_regions(
            len(images), shape, size, placement=placement, generator=generator, device=images.device
        )
        return regions if applied is None else regions.where(applied)
    if saliency is None:
        raise ValueError(
            "this augmentation needs the saliency (N, H, W): saliency_map(model, images, labels), or a map "
            "of your own"
        )
    heat = to_device(saliency, images.device)
    if applied is not None:
        # The other maps have no say, so that maps of the augmented images alone draw the same regions.
        heat = heat.masked_fill(~to_device(applied, images.device)[:, None, None], 0)
    regions = sample_regions(heat, size, tau=tau, prefer=prefer, placement=placement, generator=generator)
    return regions if applied is None else regions.where(applied)


def applied_to(num: int, p: float, generator: torch.Generator | None) -> Tensor | None:
    """(N,) bool, which images are augmented; None for all of them."""
    return None if p >= 1 else uniform((num,), generator) < p


def beta(alpha: float, num: int, generator: torch.Generator | None) -> Tensor:
    """(num,) float64 from Beta(alpha, alpha), from the given generator."""
    if alpha == 1:
        return uniform((num,), generator)
    device = generator.device if generator is not None else torch.device("cpu")
    concentration = torch.full((2, num), float(alpha), dtype=torch.float64, device=device)
    first, second = torch._standard_gamma(concentration, **given(generator))
    total: Tensor = (first + second).clamp(min=torch.finfo(torch.float64).tiny)
    share: Tensor = first / total
    return share


def permutation_of(num: int, generator: torch.Generator | None) -> Tensor:
    """(num,) int64, a random order, on the generator's device (CPU without one)."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randperm(num, device=device, **given(generator))


def check_per(per: str) -> None:
    """Refuse anything but "image" and "batch"."""
    if per not in ("image", "batch"):
        raise ValueError(f"per must be 'image' or 'batch', got {per!r}")


def check_alpha(alpha: float) -> None:
    """Refuse a parameter that Beta(alpha, alpha) does not have."""
    if alpha <= 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
