"""Cut, paste and the augmentations: exact pixels, effects, labels, shapes, errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
import oracles

from keepaug import (
    CutMix,
    Cutout,
    KeepCutMix,
    KeepCutout,
    KeepPaste,
    KeepRandomErasing,
    MixedLabels,
    RandomErasing,
    Regions,
    TwoViews,
    auto_augment,
    cut,
    mixed_cross_entropy,
    paste,
    rand_augment,
    random_regions,
    region_mask,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 12, 10, generator=seeded(1))


@pytest.fixture
def heat() -> torch.Tensor:
    return torch.rand(6, 12, 10, generator=seeded(2))


CUTTING = [Cutout(5), KeepCutout(5), RandomErasing(p=1.0), KeepRandomErasing(p=1.0)]


def test_cut_and_paste_are_the_equations(images: torch.Tensor) -> None:
    regions = random_regions(6, (12, 10), (4, 3), generator=seeded())
    other = torch.randn_like(images)
    boxes = list(zip(*(part.tolist() for part in regions), strict=True))
    for index, box in enumerate(boxes):
        assert torch.equal(cut(images, regions, 2.5)[index], oracles.cut(images[index], box, 2.5))
        assert torch.equal(
            paste(other, images, regions)[index], oracles.paste(other[index], images[index], box)
        )
    per_channel = cut(images, regions, (1.0, 2.0, 3.0))
    mask = region_mask(regions, (12, 10))
    for channel in range(3):
        assert (per_channel[:, channel][mask] == channel + 1).all()


@pytest.mark.parametrize("augment", CUTTING, ids=lambda a: type(a).__name__)
def test_only_the_region_changes(augment, images: torch.Tensor, heat: torch.Tensor) -> None:
    version = images._version
    regions = augment.sample(images, heat, generator=seeded())
    out = augment(images, heat, regions=regions, generator=seeded(5))
    mask = region_mask(regions, (12, 10))[:, None].expand_as(images)
    assert torch.equal(out[~mask], images[~mask])
    assert (out[mask] != images[mask]).all()
    assert images._version == version
    assert torch.equal(augment(images, heat, generator=seeded(7)), augment(images, heat, generator=seeded(7)))


@pytest.mark.parametrize("augment", CUTTING, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_formats(augment, images: torch.Tensor, heat: torch.Tensor, dtype: torch.dtype) -> None:
    given = images.to(dtype).to(memory_format=torch.channels_last)
    out = augment(given, heat, generator=seeded())
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert augment(images[:0], heat[:0]).shape == (0, 3, 12, 10)


@pytest.mark.parametrize(
    "keep", [KeepCutout(4), KeepRandomErasing(p=1.0), KeepCutMix()], ids=lambda a: type(a).__name__
)
def test_keep_never_cuts_above_the_quantile(keep, images: torch.Tensor, heat: torch.Tensor) -> None:
    """Checked with the slow oracle; the plain parent does it in about 40 % of the cases."""
    plain = {
        KeepCutout: Cutout(4, placement="inside"),
        KeepRandomErasing: RandomErasing(p=1.0),
        KeepCutMix: CutMix(placement="inside"),
    }
    forbidden = {"keep": 0, "plain": 0}
    total = 0
    for seed in range(20):
        for name, augment in (("keep", keep), ("plain", plain[type(keep)])):
            regions = augment.sample(images, heat, generator=seeded(seed))
            for index, box in enumerate(zip(*(part.tolist() for part in regions), strict=True)):
                if box[2] == 0 or box[3] == 0:
                    continue
                every = oracles.candidates((12, 10), box[2:], "inside")
                good = {every[i] for i in oracles.allowed(heat[index], box[2:], 0.6, "low", "inside")}
                forbidden[name] += box not in good
                total += name == "plain"
    assert forbidden["keep"] == 0
    assert 0.25 < forbidden["plain"] / total < 0.55


def test_keep_and_plain_cut_the_same_sizes(images: torch.Tensor, heat: torch.Tensor) -> None:
    pairs = [
        (RandomErasing(p=0.7), KeepRandomErasing(p=0.7)),
        (CutMix(alpha=0.5, p=0.7, placement="inside"), KeepCutMix(alpha=0.5, p=0.7)),
        (Cutout(7, p=0.7), KeepCutout(7, p=0.7, placement="matched")),
        (CutMix(alpha=0.5, p=0.7), KeepCutMix(alpha=0.5, p=0.7, placement="matched")),
        (CutMix(alpha=4, per="batch"), KeepCutMix(alpha=4, per="batch", placement="matched")),
    ]
    for plain, keep in pairs:
        first = plain.sample(images, heat, generator=seeded(3))
        second = keep.sample(images, heat, generator=seeded(3))
        assert torch.equal(first.height, second.height)
        assert torch.equal(first.width, second.width)


def test_probability(images: torch.Tensor, heat: torch.Tensor) -> None:
    many, maps = images.repeat(200, 1, 1, 1), heat.repeat(200, 1, 1)
    for augment in (Cutout(4, p=0.3), KeepCutout(4, p=0.3), KeepRandomErasing(p=0.3)):
        changed = (augment(many, maps, generator=seeded()) != many).flatten(1).any(dim=1).double().mean()
        assert float(changed) == pytest.approx(0.3, abs=0.05)


def test_random_erasing_sizes_follow_the_recipe() -> None:
    sizes, applied = RandomErasing(p=1.0).sample_sizes(20_000, (256, 128), generator=seeded())
    assert applied.all()
    share = sizes.prod(dim=1) / (256 * 128)
    assert float(share.min()) > 0.018
    assert float(share.max()) < 0.41
    ratio = sizes[:, 0] / sizes[:, 1]
    assert float(ratio.min()) > 0.27
    assert float(ratio.max()) < 3.7


def test_fills(images: torch.Tensor) -> None:
    regions = random_regions(6, (12, 10), 4, generator=seeded())
    mask = region_mask(regions, (12, 10))
    assert (RandomErasing(fill="zero")(images, regions=regions)[:, 0][mask] == 0).all()
    torch.testing.assert_close(
        RandomErasing(fill="bot")(images, regions=regions)[:, 1][mask].unique(), torch.tensor([0.456])
    )
    noise = RandomErasing(fill="random")(images, regions=regions, generator=seeded())[:, 0][mask]
    assert len(noise.unique()) == len(noise)


def test_cutmix_labels_follow_the_pixels(images: torch.Tensor, heat: torch.Tensor) -> None:
    labels = torch.arange(6)
    constant = (
        labels.float()[:, None, None, None].expand(6, 3, 12, 10).contiguous()
    )  # the pixel tells its image
    for mix in (CutMix(), KeepCutMix(), KeepCutMix(per="batch"), CutMix(alpha=0.4)):
        mixed, target = mix(constant, labels, heat, generator=seeded())
        for index in range(6):
            own = (mixed[index, 0] == index).double().mean()
            foreign = mixed[index, 0][mixed[index, 0] != index]
            assert (foreign == target.labels_b[index]).all()
            if target.labels_b[index] != index:
                assert float(target.lam[index]) == pytest.approx(float(own), abs=1e-6)
        assert torch.equal(target.labels_a, labels)


def test_cutmix_one_box_per_batch_or_per_image(images: torch.Tensor, heat: torch.Tensor) -> None:
    one = KeepCutMix(per="batch").sample(images, heat, generator=seeded(4))
    assert len(set(zip(*(part.tolist() for part in one), strict=True))) == 1
    many = KeepCutMix().sample(images, heat, generator=seeded(4))
    assert len(set(zip(*(part.tolist() for part in many), strict=True))) > 3


def test_mixed_cross_entropy_is_that_of_mixed_targets() -> None:
    logits = torch.randn(5, 4, generator=seeded())
    target = MixedLabels(
        torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 1, 0, 2, 1]), torch.rand(5, generator=seeded())
    )
    soft = target.lam[:, None] * F.one_hot(target.labels_a, 4) + (1 - target.lam)[:, None] * F.one_hot(
        target.labels_b, 4
    )
    torch.testing.assert_close(mixed_cross_entropy(logits, target), F.cross_entropy(logits, soft))


def test_paste_keeps_an_important_region_clean(images: torch.Tensor, heat: torch.Tensor) -> None:
    keep = KeepPaste(size=4)
    regions = keep.sample(images, heat, generator=seeded())
    out = keep(images, images + 1, heat, regions=regions)
    mask = region_mask(regions, (12, 10))[:, None].expand_as(images)
    assert torch.equal(out[mask], images[mask])
    assert torch.equal(out[~mask], (images + 1)[~mask])
    for index, box in enumerate(zip(*(part.tolist() for part in regions), strict=True)):
        every = oracles.candidates((12, 10), (4, 4), "inside")
        assert box in {every[i] for i in oracles.allowed(heat[index], (4, 4), 0.6, "high", "inside")}


def test_two_views_share_the_geometry() -> None:
    """With a policy that only changes colours, the views agree up to those."""
    from torchvision.transforms import v2

    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=seeded())
    views = TwoViews(
        v2.Compose([v2.RandomCrop(16, padding=4), v2.RandomHorizontalFlip()]), v2.RandomInvert(p=1.0)
    )
    state = torch.get_rng_state()
    clean, strong = views(image, generator=seeded(3))
    assert torch.equal(255 - clean, strong)
    again = views(image, generator=seeded(3))
    assert torch.equal(clean, again[0])
    assert not torch.equal(clean, views(image, generator=seeded(4))[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_policies_change_the_image_and_obey_the_generator() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=seeded())
    for policy in (rand_augment(2, 9), auto_augment("cifar10"), auto_augment("imagenet")):
        strong = [TwoViews(None, policy)(image, generator=seeded(s))[1] for s in range(6)]
        assert sum(not torch.equal(view, image) for view in strong) >= 3
        assert torch.equal(strong[0], TwoViews(None, policy)(image, generator=seeded(0))[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, h: KeepCutout(5)(x), "needs the saliency"),
        (lambda x, h: KeepCutout(5)(x, h[:, :5]), r"saliency must have the shape \(6, 12, 10\)"),
        (lambda x, h: KeepCutout(99)(x, h), r"99 x 99.*12 x 10"),
        (lambda x, h: KeepCutout(5, tau=2.0), r"tau.*\[0, 1\]"),
        (lambda x, h: Cutout(5, p=1.5), r"\[0, 1\]"),
        (lambda x, h: Cutout(5, placement="x"), "inside, clipped"),
        (lambda x, h: RandomErasing(area=(0.5, 0.1)), "area must be"),
        (lambda x, h: RandomErasing(fill="blue"), "fill must be one of"),
        (lambda x, h: CutMix(alpha=0.0), "alpha must be above 0"),
        (lambda x, h: CutMix()(x, torch.arange(5)), r"labels must have the shape \(6,\)"),
        (lambda x, h: cut(x, Regions(*torch.zeros(4, 2, dtype=torch.int64))), "2 regions for 6 images"),
        (lambda x, h: cut(x, random_regions(6, (12, 10), 3), (1.0, 2.0)), "2 numbers, but the images have 3"),
        (lambda x, h: paste(x.double(), x, random_regions(6, (12, 10), 3)), "must agree"),
        (lambda x, h: rand_augment(2, 40), r"\[0, 30\]"),
        (lambda x, h: auto_augment("mnist"), "cifar10, imagenet"),
    ],
)
def test_errors_say_what_to_do(call, message: str, images: torch.Tensor, heat: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        call(images, heat)


def test_the_two_lines_of_the_readme() -> None:
    from torchvision.models import resnet18

    from keepaug import saliency_map

    model, keep = resnet18(num_classes=4), KeepCutout(size=8)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    heat = saliency_map(model, images, labels, scale=0.5)
    loss = F.cross_entropy(model(keep(images, heat)), labels)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
