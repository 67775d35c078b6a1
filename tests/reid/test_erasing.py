"""The share of important regions erased: 1 - tau at random, none with Keep; ranks against nested loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from keepaug import Regions, saliency_map
from reid.evaluation.erased import is_important, measure_erasing


def smooth_maps(num: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(num, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[:, 0]


def test_ranks_are_those_of_nested_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    heat = torch.randint(0, 4, (40, 7, 6), generator=generator).double()  # many ties
    heights, widths = (torch.randint(0, limit, (40,), generator=generator) for limit in (6, 5))
    tops, lefts = (
        (torch.rand(40, generator=generator) * (n - size + 1)).long()
        for n, size in ((7, heights), (6, widths))
    )
    found = is_important(Regions(tops, lefts, heights, widths), heat, tau=0.6)
    for index, (top, left, height, width) in enumerate(zip(tops, lefts, heights, widths, strict=True)):
        if not height * width:
            assert not found[index]
            continue
        scores = [
            float(heat[index, y : y + height, x : x + width].sum())
            for y in range(7 - height + 1)
            for x in range(6 - width + 1)
        ]
        own = float(heat[index, top : top + height, left : left + width].sum())
        lower = sum(score < own for score in scores)
        assert bool(found[index]) == (lower >= max(1, int(0.6 * len(scores) + 1e-9)))
    assert 5 < int(found.sum()) < 30


@pytest.mark.parametrize("tau", [0.6, 0.2])
def test_random_erases_what_matters_and_keep_does_not(tau: float) -> None:
    heat = smooth_maps(16, 32, 16)
    shares = measure_erasing(heat, tau=tau, rounds=60, generator=torch.Generator().manual_seed(2))
    assert shares.keep == 0
    assert shares.random == pytest.approx(1 - tau, abs=0.07)
    assert shares.regions > 900


def test_with_the_saliency_of_a_small_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    images, labels = torch.randn(12, 3, 32, 16), torch.arange(12) % 5
    heat = saliency_map(network, images, labels, scale=0.5)
    shares = measure_erasing(heat, rounds=40, generator=torch.Generator().manual_seed(3))
    assert shares.keep == 0
    assert 0.3 < shares.random < 0.5


def test_same_generator_same_shares() -> None:
    heat = smooth_maps(4, 16, 16)
    first, second = (
        measure_erasing(heat, rounds=5, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert first == second


def test_errors_say_what_to_do() -> None:
    heat = smooth_maps(2, 8, 8)
    with pytest.raises(ValueError, match="needs images and rounds"):
        measure_erasing(heat[:0])
    one = torch.ones(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="leaves its image"):
        is_important(Regions(one * 7, one, one * 4, one), heat)
    with pytest.raises(ValueError, match="2 regions and 1 maps"):
        is_important(Regions(one, one, one, one), heat[:1])
