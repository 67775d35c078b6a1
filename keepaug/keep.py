"""KeepAugment: selective-cut and selective-paste around the plain augmentations (section 3, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from keepaug.baselines import CutMix, Cutout, MixedLabels, RandomErasing
from keepaug.baselines.common import regions_for
from keepaug.ops import paste
from keepaug.policies import BatchPolicy, auto_augment, rand_augment
from keepaug.regions import Regions, check_placement, check_size, check_tau
from keepaug.saliency import saliency_map


class _Selective:
    """What the Keep versions of cutting augmentations add: a quantile, which their `sample` goes by."""

    tau: float

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        check_tau(self.tau)


@dataclass(frozen=True)
class KeepCutout(_Selective, Cutout):
    """Cutout that never cuts a region above the tau-quantile of importance (selective-cut, Eq. 2).

    Args:
        size: side in pixels, or (height, width); 16 for CIFAR-10, 40 for ImageNet (section 4).
        placement: "inside" (all candidates are whole regions of `size`); "clipped", Cutout's released rule,
            under which quiet regions are often those that the border clips; or "matched": a plain clipped
            draw gives the visible size, the importance the place: it differs from Cutout in selection alone.
        fill: value, or one per channel.
        p: probability per image.
        tau: quantile in [0, 1]; 0.6 in all experiments of the paper.

    Raises:
        ValueError: on a call without saliency, or with a map that does not fit the images.
    """

    placement: str = "inside"
    tau: float = 0.6


@dataclass(frozen=True)
class KeepRandomErasing(_Selective, RandomErasing):
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


@dataclass(frozen=True)
class KeepCutMix(_Selective, CutMix):
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


@dataclass(frozen=True)
class KeepPaste:
    """Paste one important region of the clean image back onto its augmented view (selective-paste, Eq. 3).

    `KeepRandAugment` and `KeepAutoAugment` make the view, too; `TwoViews` makes the pair image by image.

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
        tau, placement = self.tau, self.placement
        return regions_for(
            images, saliency, self.size, tau=tau, prefer="high", placement=placement, generator=generator
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


class _KeepPolicy:
    """A policy of pixels, and an important region of the clean image pasted back."""

    def __init__(self, policy: Any, paste: KeepPaste) -> None:
        self.policy, self.paste = BatchPolicy(policy), paste

    def __call__(
        self,
        images: Tensor,
        saliency: Tensor | None = None,
        *,
        regions: Regions | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The augmented images.

        Args:
            images: (N, 3, H, W) uint8 on the CPU, cropped and flipped, before the normalization.
            saliency: (N, H, W) of the normalized images.
            regions: the regions to paste instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New tensor like `images`.

        Raises:
            ValueError: images that are not uint8, or no map that fits them.
        """
        strong = self.policy(images, generator=generator)
        return self.paste(images, strong, saliency, regions=regions, generator=generator)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.policy.policy!r}, {self.paste!r})"


class KeepRandAugment(_KeepPolicy):
    """RandAugment of a batch that keeps an important region of each image (sections 4.1 and 4.3).

    Args:
        num_ops: as in `rand_augment`, as are `options`: magnitude_max, operations, ranges, fill.
        magnitude: as in `rand_augment`.
        size: as in `KeepPaste`, as are tau and placement.
        tau: regions above this quantile are pasted back.
        placement: "inside", "clipped" or "matched".
        options: see `rand_augment`.

    Example:
        >>> keep = KeepRandAugment(2, 9, size=8)
        >>> heat = saliency_map(model, pixels / 255, labels, scale=0.5)
        >>> loss = F.cross_entropy(model(keep(pixels, heat) / 255), labels)
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        *,
        size: int | tuple[int, int] = 16,
        tau: float = 0.6,
        placement: str = "inside",
        **options: Any,
    ) -> None:
        super().__init__(rand_augment(num_ops, magnitude, **options), KeepPaste(size, tau, placement))


class KeepAutoAugment(_KeepPolicy):
    """AutoAugment of a batch that keeps an important region of each image (section 4.1).

    Args:
        policy: "cifar10", "imagenet" or "svhn".
        size: as in `KeepPaste`, as are tau and placement.
        tau: regions above this quantile are pasted back.
        placement: "inside", "clipped" or "matched".
        options: ranges and fill, see `auto_augment`.
    """

    def __init__(
        self,
        policy: str = "cifar10",
        *,
        size: int | tuple[int, int] = 16,
        tau: float = 0.6,
        placement: str = "inside",
        **options: Any,
    ) -> None:
        super().__init__(auto_augment(policy, **options), KeepPaste(size, tau, placement))


class KeepAugment(nn.Module):
    """Map and augmentation as one module, for those who compose modules; in evaluation it changes nothing.

    Args:
        augment: KeepCutout, KeepRandomErasing, KeepCutMix, KeepRandAugment or KeepAutoAugment.
        network: whose maps are taken; no submodule, so that its parameters stay its own.
        scale: of the maps, as in `saliency_map`.
        normalize: from the images given to those that the network takes; policies act before it, cuts after
            it. None: they are normalized already.

    Raises:
        TypeError: an augmentation that takes no map.

    Example:
        >>> augment = KeepAugment(KeepCutout(8), model)
        >>> loss = F.cross_entropy(model(augment(images, labels)), labels)
    """

    network: nn.Module

    def __init__(
        self,
        augment: KeepCutout | KeepRandomErasing | KeepCutMix | _KeepPolicy,
        network: nn.Module,
        *,
        scale: float = 0.5,
        normalize: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(augment, _Selective | _KeepPolicy):
            raise TypeError(
                f"{type(augment).__name__} takes no map of one batch: call it as it is, or take KeepCutout, "
                "KeepRandomErasing, KeepCutMix, KeepRandAugment or KeepAutoAugment"
            )
        self.augment, self.scale, self.normalize = augment, scale, normalize or nn.Identity()
        self.__dict__["network"] = network

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Any:
        """The images that the network takes, augmented in training; with `MixedLabels` of KeepCutMix.

        Args:
            images: (N, C, H, W), what `normalize` takes.
            labels: (N,) classes; None takes maps of the largest logit.
            generator: source of randomness; None is torch's global one.

        Raises:
            ValueError: labels are missing where they are mixed.
        """
        augment, prepared = self.augment, self.normalize(images)
        if isinstance(augment, KeepCutMix):
            if labels is None:
                raise ValueError("KeepCutMix mixes labels, too: call it with images and labels")
            if not self.training:
                return prepared, MixedLabels(labels, labels, torch.ones(len(labels), device=labels.device))
        if not self.training:
            return prepared
        if isinstance(augment, _KeepPolicy):
            heat = saliency_map(self.network, prepared, labels, scale=self.scale)
            return self.normalize(augment(images, heat, generator=generator))
        drawn = augment.draw(prepared, generator=generator)
        heat = saliency_map(self.network, prepared, labels, scale=self.scale, only=drawn.applied)
        given = (prepared, labels, heat) if isinstance(augment, KeepCutMix) else (prepared, heat)
        return augment(*given, drawn=drawn, generator=generator)

    def extra_repr(self) -> str:
        """What is printed."""
        return f"{self.augment!r}, scale={self.scale}"
