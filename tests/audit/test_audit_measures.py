"""The measures against nested loops, the bootstrap against its definition, the source map against known
moves."""

from __future__ import annotations

import math

import pytest
import torch
from audit_truth import calibration, correlation, rank_correlation
from scipy import stats
from torchvision.transforms.v2 import functional as TF

from keepaug.audit.measures import (
    bootstrap,
    colour_change,
    hidden_share,
    identity_source,
    importance_lost,
    visible_pixels,
)
from keepaug.audit.probes import probe_images, read_sources


def test_importance_and_objects_by_nested_loops(generator: torch.Generator) -> None:
    saliency = torch.rand(3, 5, 7, generator=generator)
    visible = (torch.rand(3, 5, 7, generator=generator) > 0.4).float()
    masks = torch.rand(4, 5, 7, generator=generator) > 0.5
    image = torch.tensor([0, 0, 1, 2])
    lost, hidden = importance_lost(saliency, visible), hidden_share(visible, masks, image)
    for n in range(3):
        total = gone = 0.0
        for i in range(5):
            for j in range(7):
                total += float(saliency[n, i, j])
                gone += float(saliency[n, i, j]) * (1 - float(visible[n, i, j]))
        assert float(lost[n]) == pytest.approx(gone / total, abs=1e-6)
    for k in range(4):
        inside = [(i, j) for i in range(5) for j in range(7) if masks[k, i, j]]
        share = sum(1 - float(visible[image[k], i, j]) for i, j in inside) / len(inside)
        assert float(hidden[k]) == pytest.approx(share, abs=1e-6)


def test_a_map_without_mass_counts_pixels() -> None:
    visible = torch.ones(1, 2, 2)
    visible[0, 0, 0] = 0
    assert float(importance_lost(torch.zeros(1, 2, 2), visible)) == 0.25


def test_visibility_and_colours_by_nested_loops(generator: torch.Generator) -> None:
    source = torch.randint(-1, 30, (2, 5, 6), generator=generator)
    images = torch.rand(2, 3, 5, 6, generator=generator)
    augmented = torch.rand(2, 3, 5, 6, generator=generator)
    visible, change = visible_pixels(source), colour_change(images, augmented, source)
    for n in range(2):
        shown = {int(value) for value in source[n].flatten() if value >= 0}
        assert {i * 6 + j for i in range(5) for j in range(6) if visible[n, i, j]} == shown
        differences = [
            abs(float(augmented[n, c, i, j]) - float(images[n, c, source[n, i, j] // 6, source[n, i, j] % 6]))
            for c in range(3)
            for i in range(5)
            for j in range(6)
            if source[n, i, j] >= 0
        ]
        assert float(change[n]) == pytest.approx(sum(differences) / len(differences), abs=1e-6)


def test_closing_fills_gaps_and_leaves_holes() -> None:
    source = identity_source(1, 12, 12)
    source[0, 2, :] = -1  # a line that nobody shows
    source[0, 6:10, 2:6] = -1  # a cut
    visible = visible_pixels(source, close=True)[0]
    assert bool((visible[2] == 1).all())
    assert bool((visible[6:10, 2:6] == 0).all())
    assert int((visible == 0).sum()) == 16
    assert int((visible_pixels(source) == 0).sum()) == 12 + 16


def test_bootstrap_is_the_ratio_of_resampled_sums(generator: torch.Generator) -> None:
    above, below = torch.rand(40, generator=generator).double(), torch.ones(40).double()
    below[::3] = 0
    above[::3] = 0
    found = bootstrap(
        {"mean": (above, below), "nothing": (above, torch.zeros(40))},
        resamples=2000,
        generator=torch.Generator().manual_seed(1),
    )
    assert found["nothing"] is None
    told = above[below > 0]
    assert found["mean"].mean == pytest.approx(float(told.mean()))
    spread = 1.96 * float(told.std()) / math.sqrt(len(told))
    assert found["mean"].high - found["mean"].low == pytest.approx(2 * spread, rel=0.2)
    again = bootstrap({"mean": (above, below)}, resamples=2000, generator=torch.Generator().manual_seed(1))
    assert again["mean"] == pytest.approx(found["mean"])


def test_all_measures_share_their_resamples(generator: torch.Generator) -> None:
    values = torch.rand(30, generator=generator).double()
    ones = torch.ones(30).double()
    found = bootstrap({"a": (values, ones), "b": (2 * values, ones)}, generator=generator)
    assert found["b"].low == pytest.approx(2 * found["a"].low)
    assert bootstrap({"one": (ones[:1], ones[:1])}, generator=generator)["one"] == (1.0, 1.0, 1.0)


def test_correlations_are_scipys(generator: torch.Generator) -> None:
    first = torch.randint(0, 6, (50,), generator=generator).double()
    second = first + torch.randn(50, generator=generator)
    assert correlation(first, second) == pytest.approx(stats.pearsonr(first, second)[0])
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second)[0])
    assert math.isnan(correlation(first, torch.ones(50)))


def test_calibration_by_hand() -> None:
    told, truth = torch.tensor([0.0, 0.1, 0.9, 1.0]), torch.tensor([0.2, 0.4, 0.8, 1.0])
    (low, true_low, two), (high, true_high, also_two) = calibration(told, truth, bins=4)
    assert (two, also_two) == (2, 2)
    assert (low, true_low) == pytest.approx((0.05, 0.3))
    assert (high, true_high) == pytest.approx((0.95, 0.9))


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (7, 5)])
def test_codes_read_back_as_every_pixel_itself(size: tuple[int, int]) -> None:
    source = read_sources(probe_images(*size)[None])[0]
    assert _right(source, identity_source(1, *size)) == 1
    assert bool((visible_pixels(source, close=True) == 1).all())


def _right(told: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of the pixels that are told rightly, of those that a code can tell: one in 20 is black or white
    in all of them."""
    codes = probe_images(*truth.shape[-2:])[:2, 0].flatten(1)
    extreme = (codes[0] == codes[1])[truth.flatten().clamp(min=0)] & (truth >= 0).flatten()
    wrong = (told != truth).flatten() & ~(extreme & (told == -1).flatten())
    assert float(extreme.double().mean()) < 0.1
    return 1 - float(wrong.double().mean())


def _noisy(images: torch.Tensor) -> torch.Tensor:
    noise = 25 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + noise).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    "change",
    [
        TF.invert,
        lambda x: TF.solarize(x, 100),
        lambda x: TF.adjust_brightness(x, 0.3),
        lambda x: TF.adjust_contrast(x, 0.2),
        lambda x: TF.posterize(x, 2),
        TF.equalize,
        TF.autocontrast,
        lambda x: TF.rgb_to_grayscale(x, 3),
        _noisy,
    ],
    ids=["invert", "solarize", "dark", "flat", "posterize", "equalize", "autocontrast", "grey", "noise"],
)
def test_colours_leave_the_codes_readable(change) -> None:
    source = read_sources(change(probe_images(32, 32))[None])[0]
    assert _right(source, identity_source(1, 32, 32)) > 0.97


@pytest.mark.parametrize(
    "steps",
    [
        (TF.invert, TF.equalize),
        (TF.equalize, lambda x: TF.solarize(x, 178)),
        (lambda x: TF.affine(x, 0, [0, -14], 1.0, [0.0]), TF.autocontrast),
        (lambda x: TF.adjust_contrast(x, 0.27), lambda x: TF.solarize(x, 178)),
    ],
)
def test_operations_that_look_at_the_whole_image(steps) -> None:
    """Each pair hid everything from codes with flat images to compare with."""
    answers = probe_images(32, 32)
    for step in steps:
        answers = step(answers)
    source, shift = read_sources(answers[None])[0][0], 14 if steps[1] is TF.autocontrast else 0
    truth = identity_source(1, 32, 32)[0].roll(-shift, dims=0)
    shown = source >= 0
    assert int(shown.sum()) > 0.9 * 32 * (32 - shift)
    assert bool((source == truth)[shown].all())
    assert bool(read_sources(answers[None])[1])


@pytest.mark.parametrize("angle", [0.0, 30.0, -77.0])
def test_moves_are_told_as_torchvision_moves_coordinates(angle: float) -> None:
    """The oracle: coordinates as floating-point images through the same move."""
    move = {"angle": angle, "translate": [3, -5], "scale": 1.0, "shear": [8.0, 0.0]}
    told = read_sources(TF.affine(probe_images(32, 32), **move)[None])[0][0]
    rows = torch.arange(32.0)[:, None].expand(32, 32)
    moved = TF.affine(torch.stack([rows, rows.T]) + 1, **move)
    truth = torch.where(moved[0] > 0, (moved[0] - 1) * 32 + moved[1] - 1, -1).long()
    assert _right(told, truth) == 1


def test_what_is_covered_shows_nothing(generator: torch.Generator) -> None:
    answers = probe_images(32, 32)
    answers[:, :, 4:12, 6:20] = torch.randint(0, 256, (3, 8, 14), generator=generator, dtype=torch.uint8)
    source = read_sources(answers[None])[0][0]
    assert bool((source[4:12, 6:20] == -1).all())
    hidden = visible_pixels(source[None], close=True)[0] == 0
    assert int(hidden.sum()) == 8 * 14


def test_blends_are_doubted_and_moves_are_not() -> None:
    codes = probe_images(32, 32)
    turned = TF.affine(codes, 40.0, [3, 2], 0.7, [10.0, 0.0], interpolation=TF.InterpolationMode.BILINEAR)
    blended = (codes.float() + TF.rotate(codes, 45.0).float()).div(2).to(torch.uint8)
    dull = TF.adjust_contrast(turned, 0.2)
    answers = torch.stack([codes, turned, TF.horizontal_flip(codes), dull, _noisy(codes), blended])
    assert read_sources(answers)[1].tolist() == [True] * 5 + [False]
