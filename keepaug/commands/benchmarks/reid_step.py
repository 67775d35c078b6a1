"""What KeepRandomErasing adds to a step of Bag of Tricks, for `keepaug benchmark reid`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from keepaug.data.images import Batch
from keepaug.runs.distributed import Distributed
from keepaug.runs.seeds import make_generator
from keepaug.runs.timing import Table, interleaved
from reid.config import ReidConfig, resolve
from reid.models.weights import build
from reid.training.engine import KeepEngine

_STEPS = {
    "plain step": {"method": "none"},
    "RandomErasing": {"method": "random_erasing"},
    "KeepRandomErasing, low resolution": {"method": "keep_random_erasing"},
    "KeepRandomErasing, full resolution": {"method": "keep_random_erasing", "saliency": "full"},
    "KeepRandomErasing of every image, low resolution": {"method": "keep_random_erasing", "p": 1.0},
}


def reid_section(
    device: torch.device,
    *,
    arch: Sequence[str] = (),
    rounds: int = 7,
    bf16: bool = False,
    processor_time: bool = False,
    shrink: bool = False,
) -> tuple[Table, dict[str, Any]]:
    """Whole steps of the recipe at p = 0.5, as multiples of the step without erasing.

    On a CPU half of the recipe's 64 images. At p = 0.5 exactly half of them are erased.
    """
    name = [*arch, "resnet18" if shrink else "resnet50"][0]
    identities, side = (2, 64) if shrink else (16 if device.type == "cuda" else 8, 256)
    variants: dict[str, Callable[[], object]] = {}
    for title, settings in _STEPS.items():
        config = ReidConfig(
            arch=name,
            recipe="custom",
            height=side,
            width=side // 2,
            identities=identities,
            images=2 if shrink else 4,
            precision="bf16" if bf16 else "float32",
            channels_last=True,
            checkpoint_every=0,
            **settings,  # type: ignore[arg-type]
        )
        engine, batch = _engine(config, device)
        variants[title] = partial(_step, engine, batch, _step_that_erases(engine, len(batch.images)))
    seconds = interleaved(variants, 1 if shrink else rounds, device, processor_time=processor_time)
    base = seconds["plain step"]
    rows = [[title, f"{1000 * value:.0f}", f"{value / base:.3f}"] for title, value in seconds.items()]
    head = f"{name}, {len(batch.images)} images of {side} x {side // 2}{', bf16' if bf16 else ''}"
    figures = {title: value / base for title, value in seconds.items()} | {"plain step (s)": base}
    return ([head, "ms", "of the plain step"], rows), figures


def _step(engine: KeepEngine, batch: Batch, step: int) -> None:
    engine.step = step
    engine.forward_backward(batch)


def _step_that_erases(engine: KeepEngine, num: int) -> int:
    """The first step whose draw erases the expected number of images."""
    if (eraser := engine.eraser) is None:
        return 0
    shape, wanted = (
        torch.empty(num, 1, engine.config.height, engine.config.width),
        round(engine.config.p * num),
    )

    def erased(step: int) -> int:
        drawn = eraser.draw(shape, generator=make_generator(engine.config.seed, "regions", step))
        return 0 if drawn.applied is None else int(drawn.applied.sum())

    return next(step for step in range(10_000) if erased(step) == wanted)


def _engine(config: ReidConfig, device: torch.device) -> tuple[KeepEngine, Batch]:
    """An engine on drawn images, without a data set."""
    config = resolve(config)
    torch.manual_seed(0)
    labels = torch.arange(config.identities).repeat_interleave(config.images)
    pixels = torch.randint(256, (len(labels), 3, config.height, config.width), dtype=torch.uint8)
    loader = SimpleNamespace(epoch=0, sampler=range(10**6))
    manager: Any = SimpleNamespace(train_loader=loader, test_loader={}, targets=[], labels=labels.tolist())
    world = Distributed(0, 1, 0, device)
    engine = KeepEngine(manager, build(config, config.identities), config, world)
    engine.network.train()
    return engine, Batch(pixels, None, labels, torch.arange(len(labels)))
