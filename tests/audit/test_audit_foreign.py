"""Transforms of other libraries: the same draw for image and codes, what each hides, and states left as
found."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from keepaug.audit.augmentations import Batch, foreign_augmentation
from keepaug.audit.foreign import Foreign, load_object
from keepaug.audit.measures import visible_pixels
from keepaug.audit.probes import probe_images


def _batch(num: int = 3, side: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, 3, side, side), generator=generator, dtype=torch.uint8)
    heat = torch.rand(num, side, side, generator=generator)
    return Batch(pixels, torch.zeros(num).long(), heat, (0.5,) * 3, (0.25,) * 3, {})


def _draw(transform, *, keep: bool = False, side: int = 32, seed: int = 0):
    batch = _batch(side=side)
    augmentation = foreign_augmentation(transform, "theirs", side)
    generator = torch.Generator().manual_seed(seed)
    outcome = augmentation.draw(batch, keep=keep, tau=0.6, generator=generator)
    return batch, outcome, visible_pixels(outcome.source, close=outcome.close)


def _checked(transform, hidden: float | None, *, moved: bool = False, tolerance: float = 0.01) -> None:
    """Hidden share as expected, and every pixel that is told to show another shows its colour, unless colours
    change."""
    batch, outcome, visible = _draw(transform)
    assert bool(outcome.told.all())
    if hidden is not None:
        assert float(1 - visible.mean()) == pytest.approx(hidden, abs=tolerance)
    if moved:
        shown = (outcome.inputs * 0.25 + 0.5).flatten(2)
        source = outcome.source.flatten(1)
        original = (batch.pixels / 255).flatten(2).gather(2, source.clamp(min=0)[:, None].expand(-1, 3, -1))
        difference = (shown - original).abs().amax(dim=1)[source >= 0]
        assert float((difference < 0.02).double().mean()) > 0.99


def test_torchvision_v2() -> None:
    _checked(v2.RandomHorizontalFlip(1.0), 0.0, moved=True)
    _checked(v2.RandomErasing(1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)), 0.25, moved=True)
    _checked(
        v2.Compose([v2.Pad(8), v2.CenterCrop(32), v2.RandomAffine(0, translate=(0.25, 0.25))]),
        None,
        moved=True,
    )
    _checked(v2.ColorJitter(0.5, 0.5, 0.5, 0.2), 0.0)
    _checked(v2.Compose([v2.RandomResizedCrop(32, scale=(0.5, 0.5), ratio=(1.0, 1.0))]), 0.5, tolerance=0.06)


def test_torchvision_v1_with_to_tensor() -> None:
    pipeline = v1.Compose(
        [v1.RandomRotation((90, 90)), v1.ToTensor(), v1.RandomErasing(1.0, scale=(0.1, 0.1), ratio=(1, 1))]
    )
    _checked(pipeline, 0.1, moved=True, tolerance=0.02)


def test_albumentations() -> None:
    import albumentations

    hole = albumentations.CoarseDropout(
        num_holes_range=(1, 1), hole_height_range=(16, 16), hole_width_range=(16, 16), fill=7, p=1.0
    )
    _checked(albumentations.Compose([albumentations.HorizontalFlip(p=1.0), hole]), 0.25, moved=True)
    _checked(albumentations.RandomBrightnessContrast(p=1.0), 0.0)
    _checked(albumentations.Compose([albumentations.RGBShift(p=1.0), albumentations.GaussNoise(p=1.0)]), 0.0)


def test_kornia() -> None:
    import kornia.augmentation as kornia

    _checked(
        kornia.RandomErasing(scale=(0.25, 0.25), ratio=(1.0, 1.0), p=1.0), 0.25, moved=True, tolerance=0.03
    )
    _checked(
        kornia.AugmentationSequential(
            kornia.RandomHorizontalFlip(p=1.0), kornia.ColorJiggle(0.2, 0.2, p=1.0)
        ),
        0.0,
    )


def test_timm() -> None:
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.random_erasing import RandomErasing

    _checked(rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (128, 128, 128)}), None)
    erase = RandomErasing(1.0, min_area=0.25, max_area=0.25, min_aspect=1.0, mode="const", device="cpu")
    _checked(v1.Compose([v1.ToTensor(), erase]), 0.25, moved=True, tolerance=0.03)


def test_any_callable() -> None:
    def half(image):  # of a PIL image, drawing from python's generator
        array = np.array(image)
        top = random.randrange(0, 16)
        array[top : top + 16] = np.random.randint(0, 255, array[:16].shape)
        return array

    _checked(half, 0.5, moved=True)

    def needs_tensor(image):
        return image.flip(-1)

    _checked(needs_tensor, 0.0, moved=True)


def test_keep_shows_the_region_again() -> None:
    def nothing(image):
        return np.zeros_like(np.array(image))

    _, plain, visible = _draw(nothing)
    assert not bool(plain.told.any())  # nothing of the codes is left: it cannot be told from their answers

    def left_half(image):
        array = np.array(image)
        array[:, :16] = 0
        return array

    batch, plain, visible = _draw(left_half)
    _, keep, kept = _draw(left_half, keep=True)
    assert float(visible.mean()) == pytest.approx(0.5, abs=0.01)
    assert bool((kept >= visible).all())
    assert 0.5 < float(kept.mean()) <= 0.75
    same = (keep.inputs == batch.inputs).all(dim=1)
    assert bool((same | (keep.inputs == plain.inputs).all(dim=1)).all())


def test_a_draw_that_cannot_be_repeated_is_said() -> None:
    own = np.random.default_rng(0)

    def secret(image):
        return np.array(image) + own.integers(0, 50, dtype=np.uint8)

    _, outcome, _ = _draw(secret)
    assert not bool(outcome.told.any())


def test_global_random_states_stay() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    _draw(v2.RandomErasing(1.0))
    _draw(lambda image: np.array(image) + np.uint8(random.randrange(3)) + np.uint8(np.random.randint(3)))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_batches_only_where_they_are_the_same() -> None:
    """RandAugment gives a batch one draw; AugMix draws weights for each image of it, so it is called image by
    image."""
    images = torch.cat([_batch().pixels, probe_images(32, 32)[:3]])
    for transform in (
        v2.RandAugment(),
        v2.AugMix(),
        v2.Compose([v2.RandomCrop(32, 4), v2.RandomErasing(1.0)]),
    ):
        theirs = Foreign(transform, "theirs")
        together = theirs(images, 5)
        alone = torch.stack([theirs(image[None], 5)[0] for image in images])
        assert torch.equal(together, alone)
    assert not Foreign(v2.AugMix(), "x")._can_be_batched(images, 0, torch.manual_seed)


def test_names(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipelines_of_mine.py").write_text(
        "class Nested:\n    flip = staticmethod(lambda image: image)\nbroken = 3\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert callable(load_object("pipelines_of_mine:Nested.flip"))
    assert callable(load_object("pipelines_of_mine.py:Nested.flip"))
    for name, said in (("pipelines_of_mine:none", "no attribute"), ("no_such_thing:x", "No module")):
        with pytest.raises(ValueError, match=said):
            load_object(name)
    with pytest.raises(ValueError, match="of type int"):
        foreign_augmentation(load_object("pipelines_of_mine:broken"), "x", 32)
    with pytest.raises(ValueError, match="is a class"):
        foreign_augmentation(v2.RandomErasing, "x", 32)
