"""Cutout and random erasing: one region per image is filled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keepaug.baselines.common import Draw, applied_to, check_images, check_probability, regions_for, uniform
from keepaug.ops import cut
from keepaug.regions import Regions, check_placement, check_size, given
from keepaug.transfer import to_device

FILLS: dict[str, tuple[float, ...]] = {
    "zero": (0.0,),
    "mean": (0.0,),  # after normalisation the mean colour is 0
    "bot": (0.485, 0.456, 0.406),  # Bag of Tricks fills normalised images with the raw mean
}


class _Cutting:
    """Shared by augmentations that fill one region per image."""

    placement: str

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> Draw:
        """Which images a call would cut and how large; the others need no saliency map.

        Example:
            >>> drawn = keep.draw(images)
            >>> heat = saliency_map(model, images, labels, only=drawn.applied)
            >>> images = keep(images, heat, drawn=drawn)
        """
        raise NotImplementedError

    def sample(
        self,
        images: Tensor,
        saliency: Tensor | None = None,
        *,
        drawn: Draw | None = None,
        generator: torch.Generator | None = None,
    ) -> Regions:
        """The regions that a call would cut; height 0 where an image is left alone."""
        check_images(images, saliency)
        size, applied = drawn or self.draw(images, generator=generator)
        return regions_for(
            images,
            saliency,
            size,
            applied=applied,
            tau=getattr(self, "tau", None),  # of the Keep versions
            placement=self.placement,
            generator=generator,
        )

    def _fill(self, images: Tensor, generator: torch.Generator | None) -> float | Sequence[float] | Tensor:
        raise NotImplementedError

    def __call__(
        self,
        images: Tensor,
        saliency: Tensor | None = None,
        *,
        drawn: Draw | None = None,
        regions: Regions | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Cut one region per image.

        Args:
            images: (N, C, H, W), after normalisation.
            saliency: (N, H, W), see `saliency_map`; plain augmentations ignore it.
            drawn: what `draw` gave, for maps of the augmented images alone.
            regions: the regions to cut instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New tensor like `images`.
        """
        if regions is None:
            regions = self.sample(images, saliency, drawn=drawn, generator=generator)
        return cut(images, regions, self._fill(images, generator))


@dataclass(frozen=True)
class Cutout(_Cutting):
    """Fill one square per image (DeVries and Taylor, 2017).

    Args:
        size: side in pixels, or (height, width); 16 for CIFAR-10.
        placement: "clipped", as in the released code: the centre anywhere, `2 * (size // 2)` pixels clipped
            at the border; "inside"; or "matched", the same as "clipped" here (see `KeepCutout`).
        fill: value, or one per channel; 0 is the mean colour of normalised images.
        p: probability per image.
    """

    size: int | tuple[int, int] = 16
    placement: str = "clipped"
    fill: float | Sequence[float] = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        check_size(self.size)
        check_probability(self.p)
        check_placement(self.placement)

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> Draw:
        """Which images a call would cut."""
        return Draw(self.size, applied_to(len(images), self.p, generator))

    def _fill(self, images: Tensor, generator: torch.Generator | None) -> float | Sequence[float] | Tensor:
        return self.fill


@dataclass(frozen=True)
class RandomErasing(_Cutting):
    """Fill one rectangle of random size and shape per image (Zhong et al., 2017).

    Args:
        p: probability per image.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest height / width.
        fill: "random" (standard normal noise, for normalised images), "zero" or "mean" (0), "bot" (the raw
            ImageNet mean, as Bag of Tricks' code does after normalisation), a number, or one per channel.
        aspect_draw: "uniform" as in the released code, or "log_uniform" as in torchvision.
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: str | float | Sequence[float] = "random"
    aspect_draw: str = "uniform"

    def __post_init__(self) -> None:
        check_probability(self.p)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be (low, high) with 0 < low <= high <= 1, got {self.area}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect must be (low, high) with 0 < low <= high, got {self.aspect}")
        if isinstance(self.fill, str) and self.fill not in ("random", *FILLS):
            raise ValueError(
                f"fill must be one of random, {', '.join(FILLS)}, a number or one per channel; got "
                f"{self.fill!r}"
            )
        if self.aspect_draw not in ("uniform", "log_uniform"):
            raise ValueError(f"aspect_draw must be 'uniform' or 'log_uniform', got {self.aspect_draw!r}")

    @property
    def placement(self) -> str:  # type: ignore[override]
        """Always whole regions: the released code draws again what does not fit."""
        return "inside"

    def sample_sizes(
        self, num: int, image_size: tuple[int, int], *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sizes (N, 2) int64 and which images are erased (N,) bool.

        As the released code: up to 100 draws of area and shape, the first that fits; else the image stays.
        """
        height, width = image_size
        area, aspect = uniform((2, num, 100), generator)
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
            applied = applied & (uniform((num,), generator) < self.p)
        return torch.where(applied[:, None], sizes, torch.ones_like(sizes)), applied

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> Draw:
        """Which images a call would erase, and how large the regions are."""
        check_images(images)
        shape = (images.shape[2], images.shape[3])
        return Draw(*self.sample_sizes(len(images), shape, generator=generator))

    def _fill(self, images: Tensor, generator: torch.Generator | None) -> float | Sequence[float] | Tensor:
        if self.fill == "random":
            device = generator.device if generator is not None else images.device
            noise = torch.randn(images.shape, device=device, dtype=torch.float32, **given(generator))
            return to_device(noise, images.device, images.dtype)
        if isinstance(self.fill, str):
            values = FILLS[self.fill]
            return values[0] if len(values) == 1 else values
        return self.fill
