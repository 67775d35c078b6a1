"""On a GPU nothing is read back and little is launched; checked without one, on shapes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from fake_gpu import fake_gpu

from keepaug import (
    AttentiveCutMix,
    CutMix,
    Cutout,
    GridMask,
    KeepCutMix,
    KeepCutout,
    KeepPaste,
    KeepRandomErasing,
    ManifoldMixup,
    Mixup,
    RandomErasing,
    cut,
    random_regions,
    saliency_map,
)
from keepaug.data.batch_transforms import change_colours, draw_colours, normalize
from keepaug.models import build_network


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images() -> Tensor:
    return torch.randn(16, 3, 32, 32, device="cuda")


def heat() -> Tensor:
    return torch.rand(16, 32, 32, device="cuda")


def labels() -> Tensor:
    return torch.zeros(16, dtype=torch.int64, device="cuda")


CALLS: dict[str, tuple[int, Callable[[], object]]] = {
    "Cutout": (45, lambda: Cutout(16, fill=(0.1, 0.2, 0.3))(images(), generator=seeded())),
    "KeepCutout": (95, lambda: KeepCutout(16)(images(), heat(), generator=seeded())),
    "KeepCutout clipped": (
        125,
        lambda: KeepCutout(16, placement="clipped")(images(), heat(), generator=seeded()),
    ),
    "RandomErasing": (60, lambda: RandomErasing(fill="bot")(images(), generator=seeded())),
    "KeepRandomErasing": (
        130,
        lambda: KeepRandomErasing(fill="random")(images(), heat(), generator=seeded()),
    ),
    "CutMix": (60, lambda: CutMix()(images(), labels(), generator=seeded())),
    "KeepCutMix": (130, lambda: KeepCutMix()(images(), labels(), heat(), generator=seeded())),
    "KeepCutMix batch": (
        130,
        lambda: KeepCutMix(per="batch")(images(), labels(), heat(), generator=seeded()),
    ),
    "KeepPaste": (95, lambda: KeepPaste(16)(images(), images(), heat(), generator=seeded())),
    "GridMask": (50, lambda: GridMask((24, 32))(images(), generator=seeded())),
    "Mixup": (20, lambda: Mixup()(images(), labels(), generator=seeded())),
    "ManifoldMixup": (20, lambda: ManifoldMixup()(images(), labels(), generator=seeded())),
    "AttentiveCutMix": (60, lambda: AttentiveCutMix()(images(), labels(), heat(), generator=seeded())),
    "normalize": (8, lambda: normalize(images().to(torch.uint8), (0.5,) * 3, (0.2,) * 3)),
    "change_colours": (
        130,
        lambda: change_colours(
            images(), images(), draw_colours(16, jitter=0.4, lighting=0.1, generator=seeded())
        ),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_augmentations_never_wait_for_the_gpu(name: str) -> None:
    """A launch costs about 5 microseconds: 100 of them are a tenth of a ResNet-18 step on a fast GPU."""
    limit, call = CALLS[name]
    with fake_gpu() as watch:
        call()
    assert watch.waits == []
    assert sum(watch.launches.values()) <= limit, watch.launches


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_saliency_never_waits_for_the_gpu(scale: float) -> None:
    with fake_gpu() as watch:
        network = build_network("resnet18", 10, stem="cifar").to("cuda")
        watch.waits.clear()  # of moving the network
        found = saliency_map(network, images(), labels(), scale=scale)
    assert watch.waits == []
    assert found.shape == (16, 32, 32)
    assert found.device.type == "cuda"


def test_the_watch_sees_what_waits() -> None:
    """Otherwise the tests above could not fail."""
    with fake_gpu() as watch, pytest.raises(Exception, match="local_scalar_dense"):
        float(images().sum())
    assert len(watch.waits) == 1
    for call in (
        lambda: torch.tensor([1.0, 2.0], device="cuda"),
        lambda: torch.zeros(3).to("cuda"),
        lambda: images().cpu(),
        lambda: images().to("cpu", non_blocking=True),
    ):
        with fake_gpu() as watch:
            call()
        assert len(watch.waits) == 1, call
    with fake_gpu() as watch:
        torch.zeros(3).to("cuda", non_blocking=True)
    assert watch.waits == []


def test_regions_on_the_way_back_are_waited_for() -> None:
    """torch copies to the host without waiting when told so, and the numbers would be read before they are
    there.
    """
    with fake_gpu() as watch:
        cut(torch.zeros(16, 3, 32, 32), random_regions(16, (32, 32), 8, device="cuda"))
    assert len(watch.waits) == 4
    assert watch.unsafe == []
