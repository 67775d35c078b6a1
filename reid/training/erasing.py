"""Random erasing in the training step: after mirror, padding, crop and normalization (section 4.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from keepaug.baselines import RandomErasing
from keepaug.baselines.common import Draw
from keepaug.keep import KeepRandomErasing
from keepaug.regions import Regions
from keepaug.runs.distributed import Distributed, gather_all
from keepaug.saliency import saliency_map
from reid.config import ReidConfig
from reid.models.network import ReidNetwork


def build_eraser(config: ReidConfig) -> RandomErasing | None:
    """What `method` names; None for none."""
    if config.method == "none":
        return None
    fill = config.fill or "random"
    area, aspect = (config.area[0], config.area[1]), (config.aspect[0], config.aspect[1])
    if config.method == "keep_random_erasing":
        return KeepRandomErasing(config.p, area, aspect, fill, tau=config.tau)
    return RandomErasing(config.p, area, aspect, fill)


def draw_erasing(
    eraser: RandomErasing | None,
    images: Tensor,
    *,
    generator: torch.Generator,
    world: Distributed | None = None,
) -> Draw | None:
    """Which images of all processes are erased and how large their regions are; None without erasing.

    All processes draw for the whole batch from equal generators: together they erase what one would.

    Args:
        eraser: from `build_eraser`.
        images: (N, 3, H, W) of this process.
        generator: the same on all processes.
        world: this process among others; None: it is alone.
    """
    return None if eraser is None else eraser.draw(_of_all(images, world), generator=generator)


def heat_of(
    eraser: RandomErasing | None,
    network: ReidNetwork,
    images: Tensor,
    labels: Tensor,
    drawn: Draw | None,
    *,
    scale: float,
    world: Distributed | None = None,
) -> Tensor | None:
    """(N, H, W) saliency of the identity classifier's logit of the label, 0 for images that are not erased.

    None where the eraser needs none.
    """
    if not isinstance(eraser, KeepRandomErasing) or drawn is None or drawn.applied is None:
        return None
    only = drawn.applied[_own(len(images), world)]
    return saliency_map(network, images, labels, only=only, forward=network.logits, scale=scale)


def erase(
    eraser: RandomErasing | None,
    images: Tensor,
    heat: Tensor | None,
    drawn: Draw | None,
    *,
    regions_generator: torch.Generator,
    fill_generator: torch.Generator,
    world: Distributed | None = None,
) -> tuple[Tensor, Regions | None]:
    """Erase one region per drawn image, each of its own size.

    Args:
        eraser: from `build_eraser`.
        images: (N, 3, H, W) normalized.
        heat: from `heat_of`.
        drawn: from `draw_erasing`.
        regions_generator: the one of `draw_erasing`.
        fill_generator: of this process: only random filling differs between numbers of processes.
        world: this process among others; None: it is alone.

    Returns:
        The images to train on and the regions (None without erasing).
    """
    if eraser is None:
        return images, None
    everyones = None if heat is None else gather_all(heat)
    whole = eraser.sample(_of_all(images, world), everyones, drawn=drawn, generator=regions_generator)
    own = Regions(*(value[_own(len(images), world)] for value in whole))
    return eraser(images, heat, regions=own, generator=fill_generator), own


def _of_all(images: Tensor, world: Distributed | None) -> Tensor:
    """The shape and place of all processes' images, for draws."""
    number = len(images) * (1 if world is None else world.world_size)
    return images.new_empty((number, 1, *images.shape[2:]))


def _own(number: int, world: Distributed | None) -> slice:
    rank = 0 if world is None else world.rank
    return slice(rank * number, (rank + 1) * number)
