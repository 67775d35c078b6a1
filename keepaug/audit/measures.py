"""What an augmentation takes away, what the network makes of it, and the bootstrap: pure functions.

A source map (N, H, W) int64 says for each pixel of an augmented image which pixel of the original it shows,
as row * W + column, and -1 where it shows none. A visibility map (N, H, W) says for each pixel of the
original whether it is still to be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_AT_ONCE = 2**19  # resampled positions


class Interval(NamedTuple):
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


def identity_source(num: int, height: int, width: int) -> Tensor:
    """(N, H, W) int64: every pixel shows itself."""
    return torch.arange(height * width).view(1, height, width).repeat(num, 1, 1)


def visible_pixels(source: Tensor, *, close: bool = False) -> Tensor:
    """(N, H, W) float32, 1 where a pixel of the original is shown somewhere in the augmented image.

    Args:
        source: (N, H, W) int64 source map.
        close: fill gaps of up to two pixels (a morphological closing of 3 x 3): where an image is shrunk or
            turned, some pixels are nobody's nearest although all around them is shown.
    """
    num, height, width = source.shape
    flat = source.flatten(1)
    seen = torch.zeros(num, height * width + 1)
    seen.scatter_(1, torch.where(flat < 0, height * width, flat), 1.0)
    seen = seen[:, :-1].view(num, 1, height, width)
    if close:
        grown = F.max_pool2d(seen, 3, stride=1, padding=1)
        shrunk = 1 - F.max_pool2d(1 - grown, 3, stride=1, padding=1)  # outside counts as shown
        seen = torch.maximum(seen, shrunk)
    return seen[:, 0]


def importance_lost(saliency: Tensor, visible: Tensor) -> Tensor:
    """(N,) float64 in [0, 1]: the share of the saliency's mass that is no longer visible.

    A map without any mass counts every pixel alike.

    Args:
        saliency: (N, H, W) >= 0.
        visible: (N, H, W) in [0, 1].
    """
    mass = saliency.double().flatten(1)
    mass = torch.where(mass.sum(dim=1, keepdim=True) > 0, mass, torch.ones_like(mass))
    hidden = 1 - visible.double().flatten(1)
    return (mass * hidden).sum(dim=1) / mass.sum(dim=1)


def hidden_share(visible: Tensor, masks: Tensor, image: Tensor) -> Tensor:
    """(K,) float64 in [0, 1]: the share of each object that is no longer visible.

    Args:
        visible: (N, H, W) in [0, 1].
        masks: (K, H, W) bool, the objects of all images; none of them empty.
        image: (K,) int64, which image each object is in.
    """
    area = masks.flatten(1).sum(dim=1).double()
    shown = (visible[image].double() * masks).flatten(1).sum(dim=1)
    return 1 - shown / area


def colour_change(images: Tensor, augmented: Tensor, source: Tensor) -> Tensor:
    """(N,) float64: mean absolute difference between each shown pixel and the original one it shows.

    Args:
        images: (N, C, H, W) in [0, 1].
        augmented: (N, C, H, W) in [0, 1].
        source: (N, H, W) int64 source map.
    """
    num, channels = images.shape[:2]
    flat = source.view(num, 1, -1)
    original = images.flatten(2).gather(2, flat.clamp(min=0).expand(num, channels, -1))
    shown = (flat[:, 0] >= 0).double()
    difference = (augmented.flatten(2) - original).abs().double().mean(dim=1)
    return (difference * shown).sum(dim=1) / shown.sum(dim=1).clamp(min=1)


def bootstrap(
    ratios: Mapping[str, tuple[Tensor, Tensor]],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> dict[str, Interval | None]:
    """Mean and percentile interval of ratios of sums over images, all over the same resamples.

    A mean over images is a ratio with one each below; an image that tells nothing has zero in both.

    Args:
        ratios: by name, (N,) numerators and (N,) denominators.
        resamples: how often the images are drawn again.
        level: of the interval.
        generator: of the draws; None is torch's global one.

    Returns:
        By name; None where the denominators sum to zero.
    """
    if not (names := list(ratios)):
        return {}
    numerators = torch.stack([ratios[name][0].double() for name in names], dim=1)
    denominators = torch.stack([ratios[name][1].double() for name in names], dim=1)
    num = len(numerators)
    drawn = []
    step = max(1, _AT_ONCE // max(1, num))
    for start in range(0, resamples if num else 0, step):
        rows = min(step, resamples - start)
        picked = torch.randint(num, (rows, num), generator=generator)
        counts = torch.zeros(rows, num, dtype=torch.float64)
        counts.scatter_add_(1, picked, torch.ones_like(counts))
        drawn.append((counts @ numerators) / (counts @ denominators))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    found: dict[str, Interval | None] = {}
    for column, name in enumerate(names):
        if not (below := float(denominators[:, column].sum())):
            found[name] = None
            continue
        values = torch.cat([part[:, column] for part in drawn])
        values = values[torch.isfinite(values)]  # a resample without any image that tells something
        mean = float(numerators[:, column].sum()) / below
        low, high = torch.quantile(values, tails).tolist() if len(values) else (mean, mean)
        found[name] = Interval(mean, min(low, mean), max(high, mean))
    return found
