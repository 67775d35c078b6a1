"""The unlabelled images' two views, and all that a step draws, for the whole batch of all processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keepaug.baselines import Cutout
from keepaug.data.batch_transforms import normalize, random_crop_flip
from keepaug.keep import KeepPaste
from keepaug.ops import cut, paste
from keepaug.regions import Regions
from keepaug.runs.seeds import make_generator
from ssl_uda.config import UdaConfig
from ssl_uda.policy import Draws, apply_policy, draw_policy


class StepDraws(NamedTuple):
    """What is random in a step but the pasted region, for some images of it.

    Attributes:
        labelled_seeds: (B,) int64, crop and flip of the labelled images.
        seeds: (N,) int64, crop and flip of the unlabelled images.
        other_seeds: (N,) int64, of their strong view with crops=independent.
        policy: of N images.
        cutout: N boxes on the CPU, or None.
    """

    labelled_seeds: Tensor
    seeds: Tensor
    other_seeds: Tensor
    policy: Draws
    cutout: Regions | None


class Views(NamedTuple):
    """Normalised views of unlabelled images.

    Attributes:
        clean: (N, 3, H, W), cropped and flipped.
        strong: (N, 3, H, W), with the same crop and flip unless crops=independent, after the policy.
    """

    clean: Tensor
    strong: Tensor


def rank_slice(num: int, rank: int, world_size: int) -> slice:
    """This process's images among `num`, which the processes divide into blocks."""
    share = num // world_size
    return slice(rank * share, (rank + 1) * share)


def draw_step(
    config: UdaConfig, step: int, image_size: tuple[int, int], *, rank: int = 0, world_size: int = 1
) -> StepDraws:
    """This process's part of a step's draws, which depend on seed and step alone."""
    labelled, num = config.batch_size, config.batch_size * config.unlabelled_ratio
    generator = make_generator(config.seed, "step", step)
    seeds = [torch.randint(2**62, (count,), generator=generator) for count in (labelled, num, num)]
    low, high = config.levels
    policy = draw_policy(
        num, policy=config.policy, num_ops=config.num_ops, levels=(low, high), p=config.p, generator=generator
    )
    cutout = None
    part = rank_slice(num, rank, world_size)
    if config.cutout:
        whole = torch.empty(1).expand(num, 3, *image_size)
        regions = Cutout(config.cutout).sample(whole, generator=generator)
        cutout = Regions(*(values[part] for values in regions))
    first = seeds[0][rank_slice(labelled, rank, world_size)]
    return StepDraws(first, seeds[1][part], seeds[2][part], policy.rows(part), cutout)


def weak_view(images: Tensor, seeds: Tensor, config: UdaConfig) -> Tensor:
    """Reflected padding, crop and flip of uint8 images, each by its seed, on their device."""
    return random_crop_flip(images, seeds, padding=config.padding, flip=config.flip, border="reflect")


def make_views(
    images: Tensor, draws: StepDraws, config: UdaConfig, mean: tuple[float, ...], std: tuple[float, ...]
) -> Views:
    """Clean and strong view of uint8 images, before paste and Cutout.

    With crops=shared the order is crop and flip, then the policy: the views agree pixel by pixel in geometry.
    With crops=independent it is Google's: policy and Cutout on the image, then a crop and flip of its own.

    Args:
        images: (N, 3, H, W) uint8 unlabelled images.
        draws: of these images.
        config: settings.
        mean: of the normalisation, for [0, 1].
        std: of the normalisation.
    """
    clean = weak_view(images, draws.seeds, config)
    shared = config.crops == "shared"
    strong, blank = apply_policy(clean if shared else images, draws.policy)
    if not shared:
        if draws.cutout is not None:
            blank = cut(blank[:, None], draws.cutout.to(blank.device), 1)[:, 0]
        together = torch.cat([strong, blank[:, None].to(strong.dtype)], dim=1)
        together = weak_view(together, draws.other_seeds, config)
        strong, blank = together[:, :3], together[:, 3] > 0
    pixels = normalize(strong, mean, std).masked_fill_(
        blank[:, None], 0.0
    )  # the mean colour, as in the recipe
    return Views(normalize(clean, mean, std), pixels)


def finish_strong(views: Views, pasted: Regions | None, draws: StepDraws, config: UdaConfig) -> Tensor:
    """The strong view for training: paste an important region of the clean view, then Cutout.

    Args:
        views: of `make_views`.
        pasted: the regions of `KeepPaste.sample`, or None for plain RandAugment.
        draws: of these images.
        config: settings.
    """
    strong = views.strong
    if pasted is not None:
        strong = paste(views.clean, strong, pasted)
    if draws.cutout is not None and config.crops == "shared":
        strong = cut(strong, draws.cutout.to(strong.device))
    return strong


def paste_rule(config: UdaConfig) -> KeepPaste:
    """Which regions are pasted."""
    return KeepPaste(config.size, config.tau, config.paste_placement)
