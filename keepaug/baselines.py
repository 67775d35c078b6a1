"""The plain augmentations on batches: what KeepAugment is measured against.

Each has the call shape of its Keep counterpart, so that they can be exchanged; the saliency is accepted and ignored.
Every image of a batch gets its own region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug.ops import cut, paste
from keepaug.regions import PLACEMENTS, Regions, random_regions, sample_regions

__all__ = [
    "FILLS",
    "CutMix",
    "Cutout",
    "MixedLabels",
    "RandomErasing",
    "mixed_cross_entropy",
]

FILLS: dict[str, tuple[float, ...]] = {
    "zero": (0.0,),
    "mean": (0.0,),  # after normalisation the mean colour is 0
    "bot": (0.485, 0.456, 0.406),  # Bag of Tricks fills normalised images with the raw mean
}


class MixedLabels(NamedTuple):
    """Labels of mixed images: the loss is lam * loss(labels_a) + (1 - lam) * loss(labels_b).

    Attributes:
        labels_a: (N,) int64, classes of the images that were cut.
        labels_b: (N,) int64, classes of the images the patches came from.
        lam: (N,) float32 in [0, 1], share of the pixels that are still of the image itself.
    """

    labels_a: Tensor
    labels_b: Tensor
    lam: Tensor


def mixed_cross_entropy(logits: Tensor, labels: MixedLabels, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of mixed images, mean over the batch (CutMix, Eq. 1).

    Args:
        logits: (N, classes).
        labels: as CutMix and KeepCutMix return them.
        label_smoothing: in [0, 1].

    Returns:
        Scalar.
    """

    def each(target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)

    lam = labels.lam.to(logits.dtype)
    return (lam * each(labels.labels_a) + (1 - lam) * each(labels.labels_b)).mean()


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability and must be in [0, 1], got {p}")


def _check_tau(tau: float) -> None:
    if not 0 <= tau <= 1:
        raise ValueError(f"tau is a quantile and must be in [0, 1], got {tau}")


def _check_placement(placement: str) -> None:
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}")


def _check_images(images: Tensor, saliency: Tensor | None) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must have the shape (N, C, H, W), got {tuple(images.shape)}")
    expected = (images.shape[0], *images.shape[2:])
    if saliency is not None and saliency.shape != expected:
        raise ValueError(
            f"saliency must have the shape {expected} for images of {tuple(images.shape)}, got {tuple(saliency.shape)}"
        )


def _rand(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform float64 on the generator's device (CPU without one), where the sizes are drawn."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float64)


def _regions_for(
    images: Tensor,
    saliency: Tensor | None,
    size: int | tuple[int, int] | Tensor,
    *,
    tau: float | None,
    prefer: str = "low",
    placement: str,
    generator: torch.Generator | None,
) -> Regions:
    """Uniform regions without tau, saliency-aware ones with it."""
    _check_images(images, saliency)
    if tau is None:
        shape = (images.shape[2], images.shape[3])
        return random_regions(
            len(images), shape, size, placement=placement, generator=generator, device=images.device
        )
    if saliency is None:
        raise ValueError(
            "this augmentation needs the saliency (N, H, W): saliency_map(model, images, labels), or a map of your own"
        )
    return sample_regions(
        saliency.to(images.device), size, tau=tau, prefer=prefer, placement=placement, generator=generator
    )


def _applied(num: int, p: float, generator: torch.Generator | None) -> Tensor | None:
    """(N,) bool, which images are augmented; None for all of them."""
    return None if p >= 1 else _rand((num,), generator) < p


class _Cutting:
    """Shared by augmentations that fill one region per image."""

    def sample(
        self, images: Tensor, saliency: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Regions:
        """The regions that a call would cut; height 0 where an image is left alone."""
        raise NotImplementedError

    def _fill(self, images: Tensor, generator: torch.Generator | None) -> float | Sequence[float] | Tensor:
        raise NotImplementedError

    def __call__(
        self,
        images: Tensor,
        saliency: Tensor | None = None,
        *,
        regions: Regions | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Cut one region per image.

        Args:
            images: (N, C, H, W), after normalisation.
            saliency: (N, H, W), see `saliency_map`; plain augmentations ignore it.
            regions: the regions to cut instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New tensor like `images`.
        """
        if regions is None:
            regions = self.sample(images, saliency, generator=generator)
        return cut(images, regions, self._fill(images, generator))


@dataclass(frozen=True)
class Cutout(_Cutting):
    """Fill one square per image (DeVries and Taylor, 2017).

    Args:
        size: side in pixels, or (height, width); 16 for CIFAR-10.
        placement: "clipped", as in the released code: the centre anywhere, clipped at the border; or "inside".
        fill: value, or one per channel; 0 is the mean colour of normalised images.
        p: probability per image.
    """

    size: int | tuple[int, int] = 16
    placement: str = "clipped"
    fill: float | Sequence[float] = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _check_probability(self.p)
        _check_placement(self.placement)

    @property
    def _tau(self) -> float | None:
        return None

    def sample(
        self, images: Tensor, saliency: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Regions:
        """The regions that a call would cut."""
        applied = _applied(len(images), self.p, generator)
        regions = _regions_for(
            images, saliency, self.size, tau=self._tau, placement=self.placement, generator=generator
        )
        return regions if applied is None else regions.where(applied)

    def _fill(self, images: Tensor, generator: torch.Generator | None) -> float | Sequence[float] | Tensor:
        return self.fill


@dataclass(frozen=True)
class RandomErasing(_Cutting):
    """Fill one rectangle of random size and shape per image (Zhong et al., 2017).

    Args:
        p: probability per image.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest height / width.
        fill: "random" (standard normal noise, for normalised images), "zero" or "mean" (0), "bot" (the raw ImageNet
            mean, as the released Bag of Tricks code does after normalisation), a number, or one per channel.
        aspect_draw: "uniform" as in the released code, or "log_uniform" as in torchvision.
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: str | float | Sequence[float] = "random"
    aspect_draw: str = "uniform"

    def __post_init__(self) -> None:
        _check_probability(self.p)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be (low, high) with 0 < low <= high <= 1, got {self.area}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect must be (low, high) with 0 < low <= high, got {self.aspect}")
        if isinstance(self.fill, str) and self.fill not in ("random", *FILLS):
            raise ValueError(
                f"fill must be one of random, {', '.join(FILLS)}, a number or one per channel; got {self.fill!r}"
            )
        if self.aspect_draw not in ("uniform", "log_uniform"):
            raise ValueError(f"aspect_draw must be 'uniform' or 'log_uniform', got {self.aspect_draw!r}")

    @property
    def _tau(self) -> float | None:
        return None

    def sample_sizes(
        self, num: int, image_size: tuple[int, int], *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sizes (N, 2) int64 and which images are erased (N,) bool.

        As the released code: up to 100 draws of area and shape, the first that fits; no fit leaves the image alone.
        """
        height, width = image_size
        area, aspect = _rand((2, num, 100), generator)
        area = (self.area[0] + (self.area[1] - self.area[0]) * area) * height * width
        low, high = self.aspect
        if self.aspect_draw == "log_uniform":
            aspect = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * aspect)
        else:
            aspect = low + (high - low) * aspect
        rows, columns = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
        fits = (rows < height) & (columns < width) & (rows >= 1) & (columns >= 1)
        first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
        sizes = torch.cat([rows.gather(1, first), columns.gather(1, first)], dim=1).to(torch.int64)
        applied = fits.any(dim=1)
        if self.p < 1:
            applied = applied & (_rand((num,), generator) < self.p)
        return torch.where(applied[:, None], sizes, torch.ones_like(sizes)), applied

    def sample(
        self, images: Tensor, saliency: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Regions:
        """The regions that a call would erase; height 0 where an image is left alone."""
        _check_images(images, saliency)
        shape = (images.shape[2], images.shape[3])
        sizes, applied = self.sample_sizes(len(images), shape, generator=generator)
        regions = _regions_for(
            images, saliency, sizes, tau=self._tau, placement="inside", generator=generator
        )
        return regions.where(applied)

    def _fill(self, images: Tensor, generator: torch.Generator | None) -> float | Sequence[float] | Tensor:
        if self.fill == "random":
            device = generator.device if generator is not None else images.device
            noise = torch.randn(images.shape, generator=generator, device=device, dtype=torch.float32)
            return noise.to(images.device, images.dtype)
        if isinstance(self.fill, str):
            values = FILLS[self.fill]
            return values[0] if len(values) == 1 else values
        return self.fill


@dataclass(frozen=True)
class CutMix:
    """Fill one region per image with that of another image of the batch, and mix the labels (Yun et al., 2019).

    Args:
        alpha: lambda ~ Beta(alpha, alpha); the region's area is 1 - lambda of the image's.
        p: probability that it is applied, per image, or per batch with `per="batch"`.
        placement: "clipped" as in the released code, or "inside".
        per: "image": lambda and the box of each image are its own; "batch": one lambda and one box for all, as in the
            released code. The partner is a random permutation in both.
    """

    alpha: float = 1.0
    p: float = 1.0
    placement: str = "clipped"
    per: str = "image"

    def __post_init__(self) -> None:
        _check_probability(self.p)
        _check_placement(self.placement)
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")
        if self.per not in ("image", "batch"):
            raise ValueError(f"per must be 'image' or 'batch', got {self.per!r}")

    @property
    def _tau(self) -> float | None:
        return None

    def sample_sizes(
        self, num: int, image_size: tuple[int, int], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sizes (N, 2) int64, >= 0; 0 where nothing is cut."""
        height, width = image_size
        draws = num if self.per == "image" else min(num, 1)
        lam = _beta(self.alpha, draws, generator)
        side = torch.sqrt(1 - lam)
        sizes = torch.stack([(height * side).to(torch.int64), (width * side).to(torch.int64)], dim=1)
        if self.p < 1:
            sizes = sizes * (_rand((draws,), generator) < self.p)[:, None]
        return sizes.expand(num, 2)

    def sample(
        self, images: Tensor, saliency: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Regions:
        """The regions that a call would replace; height 0 where an image is left alone."""
        _check_images(images, saliency)
        sizes = self.sample_sizes(len(images), (images.shape[2], images.shape[3]), generator=generator)
        regions = self._place(images, saliency, sizes.clamp(min=1), generator)
        return regions.where((sizes > 0).all(dim=1))

    def _place(
        self, images: Tensor, saliency: Tensor | None, sizes: Tensor, generator: torch.Generator | None
    ) -> Regions:
        if self.per == "image" or not len(images):
            return _regions_for(
                images, saliency, sizes, tau=self._tau, placement=self.placement, generator=generator
            )
        # One box for the whole batch: the importance of a region is then its mean over the batch.
        mean = None if saliency is None else saliency.float().mean(dim=0, keepdim=True)
        one = _regions_for(
            images[:1], mean, sizes[:1], tau=self._tau, placement=self.placement, generator=generator
        )
        return Regions(*(part.expand(len(images)) for part in one))

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        saliency: Tensor | None = None,
        *,
        regions: Regions | None = None,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, MixedLabels]:
        """Mix each image with a partner.

        Args:
            images: (N, C, H, W).
            labels: (N,) integer classes.
            saliency: (N, H, W) of `images`; the plain CutMix ignores it.
            regions: the regions to replace instead of drawn ones.
            permutation: (N,) the partners instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New images, and the labels with lambda recomputed from the replaced area.

        Raises:
            ValueError: wrong shapes.
        """
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must have the shape ({len(images)},), got {tuple(labels.shape)}")
        if regions is None:
            regions = self.sample(images, saliency, generator=generator)
        if permutation is None:
            device = generator.device if generator is not None else torch.device("cpu")
            permutation = torch.randperm(len(images), generator=generator, device=device)
        permutation = permutation.to(images.device, non_blocking=True)
        mixed = paste(images[permutation], images, regions)
        pixels = images.shape[2] * images.shape[3]
        lam = 1 - regions.area.to(labels.device).to(torch.float32) / pixels
        return mixed, MixedLabels(labels, labels[permutation.to(labels.device)], lam)


def _beta(alpha: float, num: int, generator: torch.Generator | None) -> Tensor:
    """(num,) float64 from Beta(alpha, alpha), from the given generator."""
    if alpha == 1:
        return _rand((num,), generator)
    device = generator.device if generator is not None else torch.device("cpu")
    concentration = torch.full((2, num), float(alpha), dtype=torch.float64, device=device)
    first, second = torch._standard_gamma(concentration, generator=generator)
    total: Tensor = (first + second).clamp(min=torch.finfo(torch.float64).tiny)
    share: Tensor = first / total
    return share
