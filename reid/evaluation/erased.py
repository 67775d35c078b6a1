"""How often erasing takes what matters: regions above the tau-quantile among those of their own size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keepaug.baselines import RandomErasing
from keepaug.keep import KeepRandomErasing
from keepaug.regions import Regions, region_scores


class ErasingShares(NamedTuple):
    """Shares in [0, 1] of erased regions that lie above the quantile.

    Attributes:
        random: of RandomErasing; about 1 - tau.
        keep: of KeepRandomErasing; 0.
        regions: how many regions each of them erased.
    """

    random: float
    keep: float
    regions: int


def is_important(regions: Regions, heat: Tensor, *, tau: float = 0.6) -> Tensor:
    """Whether each region is above the tau-quantile of its image's regions of the same size (Algorithm 1).

    Counted here from the scores of all candidates, not with the sampling's code: above are regions with at
    least max(1, floor(tau n)) of the n candidates scoring strictly lower.

    Args:
        regions: one per image, inside it; height 0 where nothing is erased.
        heat: (N, H, W) saliency.
        tau: quantile in [0, 1].

    Returns:
        (N,) bool; False where nothing is erased.

    Raises:
        ValueError: numbers that do not fit, faulty saliency, a region that leaves its image.
    """
    if len(regions.top) != len(heat):
        raise ValueError(f"expected one region per map, got {len(regions.top)} regions and {len(heat)} maps")
    erased = (regions.height > 0) & (regions.width > 0)
    sizes = torch.stack([regions.height, regions.width], dim=1).clamp(min=1)
    scores, valid = region_scores(heat, sizes)
    top, left = regions.top * erased, regions.left * erased
    lines = torch.arange(len(heat), device=heat.device)
    if not bool(valid[lines, top, left].all()):
        raise ValueError("a region leaves its image: only regions inside have a rank among their size")
    own = scores[lines, top, left]
    number = valid.flatten(1).sum(dim=1)
    lower = ((scores < own[:, None, None]) & valid).flatten(1).sum(dim=1)
    limit = (tau * number.double() + 1e-9).floor().clamp(min=1)
    return erased & (lower >= limit)


def measure_erasing(
    heat: Tensor,
    *,
    tau: float = 0.6,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    rounds: int = 20,
    generator: torch.Generator | None = None,
) -> ErasingShares:
    """Erase every image `rounds` times with either and count.

    Args:
        heat: (N, H, W) saliency of N images, at full size, finite and >= 0.
        tau: quantile.
        area: smallest and largest share of the image.
        aspect: smallest and largest height / width.
        rounds: regions per image.
        generator: source of randomness; None is torch's global one.

    Returns:
        The shares.

    Raises:
        ValueError: no images or no rounds, faulty saliency, parameters out of range.
    """
    if not len(heat) or rounds < 1:
        raise ValueError(f"a share needs images and rounds, got {len(heat)} maps and {rounds} rounds")
    images = heat[:, None]
    plain = RandomErasing(1.0, area, aspect)
    keep = KeepRandomErasing(1.0, area, aspect, tau=tau)
    found: dict[str, list[Tensor]] = {"random": [], "keep": []}
    number = 0
    for _ in range(rounds):
        for name, eraser in (("random", plain), ("keep", keep)):
            regions = eraser.sample(images, heat, generator=generator)
            found[name].append(is_important(regions, heat, tau=tau)[regions.height > 0])
        number += int((regions.height > 0).sum())
    shares = {name: float(torch.cat(parts).double().mean()) for name, parts in found.items()}
    return ErasingShares(shares["random"], shares["keep"], number)
