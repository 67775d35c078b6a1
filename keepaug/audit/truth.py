"""Is the audit true? Importance lost against what is really hidden, where the objects are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from keepaug.audit.measures import calibration, correlation, hidden_share, importance_lost, rank_correlation
from keepaug.regions import random_regions, region_mask


def judge_maps(
    maps: Mapping[str, Tensor], masks: Tensor, *, size: int, draws: int, generator: torch.Generator
) -> dict[str, dict[str, Any]]:
    """How well the importance that a cut loses tells the share of the object that it hides, image by image.

    Args:
        maps: saliency (N, H, W) by name.
        masks: (N, H, W) bool, the object of each image.
        size: side of the squares that are cut, anywhere within the image; the same for all maps.
        draws: squares per image.
        generator: of the draws.

    Returns:
        By map: "correlation" and "rank_correlation" over all images and draws, "within" (mean correlation
        over the draws of one image, the image alone deciding nothing), "object" (share of the map's mass on
        the object) and "calibration" (mean importance lost, mean share hidden, number; five bins).
    """
    num, height, width = masks.shape
    cuts = [random_regions(num, (height, width), size, generator=generator) for _ in range(draws)]
    visible = [1 - region_mask(regions, (height, width)).float() for regions in cuts]
    everyone = torch.arange(num)
    truth = torch.stack([hidden_share(one, masks, everyone) for one in visible], dim=1)
    found = {}
    for name, heat in maps.items():
        lost = torch.stack([importance_lost(heat, one) for one in visible], dim=1)
        own = [correlation(lost[row], truth[row]) for row in range(num)]
        told = [value for value in own if value == value]
        found[name] = {
            "correlation": correlation(lost.flatten(), truth.flatten()),
            "rank_correlation": rank_correlation(lost.flatten(), truth.flatten()),
            "within": sum(told) / len(told) if told else float("nan"),
            "object": float(importance_lost(heat, 1 - masks.float()).mean()),
            "calibration": calibration(lost.flatten(), truth.flatten()),
        }
    return found
