"""The batched policy against PIL, image by image, as the recipe runs it; and what a draw must satisfy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ssl_uda.policy import OPERATIONS, Draws, apply_policy, draw_policy


def oracle_operation(
    name: str, image: Image.Image, level: int, sign: int, centre: tuple[float, float]
) -> Image.Image:
    """One operation of the recipe on an RGBA image, written from its description with PIL's own functions."""
    width, height = image.size

    def affine(*matrix: float) -> Image.Image:
        return image.transform((width, height), Image.Transform.AFFINE, matrix)

    rgb = image.convert("RGB")
    enhance = level * 1.8 / 10 + 0.1
    shear, shift = sign * level * 0.3 / 10, sign * int(level * 10 / 10)
    match name:
        case "Invert":
            return ImageOps.invert(rgb).convert("RGBA")
        case "AutoContrast":
            return ImageOps.autocontrast(rgb).convert("RGBA")
        case "Equalize":
            return ImageOps.equalize(rgb).convert("RGBA")
        case "Posterize":
            return ImageOps.posterize(rgb, 4 - int(level * 4 / 10)).convert("RGBA")
        case "Solarize":
            return ImageOps.solarize(rgb, 256 - int(level * 256 / 10)).convert("RGBA")
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return getattr(ImageEnhance, name)(image).enhance(enhance)
        case "ShearX":
            return affine(1, shear, 0, 0, 1, 0)
        case "ShearY":
            return affine(1, 0, 0, shear, 1, 0)
        case "TranslateX":
            return affine(1, 0, shift, 0, 1, 0)
        case "TranslateY":
            return affine(1, 0, 0, 0, 1, shift)
        case "Rotate":
            return image.rotate(sign * int(level * 30 / 10))
        case "Cutout":
            half = int(level * 20 / 10) // 2
            row, column = int(centre[0] * height), int(centre[1] * width)
            image = image.copy()
            for y in range(max(0, row - half), min(height, row + half)):
                for x in range(max(0, column - half), min(width, column + half)):
                    image.putpixel((x, y), (125, 122, 113, 0))
            return image
    raise AssertionError(name)


def oracle(images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    pixels, blanks = [], []
    for number, one in enumerate(images):
        image = Image.fromarray(one.permute(1, 2, 0).numpy()).convert("RGBA")
        for turn in range(draws.operation.shape[1]):
            if draws.applied[number, turn]:
                image = oracle_operation(
                    OPERATIONS[draws.operation[number, turn]],
                    image,
                    int(draws.level[number, turn]),
                    -1 if draws.negative[number, turn] else 1,
                    tuple(draws.centre[number, turn].tolist()),
                )
        array = torch.from_numpy(np.array(image))
        pixels.append(array[:, :, :3].permute(2, 0, 1))
        blanks.append(array[:, :, 3] == 0)
    return torch.stack(pixels), torch.stack(blanks)


def pictures(num: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth and noisy images, some flat or of one colour range only, where look-up tables degenerate."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 255
    images += (
        torch.randn(images.shape, generator=generator) * 20 * torch.rand(num, 1, 1, 1, generator=generator)
    )
    images = images.clamp(0, 255)
    images[::7] = images[::7, :, :1, :1]
    images[1::7] = 100 + images[1::7] / 9
    return images.round().to(torch.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_every_operation_is_pils_to_the_bit(name: str, size: tuple[int, int]) -> None:
    """All magnitudes, both directions; a second turn of the same operation meets transparent pixels."""
    levels = torch.arange(1, 10).repeat_interleave(4)
    num = len(levels)
    images = pictures(num, *size)
    draws = draw_policy(num, p=1.0, generator=torch.Generator().manual_seed(3))
    draws = draws._replace(
        operation=torch.full((num, 2), OPERATIONS.index(name)),
        level=levels[:, None].expand(-1, 2),
        negative=(torch.arange(num) % 2 == 1)[:, None].expand(-1, 2),
    )
    before = images.clone()
    ours, blank = apply_policy(images, draws)
    expected, empty = oracle(images, draws)
    assert torch.equal(ours, expected)
    assert torch.equal(blank, empty)
    assert torch.equal(images, before)
    once, _ = apply_policy(images, Draws(*(values[:, :1] for values in draws)))
    assert not torch.equal(once, images)


def test_mixed_policies_are_the_images_one_by_one() -> None:
    """The recipe's draws: grouping changes nothing, and pixels from outside turn black under what drops
    transparency.
    """
    images = pictures(600, 32, 32, seed=1)
    draws = draw_policy(600, generator=torch.Generator().manual_seed(4))
    ours, blank = apply_policy(images, draws)
    expected, empty = oracle(images, draws)
    assert torch.equal(ours, expected)
    assert torch.equal(blank, empty)
    assert 0.01 < float(blank.float().mean()) < 0.2
    one = apply_policy(images[17:18], draws.rows(slice(17, 18)))
    assert torch.equal(one[0][0], ours[17])


def test_draws_are_the_recipes() -> None:
    draws = draw_policy(60_000, generator=torch.Generator().manual_seed(0))
    counts = draws.operation.flatten().bincount(minlength=15) / 120_000
    assert len(counts) == len(OPERATIONS) == 15
    torch.testing.assert_close(counts, torch.full((15,), 1 / 15), atol=0.004, rtol=0)
    assert draws.level.unique().tolist() == list(range(1, 10))
    assert abs(float(draws.applied.float().mean()) - 0.5) < 0.01
    assert abs(float(draws.negative.float().mean()) - 0.5) < 0.01
    both = (draws.operation[:, 0] == draws.operation[:, 1]).float().mean()
    assert abs(float(both) - 1 / 15) < 0.005  # with replacement


def test_same_generator_same_draws_and_nothing_applied_is_nothing_done() -> None:
    first, second = (draw_policy(9, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    images = pictures(9, 32, 32)
    ours, blank = apply_policy(images, draw_policy(9, p=0.0))
    assert torch.equal(ours, images)
    assert not blank.any()
    assert len(apply_policy(images[:0], draw_policy(0))[0]) == 0


@pytest.mark.parametrize(("options", "message"), [({"levels": (3, 11)}, "levels"), ({"p": 1.5}, "p must be")])
def test_wrong_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_policy(2, **options)


def test_wrong_images() -> None:
    with pytest.raises(ValueError, match="uint8"):
        apply_policy(torch.rand(2, 3, 8, 8), draw_policy(2))
    with pytest.raises(ValueError, match="draws for 3 images and 2"):
        apply_policy(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), draw_policy(3))
