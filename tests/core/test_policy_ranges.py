"""Google's magnitudes against PIL and the released rules; what the scale, the ranges and the fill change."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
import oracles

from keepaug import BatchPolicy, aug_mix, auto_augment, policies, rand_augment
from keepaug.policies import _GEOMETRY, google_magnitude

FILL = (125, 123, 114)
NAMES = sorted(set(rand_augment()._AUGMENTATION_SPACE) | set(auto_augment()._AUGMENTATION_SPACE))
# Largest share of pixels that may differ by more than one grey level: torchvision and PIL round the sources
# of a rotation and of a shear differently.
ROUNDED = {"Rotate": 0.003, "ShearX": 0.003, "ShearY": 0.003}


def pictures(num: int, side: int) -> Tensor:
    """Smooth ones with some noise, whose look-up tables degenerate nowhere."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1) * 255
    return (smooth + torch.randn(smooth.shape, generator=generator) * 6).clamp(0, 255).to(torch.uint8)


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def differing(name: str, code: str) -> float:
    """Share of the pixels, over levels and directions, more than a grey level away from the oracle's."""
    side = {"cifar10": 32, "imagenet": 128}[code]
    policy = rand_augment(
        1,
        0,
        magnitude_max=10,
        operations="auto_augment",
        ranges="google",
        fill=[float(part) for part in FILL],
    )
    away, images = [], pictures(2, side)
    for level in range(11):
        values = google_magnitude(name, torch.tensor(float(level), dtype=torch.float64), (side, side))
        for sign in (1, -1) if name in _GEOMETRY else (1,):
            strength = 0.0 if values is None else sign * float(values)
            for image in images:
                got = policy._apply_image_or_video_transform(
                    image, name, strength, interpolation=policy.interpolation, fill=policy._fill
                )
                wanted = pil_to_tensor(oracles.google_operation(name, as_pil(image), level, sign, FILL, code))
                away.append(((got.int() - wanted.int()).abs() > 1).double().mean())
    return float(torch.stack(away).mean())


@pytest.mark.parametrize("code", ["cifar10", "imagenet"])
@pytest.mark.parametrize("name", NAMES)
def test_operations_are_those_of_the_released_code(name: str, code: str) -> None:
    """Levels 0 to 10 and both directions, on images of the size that selects each code."""
    assert differing(name, code) <= ROUNDED.get(name, 0.0)


def test_autoaugment_and_randaugment_reach_the_same_levels() -> None:
    """AutoAugment's magnitudes are levels 0 to 9; RandAugment's m is the level 10 m / its maximum."""
    auto, ten, thirty = (
        auto_augment(ranges="google"),
        rand_augment(2, 9, magnitude_max=10, ranges="google"),
        rand_augment(2, 9, ranges="google"),
    )
    for name, bins, wanted in ((auto, 10, 9.0), (ten, 11, 10.0), (thirty, 31, 10.0)):
        values = name._AUGMENTATION_SPACE["ShearX"][0](bins, 32, 32)
        assert len(values) == bins
        assert float(values[-1]) == pytest.approx(0.03 * wanted)
    for name in set(auto._AUGMENTATION_SPACE) & set(thirty._AUGMENTATION_SPACE):
        table, signed = thirty._AUGMENTATION_SPACE[name]
        assert signed == (name in _GEOMETRY)  # the enhancers go one way
        few, many = ten._AUGMENTATION_SPACE[name][0](11, 32, 32), table(31, 32, 32)
        assert (few is None) == (many is None)
        if few is not None:
            torch.testing.assert_close(few, many[::3])


def test_extreme_levels_on_pil_images_too() -> None:
    """No bits left, and a threshold that nothing reaches: today's Pillow and torchvision refuse both."""
    image = as_pil(pictures(1, 32)[0])
    for level, name, wanted in ((10, "Posterize", 0), (0, "Solarize", None)):
        policy = rand_augment(1, level, magnitude_max=10, ranges="google")
        policy._AUGMENTATION_SPACE = {name: policy._AUGMENTATION_SPACE[name]}
        result = policy(image)
        assert result.getextrema() == ((0, 0),) * 3 if wanted == 0 else result == image


def test_translations_are_pixels_of_the_released_code() -> None:
    ten = torch.tensor(10.0, dtype=torch.float64)
    for side, pixels in (((32, 32), 10), ((224, 224), 100)):
        assert float(google_magnitude("TranslateX", ten, side)) == pixels
    assert float(google_magnitude("TranslateX", ten, (64, 32))) == 10
    assert float(google_magnitude("TranslateY", ten, (64, 32))) == 20
    torchvision = rand_augment()._AUGMENTATION_SPACE["TranslateX"][0](31, 32, 32)
    assert float(torchvision[-1]) == pytest.approx(14.5, abs=0.01)


@pytest.mark.parametrize("ranges", ["torchvision", "google"])
def test_magnitude_nine_of_ten_is_nine_tenths(ranges: str) -> None:
    policy = rand_augment(2, 9, magnitude_max=10, ranges=ranges)
    table, _ = policy._AUGMENTATION_SPACE["Rotate"]
    assert float(table(policy.num_magnitude_bins, 32, 32)[policy.magnitude]) == pytest.approx(27.0)
    assert rand_augment(2, 9).num_magnitude_bins == 31
    with pytest.raises(ValueError, match=r"\[0, 10\], which magnitude_max says, got 12"):
        rand_augment(2, 12, magnitude_max=10)
    with pytest.raises(ValueError, match="torchvision, google"):
        auto_augment(ranges="x")


def test_outside_of_the_image_is_the_fill() -> None:
    """Nothing black in a white image, whose other operations leave it white or grey."""
    white = torch.full((400, 3, 32, 32), 255, dtype=torch.uint8)
    seeds = torch.randint(2**42, (400,), generator=torch.Generator().manual_seed(1))
    for fill, seen in ((None, True), ([128.0] * 3, False)):
        policy = BatchPolicy(rand_augment(1, 4, magnitude_max=10, ranges="google", fill=fill))
        chosen, operations = policy.draw(seeds, (32, 32))
        moved = torch.tensor([operations[place][0] in _GEOMETRY for place in chosen[:, 0].tolist()])
        corner = policy(white, seeds)[moved].flatten(1).amin(dim=1)
        assert bool((corner == 0).any()) is seen
        assert bool((corner == 128).any()) is not seen


def test_aug_mix_draws_continuous_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """U(0.1, severity) for each operation, in the released ranges: whole degrees and pixels."""
    policy, seen = aug_mix(3, mixture_width=1, chain_depth=1), {}

    def note(image: Tensor, name: str, magnitude: float) -> Tensor:
        seen.setdefault(name, []).append(magnitude)
        return image

    monkeypatch.setattr(policy, "_apply", note)
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for _ in range(9000):
        policy(image)
    assert len(seen) == 9
    for name in ("ShearX", "ShearY"):
        level = torch.tensor(seen[name], dtype=torch.float64) / 0.03
        assert float((level > 0).double().mean()) == pytest.approx(0.5, abs=0.06)
        order = (level.abs().sort().values - 0.1) / 2.9
        expected = torch.arange(1, len(order) + 1) / len(order)
        assert float((order - expected).abs().max()) < 1.95 / len(order) ** 0.5  # Kolmogorov-Smirnov, 0.1 %
    # int(3 level), int(level 32 / 30), 4 - int(0.4 level) and 256 - int(25.6 level) of levels from 0.1 to 3
    assert {abs(value) for value in seen["Rotate"]} == set(range(9))
    assert {abs(value) for value in seen["TranslateX"]} == {0, 1, 2, 3}
    assert set(seen["Posterize"]) == {4, 3}
    thresholds = {round(value * 255 + 0.5) for value in seen["Solarize"]}
    assert min(thresholds) == 256 - 76
    assert max(thresholds) == 256 - 2


@pytest.mark.parametrize("name", ["ShearX", "TranslateY", "Rotate", "Posterize", "Solarize", "Equalize"])
def test_aug_mix_operates_as_pil_does(name: str) -> None:
    policy, images = aug_mix(3), pictures(4, 32)
    inner = slice(4, 28)  # bilinear interpolation meets the border in two ways
    for level in (0.4, 1.7, 2.9):
        strength = google_magnitude(name, torch.tensor(level, dtype=torch.float64), (32, 32), code="augmix")
        for image in images:
            got = policy._apply(image, name, 0.0 if strength is None else float(strength))
            wanted = oracles.google_operation(name, as_pil(image), level, 1, (0, 0, 0), "augmix")
            difference = (got.int() - pil_to_tensor(wanted).int())[:, inner, inner].abs()
            assert float(difference.double().mean()) < 0.6


def test_torchvision_still_has_the_private_names() -> None:
    """Seen in torchvision 0.21 to 0.29; said in one place of the module, and nowhere else in the package."""
    found = [v2.RandAugment(), v2.AutoAugment(), v2.AugMix()]
    for name in (policies._SPACE, policies._APPLY):
        assert all(hasattr(one, name) for one in found), (name, torchvision.__version__)
    assert hasattr(found[1], policies._PAIRS), torchvision.__version__
    for path in (Path(__file__).parents[2] / "keepaug").rglob("*.py"):
        text = path.read_text()
        assert sum(text.count(name) for name in (policies._SPACE, policies._APPLY)) == 2 * (
            path.name == "policies.py"
        ), path
