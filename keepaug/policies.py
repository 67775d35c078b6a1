"""Image-level augmentation: a clean and a strongly augmented view of one image, with the same crop and flip.

The operations and policies are torchvision's. They draw from torch's global CPU generator; `TwoViews` therefore runs
them in a fork of it, seeded from the caller's generator, so that an explicit generator decides everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torchvision.transforms import v2

__all__ = ["TwoViews", "aug_mix", "auto_augment", "rand_augment"]

_POLICIES = ("cifar10", "imagenet", "svhn")


def rand_augment(
    num_ops: int = 2, magnitude: int = 9, *, fill: float | list[float] | None = None
) -> v2.Transform:
    """RandAugment (Cubuk et al., 2020): `num_ops` operations of one magnitude in [0, 30].

    Raises:
        ValueError: magnitude outside [0, 30] or num_ops below 1.
    """
    if not 0 <= magnitude <= 30:
        raise ValueError(f"magnitude must be in [0, 30], got {magnitude}")
    if num_ops < 1:
        raise ValueError(f"num_ops must be 1 or more, got {num_ops}")
    from torchvision.transforms import v2  # inside: torchvision is slow to import, and the rest does without

    return v2.RandAugment(
        num_ops=num_ops,
        magnitude=magnitude,
        num_magnitude_bins=31,
        interpolation=v2.InterpolationMode.NEAREST,
        fill=fill,
    )


def auto_augment(policy: str = "cifar10", *, fill: float | list[float] | None = None) -> v2.Transform:
    """AutoAugment (Cubuk et al., 2019) with its learnt policy "cifar10", "imagenet" or "svhn".

    Raises:
        ValueError: unknown policy.
    """
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, got {policy!r}")
    from torchvision.transforms import v2

    return v2.AutoAugment(v2.AutoAugmentPolicy(policy), interpolation=v2.InterpolationMode.NEAREST, fill=fill)


def aug_mix(
    severity: int = 3, mixture_width: int = 3, chain_depth: int = -1, alpha: float = 1.0
) -> v2.Transform:
    """AugMix (Hendrycks et al., 2020) without its consistency loss; severity in [1, 10]."""
    from torchvision.transforms import v2

    return v2.AugMix(severity=severity, mixture_width=mixture_width, chain_depth=chain_depth, alpha=alpha)


class TwoViews:
    """Two views of an image that agree pixel by pixel in geometry, so that a region can be pasted back.

    Args:
        geometry: crop and flip, applied once, before both; None for none.
        policy: the strong, image-level augmentation, applied to the second view after `geometry`.

    Example:
        >>> views = TwoViews(v2.RandomCrop(32, padding=4), rand_augment(2, 9))
        >>> clean, strong = views(image)
    """

    def __init__(self, geometry: Callable[[Any], Any] | None, policy: Callable[[Any], Any]) -> None:
        self.geometry = geometry
        self.policy = policy

    def __call__(self, image: Any, *, generator: torch.Generator | None = None) -> tuple[Any, Any]:
        """Both views of one image.

        Args:
            image: PIL image or uint8 tensor (C, H, W), whatever the transforms take.
            generator: CPU generator that decides everything; None is torch's global one.

        Returns:
            The clean and the strongly augmented view.
        """
        if generator is None:
            return self._views(image)
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach CUDA too
            return self._views(image)

    def _views(self, image: Any) -> tuple[Any, Any]:
        clean = image if self.geometry is None else self.geometry(image)
        return clean, self.policy(clean)

    def __repr__(self) -> str:
        return f"TwoViews(geometry={self.geometry!r}, policy={self.policy!r})"
