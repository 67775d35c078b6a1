"""Random erasing inside the training step: after mirror, padding, crop and normalization (paper, section 4.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from keepaug.baselines import RandomErasing
from keepaug.keep import KeepRandomErasing
from keepaug.regions import Regions
from keepaug.runs.distributed import Distributed, gather_all
from keepaug.saliency import saliency_map
from reid.config import ReidConfig
from reid.models.network import ReidNetwork

__all__ = ["build_eraser", "erase", "heat_of"]


def build_eraser(config: ReidConfig) -> RandomErasing | None:
    """What `erasing` names; None for none."""
    if config.erasing == "none":
        return None
    area, aspect = (config.area[0], config.area[1]), (config.aspect[0], config.aspect[1])
    if config.erasing == "keep":
        return KeepRandomErasing(config.p, area, aspect, config.fill, tau=config.tau)
    return RandomErasing(config.p, area, aspect, config.fill)


def heat_of(
    eraser: RandomErasing | None, network: ReidNetwork, images: Tensor, labels: Tensor, *, scale: float
) -> Tensor | None:
    """(N, H, W) saliency of the identity classifier's logit of the label; None where the eraser needs none."""
    if not isinstance(eraser, KeepRandomErasing):
        return None
    return saliency_map(network, images, labels, forward=network.logits, scale=scale)


def erase(
    eraser: RandomErasing | None,
    images: Tensor,
    heat: Tensor | None,
    *,
    regions_generator: torch.Generator,
    fill_generator: torch.Generator,
    world: Distributed | None = None,
) -> tuple[Tensor, Regions | None]:
    """Erase one region per image, each of its own size.

    All processes draw the regions of the whole batch from the same generator, so that they together erase what one process
    would; only random filling differs.

    Args:
        eraser: from `build_eraser`.
        images: (N, 3, H, W) normalized.
        heat: from `heat_of`.
        regions_generator: the same on all processes.
        fill_generator: of this process.
        world: this process among others; None: it is alone.

    Returns:
        The images to train on and the regions (None without erasing).
    """
    if eraser is None:
        return images, None
    number, rank, world_size = len(images), 0, 1
    if world is not None:
        rank, world_size = world.rank, world.world_size
    shape = images.new_empty((number * world_size, 1, *images.shape[2:]))
    whole = eraser.sample(shape, gather_all(heat) if heat is not None else None, generator=regions_generator)
    own = Regions(*(value[rank * number : (rank + 1) * number] for value in whole))
    return eraser(images, heat, regions=own, generator=fill_generator), own
