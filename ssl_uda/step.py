"""One step: targets, saliency, one forward pass, the algorithm's loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from keepaug.modes import evaluating
from keepaug.regions import Regions
from keepaug.runs.distributed import Distributed, gather_all
from keepaug.runs.seeds import make_generator
from keepaug.saliency import saliency_map
from keepaug.transfer import to_device
from ssl_uda.algorithms import ALGORITHMS, LossParts, Outputs
from ssl_uda.augment import Views, paste_rule
from ssl_uda.config import UdaConfig


def shares_forward(config: UdaConfig) -> bool:
    """Whether one pass over the clean view gives the target and the saliency.

    Exact only where both want the very same computation: the network in evaluation mode (target_mode=eval) on
    the clean view at full resolution. With target_mode=train BatchNorm mixes the images of the concatenated
    batch, so that its gradient is not the image's own; a low-resolution map looks at a smaller image.
    """
    return config.keep and config.target_mode == "eval" and config.saliency_scale == 1


def targets_and_saliency(
    network: nn.Module, clean: Tensor, config: UdaConfig, *, only: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """What the network, in evaluation mode, makes of the clean view before the step's forward pass.

    Args:
        network: unwrapped, perhaps compiled.
        clean: (N, 3, H, W).
        config: settings.
        only: (N,) bool on the CPU, images whose map is wanted: the strong view of the others is the clean
            one, whatever is pasted. Their maps are 0.

    Returns:
        The logits (N, classes) with target_mode=eval, else None; and the max-logit saliency (N, H, W) with
        keep, else None. Both detached.
    """
    logits: list[Tensor] = []

    def watched(pixels: Tensor) -> Tensor:
        output = network(pixels)
        logits.append(output.detach())
        return output

    heat = None
    if config.keep:
        if shares_forward(config):
            heat = saliency_map(network, clean, forward=watched)
            if only is not None:
                heat = heat.masked_fill(~to_device(only, heat.device)[:, None, None], 0)
        else:
            heat = saliency_map(network, clean, only=only, scale=config.saliency_scale)
    if config.target_mode == "eval" and not logits:
        with evaluating(network), torch.no_grad():
            watched(clean)
    return (logits[0] if logits else None), heat


def sample_paste(
    heat: Tensor, clean: Tensor, config: UdaConfig, step: int, world: Distributed | None = None
) -> Regions:
    """Regions to paste for this process's images, the same whatever the number of processes.

    The choice is made for the whole batch from one generator, so the processes' maps are gathered first.
    """
    generator = make_generator(config.seed, "paste", step)
    if world is None or not world.active:
        return paste_rule(config).sample(clean, heat, generator=generator)
    whole = clean[:1].expand(len(heat) * world.world_size, *clean.shape[1:])
    regions = paste_rule(config).sample(whole, gather_all(heat), generator=generator)
    first = world.rank * len(heat)
    return Regions(*(values[first : first + len(heat)] for values in regions))


def step_loss(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    views: Views | None,
    target_logits: Tensor | None,
    config: UdaConfig,
    step: int,
    world: Distributed | None = None,
) -> LossParts:
    """The algorithm's loss from one forward pass over labelled, clean and strong images together.

    Args:
        forward: of the training network, through DDP and torch.compile.
        images: (B, 3, H, W) labelled images.
        labels: (B,) int64.
        views: of the unlabelled images, the strong one as trained on; None where unused.
        target_logits: (N, classes) of the clean view with target_mode=eval, left out of the pass then.
        config: settings.
        step: for what changes with it.
        world: the processes, whose mean loss is minimised.
    """
    parts = [images]
    if views is not None:
        parts += [views.strong] if target_logits is not None else [views.clean, views.strong]
    batch = torch.cat(parts)
    if config.channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    logits = forward(batch).split([len(part) for part in parts])
    if views is None:
        outputs = Outputs(logits[0], logits[0][:0], logits[0][:0])
    else:
        outputs = Outputs(logits[0], logits[1] if target_logits is None else target_logits, logits[-1])
    loss = ALGORITHMS[config.algorithm].loss(outputs, labels, config, step, world)
    return LossParts(loss.total, {"loss": loss.total.detach(), **loss.figures})
