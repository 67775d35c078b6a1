"""KeepRandAugment and KeepAutoAugment on batches, and the augmentations as modules."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

from keepaug import (
    BatchPolicy,
    Cutout,
    KeepAugment,
    KeepAutoAugment,
    KeepCutMix,
    KeepCutout,
    KeepPaste,
    KeepRandAugment,
    KeepRandomErasing,
    auto_augment,
    mixed_cross_entropy,
    rand_augment,
    region_mask,
    region_scores,
    saliency_map,
)

POLICIES = {
    "rand": (KeepRandAugment(2, 15, size=5, magnitude_max=30), rand_augment(2, 15)),
    "rand, Google's": (
        KeepRandAugment(3, 5, size=(4, 7), magnitude_max=10, ranges="google"),
        rand_augment(3, 5, magnitude_max=10, ranges="google"),
    ),
    "auto": (KeepAutoAugment("svhn", size=5, fill=128.0), auto_augment("svhn", fill=128.0)),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(seed: int, num: int = 12) -> tuple[Tensor, Tensor]:
    images = torch.randint(256, (num, 3, 20, 24), dtype=torch.uint8, generator=seeded(seed))
    return images, torch.rand(num, 20, 24, generator=seeded(seed))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_the_policy_outside_and_the_image_inside_of_an_important_region(name: str, seed: int) -> None:
    keep, policy = POLICIES[name]
    images, heat = pixels(seed)
    before = images.clone()
    found = keep(images, heat, generator=seeded(seed))
    assert torch.equal(found, keep(images, heat, generator=seeded(seed)))
    assert not torch.equal(found, keep(images, heat, generator=seeded(seed + 1)))
    # By the parts: the same generator draws the policy's seeds first and the regions next.
    generator = seeded(seed)
    strong = BatchPolicy(policy)(images, generator=generator)
    regions = keep.paste.sample(images, heat, generator=generator)
    inside = region_mask(regions, (20, 24))[:, None]
    assert torch.equal(found, torch.where(inside, images, strong))
    assert torch.equal(images, before)
    assert bool((strong != images).flatten(1).any(dim=1).sum() > 4)
    scores = region_scores(heat, keep.paste.size)[0]
    rank = (scores.flatten(1) < scores[torch.arange(12), regions.top, regions.left][:, None]).sum(dim=1)
    assert bool((rank >= int(0.6 * scores[0].numel())).all())


def test_seeds_come_from_the_global_generator_without_one() -> None:
    images, heat = pixels(1)
    keep, drawn = KeepRandAugment(2, 9, size=5), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(keep(images, heat))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    policy = BatchPolicy(rand_augment(2, 9))
    assert torch.equal(policy(images, torch.arange(12)), policy(images, torch.arange(12)))


def test_pixels_are_asked_for() -> None:
    images, heat = pixels(1)
    with pytest.raises(ValueError, match=r"uint8 .*before the normalization; got torch\.float32"):
        KeepRandAugment()(images / 255, heat)
    with pytest.raises(ValueError, match="needs the saliency"):
        KeepRandAugment(size=5)(images)
    with pytest.raises(ValueError, match="magnitude must be"):
        KeepRandAugment(2, 40)
    with pytest.raises(ValueError, match="at least 1 x 1"):
        KeepAutoAugment(size=0)


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip


MODULES: list[Any] = [
    KeepCutout(5),
    KeepCutout(5, p=0.5),
    KeepRandomErasing(),
    KeepCutMix(),
    KeepRandAugment(2, 15, size=5),
    KeepAutoAugment(size=5),
]


@pytest.mark.parametrize("augment", MODULES, ids=repr)
def test_a_module_is_its_two_lines(augment: Any) -> None:
    network, labels = Small(), torch.arange(12) % 4
    images = pixels(2)[0]
    ready = images / 255 - 0.5
    policy = isinstance(augment, KeepRandAugment | KeepAutoAugment)
    if policy:
        module = KeepAugment(augment, network, scale=1.0, normalize=lambda x: x / 255 - 0.5)
        given = images
        by_hand = augment(images, saliency_map(network, ready, labels), generator=seeded(7)) / 255 - 0.5
    else:
        module, given = KeepAugment(augment, network, scale=1.0), ready
        target = (ready, labels) if isinstance(augment, KeepCutMix) else (ready,)
        by_hand = augment(*target, saliency_map(network, ready, labels), generator=seeded(7))
    found = module(given, labels, generator=seeded(7))
    for one, other in zip(
        *((x,) if isinstance(x, Tensor) else (x[0], *x[1]) for x in (found, by_hand)), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
    assert network.training
    module.eval()
    assert network.training  # the module's mode is its own
    if isinstance(augment, KeepCutMix):
        same, mixed = module(given, labels)
        logits = network(ready)
        torch.testing.assert_close(mixed_cross_entropy(logits, mixed), F.cross_entropy(logits, labels))
    else:
        same = module(given, labels)
    assert torch.equal(same, ready)


def test_a_module_computes_maps_of_the_augmented_images_alone() -> None:
    network, seen = Small(), []
    network[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images, augment = torch.randn(12, 3, 20, 24), KeepCutout(5, p=0.5)
    KeepAugment(augment, network)(images, torch.arange(12) % 4, generator=seeded(3))
    assert seen == [int(augment.draw(images, generator=seeded(3)).applied.sum())]
    assert 0 < seen[0] < 12


def test_modules_compose() -> None:
    """Without labels the map is that of the largest logit."""
    torch.manual_seed(0)
    network = resnet18(num_classes=4)
    whole = nn.Sequential(KeepAugment(KeepCutout(8), network), network)
    assert len(list(whole.parameters())) == len(list(network.parameters()))
    images = torch.randn(4, 3, 32, 32)
    whole(images).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    copied = pickle.loads(pickle.dumps(whole))
    assert copied[0].network is copied[1]  # a copy augments by its own network
    torch.testing.assert_close(whole.eval()(images), network(images))
    assert "KeepCutout(size=8" in repr(whole)


@pytest.mark.parametrize(
    "other", [Cutout(5), KeepPaste(5), rand_augment(2, 9)], ids=lambda o: type(o).__name__
)
def test_what_takes_no_map_is_no_module(other: Any) -> None:
    with pytest.raises(TypeError, match="takes no map of one batch"):
        KeepAugment(other, Small())
    with pytest.raises(ValueError, match="with images and labels"):
        KeepAugment(KeepCutMix(), Small())(torch.zeros(2, 3, 8, 8))
