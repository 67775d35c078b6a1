"""Features of many images, decoding ahead of the network."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from keepaug.data.batch_transforms import normalise
from keepaug.runs.distributed import Distributed, gather_rows
from keepaug.runs.progress import progress
from reid.images import ResizedImages
from reid.model import ReidNetwork

__all__ = ["extract_features"]


@torch.no_grad()
def extract_features(
    network: ReidNetwork,
    images: ResizedImages,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    world: Distributed,
    batch_size: int = 128,
    after_neck: bool = True,
    flip_test: bool = False,
    bf16: bool = False,
    channels_last: bool = False,
    description: str = "features",
) -> Tensor:
    """Features (N, D), float32, on the CPU, the same on every process; the network's modes are left as found.

    Args:
        network: the network.
        images: what to look at, neither mirrored nor cropped.
        mean: of the normalisation.
        std: of the normalisation.
        world: each process takes its part.
        batch_size: images at a time.
        after_neck: features after the neck, otherwise before it.
        flip_test: mean of the features of an image and its mirror image.
        bf16: autocast to bfloat16.
        channels_last: memory format.
        description: of the progress bar.
    """
    device, total = world.device, len(images)
    own = torch.arange(total)[world.rank :: world.world_size]
    parts = list(own.split(batch_size)) if len(own) else []
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    found: list[Tensor] = []
    try:
        with ThreadPoolExecutor(1) as reader, torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            ahead = reader.submit(images.resized, parts[0]) if parts else None
            for number in progress(
                range(len(parts)), description, total=len(parts), disable=not world.is_main
            ):
                pixels = ahead.result() if ahead is not None else None
                ahead = reader.submit(images.resized, parts[number + 1]) if number + 1 < len(parts) else None
                inputs = normalise(pixels.to(device), mean, std)  # type: ignore[union-attr]
                if channels_last:
                    inputs = inputs.contiguous(memory_format=torch.channels_last)
                features = network.features(inputs, after_neck=after_neck).float()
                if flip_test:
                    mirrored = network.features(inputs.flip(3), after_neck=after_neck).float()
                    features = (features + mirrored) / 2
                found.append(features)
    finally:
        for module, training in modes:
            module.training = training
    rows = torch.cat(found) if found else torch.empty(0, network.feature_dim, device=device)
    return gather_rows(rows, total).cpu()
