"""KeepAugment: selective-cut and selective-paste around the plain augmentations (section 3, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keepaug.baselines import CutMix, Cutout, RandomErasing
from keepaug.baselines.common import check_placement, check_tau, regions_for
from keepaug.ops import paste
from keepaug.regions import Regions, check_size

__all__ = ["KeepCutMix", "KeepCutout", "KeepPaste", "KeepRandomErasing"]


@dataclass(frozen=True)
class KeepCutout(Cutout):
    """Cutout that never cuts a region above the tau-quantile of importance (selective-cut, Eq. 2).

    Args:
        size: side in pixels, or (height, width); 16 for CIFAR-10, 40 for ImageNet (section 4).
        placement: "inside" (all candidates are whole regions of `size`); "clipped", Cutout's released rule,
            under which quiet regions are often those that the border clips; or "matched": a plain clipped
            draw gives the visible size, and the importance the place. Take it to compare with Cutout in
            nothing but the selection.
        fill: value, or one per channel.
        p: probability per image.
        tau: quantile in [0, 1]; 0.6 in all experiments of the paper.

    Raises:
        ValueError: on a call without saliency, or with a map that does not fit the images.
    """

    placement: str = "inside"
    tau: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tau(self.tau)

    @property
    def _tau(self) -> float | None:
        return self.tau


@dataclass(frozen=True)
class KeepRandomErasing(RandomErasing):
    """Random erasing that never erases a region above the tau-quantile of those of its size (section 4.4).

    Args:
        p: probability per image.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest height / width.
        fill: as in `RandomErasing`.
        aspect_draw: as in `RandomErasing`.
        tau: quantile in [0, 1].
    """

    tau: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tau(self.tau)

    @property
    def _tau(self) -> float | None:
        return self.tau


@dataclass(frozen=True)
class KeepCutMix(CutMix):
    """CutMix that never replaces a region of the image above the tau-quantile of importance (section 4.2).

    Args:
        alpha: lambda ~ Beta(alpha, alpha).
        p: probability, per image or per batch.
        placement: "inside", "clipped" or "matched", as in `KeepCutout`: with "matched" nothing differs from
            CutMix but the selection, lambda included.
        per: "image": own box for each image; "batch": one box for all, chosen on the mean map of the batch.
        tau: quantile in [0, 1].
    """

    placement: str = "inside"
    tau: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tau(self.tau)

    @property
    def _tau(self) -> float | None:
        return self.tau


@dataclass(frozen=True)
class KeepPaste:
    """Paste one important region of the clean image back onto its augmented view (selective-paste, Eq. 3).

    With a RandAugment or AutoAugment view this is KeepRandAugment or KeepAutoAugment; `TwoViews` makes the
    pair with the same crop and flip.

    Args:
        size: side in pixels, or (height, width); 16 for CIFAR-10, 40 for ImageNet (section 4).
        tau: regions above this quantile are pasted; 0.6 in the paper.
        placement: "inside", "clipped" or "matched".

    Example:
        >>> keep = KeepPaste(size=8)
        >>> kept = keep(clean, strong, saliency_map(model, clean, labels, scale=0.5))
    """

    size: int | tuple[int, int] = 16
    tau: float = 0.6
    placement: str = "inside"

    def __post_init__(self) -> None:
        check_size(self.size)
        check_tau(self.tau)
        check_placement(self.placement)

    def sample(
        self, images: Tensor, saliency: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Regions:
        """The regions that a call would paste."""
        return regions_for(
            images,
            saliency,
            self.size,
            tau=self.tau,
            prefer="high",
            placement=self.placement,
            generator=generator,
        )

    def __call__(
        self,
        clean: Tensor,
        augmented: Tensor,
        saliency: Tensor | None = None,
        *,
        regions: Regions | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Paste one region per image.

        Args:
            clean: (N, C, H, W), normalised like `augmented`, with the same crop and flip.
            augmented: (N, C, H, W).
            saliency: (N, H, W) of `clean`.
            regions: the regions to paste instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New tensor like `augmented`.
        """
        if regions is None:
            regions = self.sample(clean, saliency, generator=generator)
        return paste(clean, augmented, regions)
