"""The baselines against their papers' definitions, written with nested loops."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from keepaug import TwoViews, aug_mix, mixed_cross_entropy, rand_augment
from keepaug.baselines import (
    AttentiveCutMix,
    ConsistentLabels,
    GridMask,
    Grids,
    HiddenMix,
    ManifoldMixup,
    MixedLabels,
    Mixup,
    consistent_cross_entropy,
    jensen_shannon,
    mix_hidden_features,
    three_views,
)
from keepaug.baselines.grid_mask import grid_mask
from keepaug.policies import Repeated


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 17, 14, generator=seeded(1))


@pytest.fixture
def heat() -> torch.Tensor:
    return torch.rand(6, 17, 14, generator=seeded(2))


# GridMask


def grids(unit: int, kept: int, top: int, left: int, degrees: float = 0.0) -> Grids:
    whole = [torch.tensor([value]) for value in (unit, kept, top, left)]
    return Grids(*whole, torch.tensor([math.radians(degrees)], dtype=torch.float64))


def slow_grid(
    size: tuple[int, int], unit: int, kept: int, top: int, left: int, degrees: float
) -> torch.Tensor:
    """A plane of squares of side unit - kept, one per unit, rotated about the image's centre."""
    height, width = size
    angle = math.radians(degrees)
    deleted = torch.zeros(height, width, dtype=torch.bool)
    for i in range(height):
        for j in range(width):
            y, x = i - (height - 1) / 2, j - (width - 1) / 2
            row = math.cos(angle) * y + math.sin(angle) * x + (height - 1) / 2
            column = math.cos(angle) * x - math.sin(angle) * y + (width - 1) / 2
            row, column = math.floor(round(row + 0.5, 9)), math.floor(round(column + 0.5, 9))
            deleted[i, j] = (row - top) % unit >= kept and (column - left) % unit >= kept
    return deleted


@pytest.mark.parametrize("degrees", [0, 17, 90, 203])
def test_grid_mask_is_the_rotated_plane_of_squares(degrees: float) -> None:
    for unit, kept, top, left in ((5, 2, 0, 0), (7, 3, 4, 6), (12, 5, 11, 1)):
        got = grid_mask(grids(unit, kept, top, left, degrees), (20, 16))[0]
        assert torch.equal(got, slow_grid((20, 16), unit, kept, top, left, degrees))


@pytest.mark.parametrize("degrees", [0, 30, 90, 145, 270])
def test_grid_mask_turns_as_pillow_turns(degrees: int) -> None:
    """The released code draws the grid on a plane and turns it with Pillow's nearest neighbour."""
    unit, kept, side = 9, 4, 60
    plane = slow_grid((side, side), unit, kept, 2, 5, 0)
    turned = Image.fromarray((plane.numpy() * 255).astype("uint8")).rotate(degrees)
    inner = slice(10, 50)  # Pillow fills the corners with 0; the released code cuts them off
    expected = torch.from_numpy(np.array(turned))[inner, inner] > 0
    got = grid_mask(grids(unit, kept, 2, 5, degrees), (side, side))[0][inner, inner]
    assert float((got == expected).double().mean()) > 0.995


def test_grid_mask_keeps_the_share_of_its_paper() -> None:
    """k = 1 - (1 - r)^2 of the pixels, where the unit divides the image."""
    mask = grid_mask(grids(10, 4, 3, 7), (40, 50))
    assert float((~mask).double().mean()) == pytest.approx(1 - 0.6**2)


def test_grid_mask_draws_per_image_within_its_ranges() -> None:
    drawn = GridMask((6, 9), ratio=0.4, rotate=30, p=0.7).sample(4000, generator=seeded())
    used = drawn.unit > 0
    assert float(used.double().mean()) == pytest.approx(0.7, abs=0.03)
    assert drawn.unit[used].unique().tolist() == [6, 7, 8, 9]
    for unit, kept in ((6, 3), (7, 3), (8, 4), (9, 4)):  # ceil(0.4 d)
        some = drawn.unit == unit
        assert drawn.kept[some].unique().tolist() == [kept]
        assert drawn.top[some].unique().tolist() == drawn.left[some].unique().tolist() == list(range(unit))
    degrees = torch.rad2deg(drawn.angle)
    assert degrees.round().unique().tolist() == list(range(30))


def test_grid_mask_probability_rises(images: torch.Tensor) -> None:
    grid = GridMask((4, 6), p=0.8, ramp=0.5)
    assert torch.equal(grid.at(0.0)(images, generator=seeded()), images)
    assert [grid.at(progress).p for progress in (0.25, 0.5, 1.0)] == [0.4, 0.8, 0.8]
    assert GridMask((4, 6), p=1.0, ramp=0.0).at(0.0).p == 1.0
    out = GridMask((4, 6), p=1.0, fill=(1.0, 2.0, 3.0))(images, generator=seeded())
    mask = (out != images).all(dim=1)
    assert 0.1 < float(mask.double().mean()) < 0.6
    for channel in range(3):
        assert (out[:, channel][mask] == channel + 1).all()


def test_grid_mask_follows_the_released_recipe() -> None:
    """Probability 0.8 from epoch 240 of 300 on, in a straight line before; lines of ceil(0.6 d) of d from 96
    to 223.
    """
    grid = GridMask((96, 223), ratio=0.6)
    for epoch in (0, 24, 120, 239, 240, 299):
        assert grid.at(epoch / 300).p == pytest.approx(0.8 * min(1, epoch / 240))
    drawn = grid.at(1.0).sample(5000, generator=seeded())
    assert float((drawn.unit > 0).double().mean()) == pytest.approx(0.8, abs=0.02)
    for unit, kept in zip(drawn.unit.tolist(), drawn.kept.tolist(), strict=True):
        assert not unit or kept == math.ceil(unit * 0.6)


# Mixup


def test_mixup_is_the_convex_combination(images: torch.Tensor) -> None:
    labels, permutation = torch.arange(6), torch.tensor([3, 1, 0, 5, 2, 4])
    lam = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
    out, target = Mixup()(images, labels, lam=lam, permutation=permutation)
    for n in range(6):
        other = int(permutation[n])
        torch.testing.assert_close(out[n], lam[n] * images[n] + (1 - lam[n]) * images[other])
        assert (int(target.labels_a[n]), int(target.labels_b[n])) == (n, other)
    logits = torch.randn(6, 6, generator=seeded())
    soft = lam[:, None] * torch.eye(6) + (1 - lam[:, None]) * torch.eye(6)[permutation]
    torch.testing.assert_close(mixed_cross_entropy(logits, target), F.cross_entropy(logits, soft))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_draws_lambda_from_beta(alpha: float) -> None:
    lam = Mixup(alpha).sample(40_000, generator=seeded()).double()
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(lam.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert len(Mixup(alpha, per="batch").sample(50, generator=seeded()).unique()) == 1
    assert float((Mixup(alpha, p=0.3).sample(4000, generator=seeded()) == 1).double().mean()) > 0.65


# Attentive CutMix


def slow_attentive(
    source: torch.Tensor, target: torch.Tensor, attention: torch.Tensor, grid: tuple[int, int], number: int
) -> tuple[torch.Tensor, float]:
    """Average the source's attention over the cells; its `number` highest cells go onto the target at their
    place.
    """
    height, width = source.shape[1:]

    def edges(side: int, cells: int) -> list[int]:
        return [side * cell // cells for cell in range(cells + 1)]

    scores = []
    rows, columns = edges(attention.shape[0], grid[0]), edges(attention.shape[1], grid[1])
    for i in range(grid[0]):
        for j in range(grid[1]):
            cell = attention[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            scores.append((float(cell.double().mean()), i, j))
    out, covered = target.clone(), 0
    rows, columns = edges(height, grid[0]), edges(width, grid[1])
    for _, i, j in sorted(scores, reverse=True)[:number]:
        for y in range(rows[i], rows[i + 1]):
            for x in range(columns[j], columns[j + 1]):
                out[:, y, x] = source[:, y, x]
                covered += 1
    return out, 1 - covered / (height * width)


@pytest.mark.parametrize("size", [(17, 14), (7, 7), (28, 30)])
def test_attentive_cutmix_pastes_the_partners_best_cells(size: tuple[int, int], images: torch.Tensor) -> None:
    attention = torch.rand(6, *size, generator=seeded(8))
    permutation = torch.tensor([3, 1, 0, 5, 2, 4])
    out, target = AttentiveCutMix()(images, torch.arange(6), attention, permutation=permutation)
    for n in range(6):
        other = int(permutation[n])
        expected, lam = slow_attentive(images[other], images[n], attention[other], (7, 7), 6)
        assert torch.equal(out[n], expected)
        assert float(target.lam[n]) == pytest.approx(lam)
        assert int(target.labels_b[n]) == other


def test_attentive_cutmix_takes_six_of_49_and_obeys_p(images: torch.Tensor) -> None:
    big = torch.randn(40, 3, 14, 14, generator=seeded())
    attention = torch.rand(40, 14, 14, generator=seeded(1))
    _, target = AttentiveCutMix()(big, torch.zeros(40, dtype=torch.int64), attention)
    torch.testing.assert_close(target.lam, torch.full((40,), 1 - 6 / 49))
    _, target = AttentiveCutMix(p=0.25)(
        big, torch.zeros(40, dtype=torch.int64), attention, generator=seeded()
    )
    assert 2 <= int((target.lam < 1).sum()) <= 20


# Manifold Mixup


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(inputs.flatten(1))))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_manifold_mixup_mixes_the_hidden_state_of_the_layer(layer: int) -> None:
    torch.manual_seed(0)
    network, inputs, labels = Stages(), torch.randn(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    lam, permutation = torch.rand(5, generator=seeded()), torch.tensor([4, 3, 2, 0, 1])
    mix = HiddenMix(layer, permutation, MixedLabels(labels, labels[permutation], lam))

    def blended(hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [lam[n] * hidden[n] + (1 - lam[n]) * hidden[int(permutation[n])] for n in range(5)]
        )

    steps = [blended if layer == k else (lambda hidden: hidden) for k in range(3)]
    expected = steps[2](network.second(torch.tanh(steps[1](network.first(steps[0](inputs.flatten(1)))))))
    given, got_mix = ManifoldMixup()(inputs, labels, mix=mix)
    with mix_hidden_features([network.first, network.second], got_mix):
        got = network(given)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    torch.testing.assert_close(network(inputs), Stages.forward(network, inputs))  # the hook is gone
    assert not network.first._forward_hooks


def test_manifold_mixup_draws_the_layer_per_batch_and_lambda_per_image() -> None:
    labels = torch.arange(8)
    mixes = [ManifoldMixup(num_layers=3).sample(labels, generator=seeded(seed)) for seed in range(300)]
    counts = torch.tensor([mix.layer for mix in mixes]).bincount(minlength=3)
    assert int(counts.min()) > 70
    assert len(mixes[0].labels.lam.unique()) == 8
    assert len(ManifoldMixup(per="batch").sample(labels, generator=seeded()).labels.lam.unique()) == 1
    assert sorted(mixes[0].permutation.tolist()) == list(range(8))


def test_manifold_mixup_says_when_nothing_was_mixed() -> None:
    network, labels = Stages(), torch.tensor([0, 1])
    mix = HiddenMix(1, torch.tensor([1, 0]), MixedLabels(labels, labels, torch.ones(2)))
    with pytest.raises(RuntimeError, match="ran 0 times"), mix_hidden_features([network.first], mix):
        pass
    with pytest.raises(ValueError, match="num_layers=1 or less"), mix_hidden_features([], mix):
        pass


# AugMix


def test_jensen_shannon_is_its_definition() -> None:
    logits = [torch.randn(4, 5, generator=seeded(seed)) * 2 for seed in range(3)]
    total = 0.0
    for n in range(4):
        parts = [torch.softmax(one[n].double(), 0) for one in logits]
        mean = sum(parts) / 3
        for part in parts:
            total += sum(float(part[c]) * math.log(float(part[c]) / float(mean[c])) for c in range(5)) / 3
    assert float(jensen_shannon(*logits)) == pytest.approx(total / 4, rel=1e-5)
    assert float(jensen_shannon(logits[0], logits[0], logits[0])) == pytest.approx(0, abs=1e-6)
    certain = [F.one_hot(torch.full((4,), c), 5).float() * 80 for c in range(3)]
    assert float(jensen_shannon(*certain)) == pytest.approx(math.log(3), rel=1e-4)
    torch.testing.assert_close(jensen_shannon(*logits), jensen_shannon(*reversed(logits)))


def test_consistent_cross_entropy_is_the_released_loss() -> None:
    labels, logits = torch.tensor([0, 3]), torch.randn(6, 4, generator=seeded(), requires_grad=True)
    clean, first, second = logits.split(2)
    mean = ((clean.softmax(1) + first.softmax(1) + second.softmax(1)) / 3).clamp(1e-7, 1).log()
    divergence = sum(F.kl_div(mean, one.softmax(1), reduction="batchmean") for one in (clean, first, second))
    expected = F.cross_entropy(clean, labels) + 12 * divergence / 3
    got = consistent_cross_entropy(logits, ConsistentLabels(labels, 12.0))
    torch.testing.assert_close(got, expected)
    wanted, found = torch.autograd.grad(expected, logits)[0], torch.autograd.grad(got, logits)[0]
    torch.testing.assert_close(found, wanted)


def test_three_views_are_one_batch(images: torch.Tensor) -> None:
    batch, target = three_views(images, images + 1, images + 2, torch.arange(6), weight=5.0)
    assert torch.equal(batch, torch.cat([images, images + 1, images + 2]))
    assert target.weight == 5.0


def test_aug_mix_is_the_mixture_of_its_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """x_augmix = m x + (1 - m) sum_i w_i chain_i(x), with operations that add 10."""
    policy = aug_mix(mixture_width=3, chain_depth=2)
    weights = iter([torch.tensor([0.4, 0.6]), torch.tensor([0.2, 0.3, 0.5])])
    seen: list[str] = []

    def add(image: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
        seen.append(name)
        return image + 10 * len(seen)

    monkeypatch.setattr(policy, "_dirichlet", lambda num: next(weights))
    monkeypatch.setattr(policy, "_apply", add)
    got = policy(torch.full((3, 4, 4), 50, dtype=torch.uint8))
    chains = [50 + 10 + 20, 50 + 30 + 40, 50 + 50 + 60]
    expected = 0.4 * 50 + 0.6 * (0.2 * chains[0] + 0.3 * chains[1] + 0.5 * chains[2])
    assert got.unique().tolist() == [int(expected + 1e-3)]
    assert len(seen) == 6


def test_aug_mix_leaves_the_benchmarks_operations_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for all_ops in (False, True):
        policy, seen = aug_mix(all_ops=all_ops), set()
        monkeypatch.setattr(
            policy, "_apply", lambda image, name, magnitude, seen=seen: (seen.add(name), image)[1]
        )
        torch.manual_seed(0)
        for _ in range(60):
            policy(torch.zeros(3, 4, 4, dtype=torch.uint8))
        found[all_ops] = seen
    assert found[True] - found[False] == {"Brightness", "Color", "Contrast", "Sharpness"}


# policies


def test_rand_augment_over_the_operations_of_auto_augment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two operations of one magnitude; Invert instead of the identity; magnitude 12 of 30 turns by 12
    degrees.
    """
    found: dict[str, dict[str, set[float]]] = {}
    for operations in ("rand_augment", "auto_augment"):
        policy = rand_augment(2, 12, operations=operations)
        seen: dict[str, set[float]] = {}
        monkeypatch.setattr(
            policy,
            "_apply_image_or_video_transform",
            lambda image, name, magnitude, seen=seen, **options: (
                seen.setdefault(name, set()).add(round(abs(magnitude), 4)),
                image,
            )[1],
        )
        torch.manual_seed(0)
        for _ in range(200):
            policy(torch.zeros(3, 32, 32, dtype=torch.uint8))
        found[operations] = seen
    assert len(found["auto_augment"]) == len(found["rand_augment"]) == 14
    assert set(found["auto_augment"]) - set(found["rand_augment"]) == {"Invert"}
    assert set(found["rand_augment"]) - set(found["auto_augment"]) == {"Identity"}
    assert found["auto_augment"]["Rotate"] == {12.0}
    assert found["auto_augment"]["ShearX"] == {round(0.3 * 12 / 30, 4)}
    copy = pickle.loads(pickle.dumps(rand_augment(2, 12, operations="auto_augment")))
    assert "Invert" in copy._AUGMENTATION_SPACE
    assert copy.magnitude == 12


def test_policy_before_the_crop_sees_the_whole_image() -> None:
    from torchvision.transforms import v2

    image = torch.randint(1, 255, (3, 12, 12), dtype=torch.uint8, generator=seeded())
    seen = []

    def invert(picture: torch.Tensor) -> torch.Tensor:
        torch.rand(5)  # a policy draws too, and must not shift the geometry
        seen.append(picture)
        return 255 - picture

    crop = v2.Compose([v2.RandomCrop(12, padding=4), v2.RandomHorizontalFlip()])
    for seed in range(5):
        clean, strong = TwoViews(crop, invert, order="before_crop")(image, generator=seeded(seed))
        assert torch.equal(seen[-1], image)
        inside = clean > 0
        assert torch.equal(strong[inside], 255 - clean[inside])
        assert (strong[~inside] == 0).all()  # the padding comes after the policy and stays black
    clean, strong = TwoViews(crop, invert)(image, generator=seeded(0))
    assert torch.equal(strong, 255 - clean)


def test_repeated_draws_anew() -> None:
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=seeded())
    torch.manual_seed(0)
    first, second = Repeated(aug_mix(), 2)(image)
    assert first.shape == second.shape == image.shape
    assert not torch.equal(first, second)


# all of them


CALLS = {
    "GridMask": lambda x, y, h, g: GridMask((4, 6))(x, h, generator=g),
    "Mixup": lambda x, y, h, g: Mixup()(x, y, h, generator=g)[0],
    "AttentiveCutMix": lambda x, y, h, g: AttentiveCutMix()(x, y, h, generator=g)[0],
    "ManifoldMixup": lambda x, y, h, g: ManifoldMixup(num_layers=1)(x, y, h, generator=g)[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_formats_purity_and_generators(name: str, images: torch.Tensor, heat: torch.Tensor) -> None:
    call, labels = CALLS[name], torch.arange(6)
    version, state = images._version, torch.get_rng_state()
    first = call(images, labels, heat, seeded(3))
    assert torch.equal(first, call(images, labels, heat, seeded(3)))
    assert not torch.equal(first, call(images, labels, heat, seeded(4)))
    assert not torch.equal(first, images)
    assert images._version == version
    assert torch.equal(torch.get_rng_state(), state)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        given = images.to(dtype).to(memory_format=torch.channels_last)
        out = call(given, labels, heat, seeded(3))
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out.float(), first, rtol=2e-2, atol=2e-2)
    assert call(images[:0], labels[:0], heat[:0], seeded()).shape == (0, 3, 17, 14)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: GridMask((1, 5)), ValueError, r"unit must be \(low, high\)"),
        (lambda x: GridMask(ratio=1.0), ValueError, r"ratio .* \(0, 1\)"),
        (lambda x: GridMask(rotate=0), ValueError, r"rotate must be in \[1, 360\]"),
        (lambda x: GridMask(ramp=2.0), ValueError, "ramp"),
        (lambda x: GridMask(fill=(1.0, 2.0))(x), ValueError, "2 numbers, but the images have 3"),
        (lambda x: GridMask()(x[0]), ValueError, r"\(N, C, H, W\)"),
        (lambda x: Mixup(alpha=0), ValueError, "alpha must be above 0"),
        (lambda x: Mixup(per="x"), ValueError, "'image' or 'batch'"),
        (lambda x: Mixup()(x, torch.arange(5)), ValueError, r"labels must have the shape \(6,\)"),
        (lambda x: Mixup()(x.to(torch.uint8), torch.arange(6)), TypeError, "normalize the images first"),
        (lambda x: AttentiveCutMix(2, 5), ValueError, "num_patches must be"),
        (lambda x: AttentiveCutMix()(x, torch.arange(6)), ValueError, "needs an attention map"),
        (lambda x: AttentiveCutMix()(x, torch.arange(6), x[:, :1]), ValueError, r"attention must have"),
        (lambda x: AttentiveCutMix()(x, torch.arange(6), x[:, 0, :5]), ValueError, "grid of 7 x 7"),
        (lambda x: ManifoldMixup(num_layers=0), ValueError, "num_layers"),
        (lambda x: three_views(x, x[:3], x, torch.arange(6)), ValueError, "one shape"),
        (
            lambda x: consistent_cross_entropy(x.flatten(1), ConsistentLabels(torch.arange(6), 1.0)),
            ValueError,
            "3 x 6 images, got 6",
        ),
        (lambda x: aug_mix(11), ValueError, r"severity must be in \[1, 10\]"),
        (lambda x: aug_mix(mixture_width=0), ValueError, "mixture_width"),
        (lambda x: rand_augment(operations="x"), ValueError, "rand_augment, auto_augment"),
        (lambda x: TwoViews(None, aug_mix(), order="x"), ValueError, "after_crop, before_crop"),
        (lambda x: Repeated(aug_mix(), 0), ValueError, "num_views"),
    ],
)
def test_errors_say_what_to_do(call, error: type, message: str, images: torch.Tensor) -> None:
    with pytest.raises(error, match=message):
        call(images)
