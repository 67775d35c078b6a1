"""Maps are computed for the augmented images alone, and the draws are those of all maps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from fake_gpu import fake_gpu

from keepaug import KeepCutMix, KeepCutout, KeepRandomErasing, saliency_map
from keepaug.models import build_network

NUM = 32
KEEP: dict[str, Any] = {
    "KeepCutout": KeepCutout(5, p=0.5),
    "KeepCutout of all": KeepCutout(5),
    "KeepCutout, matched": KeepCutout(5, p=0.4, placement="matched"),
    "KeepRandomErasing": KeepRandomErasing(p=0.5, fill="random"),
    "KeepRandomErasing of all": KeepRandomErasing(p=1.0),
    "KeepCutMix": KeepCutMix(p=0.5),
    "KeepCutMix, clipped": KeepCutMix(p=0.3, placement="clipped"),
    "KeepCutMix of a batch": KeepCutMix(p=0.5, per="batch"),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counting(nn.Module):
    """A small network that notes how many images it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        self.numbers: list[int] = []
        self.formats: list[bool] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.numbers.append(len(images))
        self.formats.append(images.is_contiguous(memory_format=torch.channels_last))
        return self.body(images)


@pytest.fixture
def model() -> Counting:
    torch.manual_seed(0)
    network = Counting()
    network(torch.zeros(1, 3, 12, 10))
    network.numbers.clear()
    return network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(NUM, 3, 12, 10, generator=seeded(1))


@pytest.mark.parametrize("name", KEEP)
@pytest.mark.parametrize("seed", range(5))
def test_partial_maps_draw_what_all_maps_draw(name: str, seed: int, images: torch.Tensor) -> None:
    keep, labels = KEEP[name], torch.arange(NUM)
    heat = torch.rand(NUM, 12, 10, generator=seeded(seed + 50))
    given = (images, labels, heat) if isinstance(keep, KeepCutMix) else (images, heat)
    whole, after = seeded(seed), seeded(seed)
    expected = keep(*given, generator=whole)
    drawn = keep.draw(images, generator=after)
    if drawn.applied is not None:
        heat = heat.masked_fill(~drawn.applied[:, None, None], torch.nan)
    found = keep(*given[:-1], heat, drawn=drawn, generator=after)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(whole.get_state(), after.get_state())
    regions = keep.sample(images, heat, drawn=drawn, generator=seeded(seed))
    if drawn.applied is not None:
        assert not (regions.height > 0)[~drawn.applied].any()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("labelled", [True, False])
def test_only_the_wanted_maps_are_computed(
    model: Counting, images: torch.Tensor, scale: float, labelled: bool
) -> None:
    labels = torch.arange(NUM) % 5 if labelled else None
    for share in (0.0, 0.1, 0.5, 1.0):
        only = torch.rand(NUM, generator=seeded(3)) < share
        model.numbers.clear()
        forward = (lambda x: model.body(nn.functional.interpolate(x, (12, 10)))) if scale < 1 else None
        whole = saliency_map(model, images, labels, scale=scale, forward=forward)
        model.numbers.clear()
        found = saliency_map(model, images, labels, scale=scale, forward=forward, only=only)
        assert found.shape == (NUM, 12, 10)
        torch.testing.assert_close(found[only], whole[only])
        assert not found[~only].any()
        if scale == 1:
            assert model.numbers == ([int(only.sum())] if only.any() else [])


def test_the_memory_format_is_kept(model: Counting, images: torch.Tensor) -> None:
    saliency_map(model, images.contiguous(memory_format=torch.channels_last), only=torch.arange(NUM) < 3)
    assert model.formats[-1]


def test_a_mask_that_is_none_is_refused(model: Counting, images: torch.Tensor) -> None:
    for wrong in (torch.ones(NUM), torch.ones(NUM - 1, dtype=torch.bool), torch.arange(NUM)):
        with pytest.raises(ValueError, match=rf"only must be a bool tensor of the shape \({NUM},\), got"):
            saliency_map(model, images, only=wrong)


@pytest.mark.parametrize(("chosen", "computed"), [(1, 2), (5, 6), (8, 8), (16, 16)])
def test_a_gpu_is_not_waited_for_and_sees_few_batch_sizes(chosen: int, computed: int) -> None:
    numbers = []
    with fake_gpu() as watch:
        network = build_network("resnet8", 10, stem="cifar").to("cuda")
        network.register_forward_pre_hook(lambda module, args: numbers.append(len(args[0])))
        pixels = torch.randn(16, 3, 32, 32, device="cuda")
        labels = torch.zeros(16, dtype=torch.int64, device="cuda")
        watch.waits.clear()
        only = torch.arange(16, device="cpu") < chosen
        found = saliency_map(network, pixels, labels, only=only)
        assert found.shape == (16, 32, 32)
        saliency_map(network, pixels, labels, only=torch.ones(16, dtype=torch.bool, device="cuda"))
    assert watch.waits == []
    assert numbers == [computed, 16]
