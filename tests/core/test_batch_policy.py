"""RandAugment and AutoAugment of whole batches: torchvision's results, torchvision's distribution."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from keepaug import auto_augment, rand_augment
from keepaug.data.images import MemoryImages
from keepaug.policies import BatchPolicy, Repeated, _uniform

POLICIES = {
    "rand_augment": rand_augment(2, 9),
    "strongest": rand_augment(3, 30, operations="auto_augment"),
    "filled": rand_augment(2, 20, fill=[125.0, 122.0, 113.0]),
    "cifar10": auto_augment("cifar10"),
    "imagenet": auto_augment("imagenet"),
    "svhn": auto_augment("svhn"),
    "google": rand_augment(3, 9, magnitude_max=10, ranges="google", fill=[128.0] * 3),
    "google_table_4": rand_augment(2, 24, operations="auto_augment", ranges="google", fill=128.0),
    "google_cifar10": auto_augment("cifar10", ranges="google", fill=[125.0, 123.0, 114.0]),
}


def pictures(num: int, height: int = 32, width: int = 32) -> Tensor:
    """Smooth ones and noise, so that no operation leaves them as they are."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=generator)
    ramp = torch.linspace(20, 200, height * width).view(1, 1, height, width).to(torch.uint8)
    return torch.cat([noise[: num // 2], (ramp // 2 + noise[num // 2 :] // 4)])


def seeds(num: int) -> Tensor:
    return torch.randint(2**42, (num,), generator=torch.Generator().manual_seed(1))


def record(policy: v2.Transform, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Make torchvision's own transform note what it would apply, and apply nothing."""
    seen: list[tuple[str, float]] = []

    def note(image: Tensor, name: str, magnitude: float, **options: Any) -> Tensor:
        seen.append((name, round(magnitude, 5)))
        return image

    monkeypatch.setattr(policy, "_apply_image_or_video_transform", note)
    return seen


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("size", [(32, 32), (20, 28)])
def test_equals_torchvision_image_by_image(name: str, size: tuple[int, int]) -> None:
    policy = POLICIES[name]
    batched = BatchPolicy(policy)
    images = pictures(300, *size)
    before = images.clone()
    strong = batched(images, seeds(300))
    chosen, operations = batched.draw(seeds(300), size)
    assert torch.equal(images, before)
    changed = 0
    for image, result, turns in zip(images, strong, chosen.tolist(), strict=True):
        wanted = image
        for place in turns:
            if place >= 0:
                operation, magnitude = operations[place]
                wanted = policy._apply_image_or_video_transform(
                    wanted, operation, magnitude, interpolation=policy.interpolation, fill=policy._fill
                )
        assert torch.equal(result, wanted)
        changed += not torch.equal(result, image)
    assert changed > 200


def equal_distributions(one: Counter[Any], other: Counter[Any]) -> bool:
    """Two samples of one size by the chi-square test, at four standard deviations; rare events are put
    together.
    """
    pairs = [(one[key], other[key]) for key in one | other]
    common = [pair for pair in pairs if sum(pair) >= 20]
    rare = [sum(counts) for counts in zip((0, 0), *(pair for pair in pairs if sum(pair) < 20), strict=True)]
    common += [(rare[0], rare[1])] if sum(rare) else []
    statistic, degrees = sum((a - b) ** 2 / (a + b) for a, b in common), len(common) - 1
    return statistic < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("name", POLICIES)
def test_draws_have_the_distribution_of_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole sequences of operations and signed magnitudes."""
    policy, num = pickle.loads(pickle.dumps(POLICIES[name])), 20_000
    chosen, operations = BatchPolicy(policy).draw(seeds(num), (20, 28))
    rounded = [(operation, round(magnitude, 5)) for operation, magnitude in operations]
    ours = Counter(tuple(rounded[place] for place in turns if place >= 0) for turns in chosen.tolist())
    seen = record(policy, monkeypatch)
    torch.manual_seed(0)
    theirs: Counter[tuple[tuple[str, float], ...]] = Counter()
    image = torch.zeros(3, 20, 28, dtype=torch.uint8)
    for _ in range(num):
        seen.clear()
        policy(image)
        theirs[tuple(seen)] += 1
    assert equal_distributions(ours, theirs)
    singles = [
        sum((Counter(dict.fromkeys(set(turns), count)) for turns, count in counts.items()), Counter())
        for counts in (ours, theirs)
    ]
    assert set(singles[0]) == set(singles[1])
    assert equal_distributions(*singles)
    shifted = Counter({turns[1:]: count for turns, count in ours.items()})
    assert not equal_distributions(shifted, theirs)


def test_turns_and_seeds_are_independent() -> None:
    chosen, operations = BatchPolicy(rand_augment(2, 9)).draw(torch.arange(40_000), (32, 32))
    joint = torch.zeros(len(operations), len(operations), dtype=torch.float64)
    joint.index_put_((chosen[:, 0], chosen[:, 1]), torch.ones(40_000, dtype=torch.float64), accumulate=True)
    expected = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True) / 40_000
    statistic, degrees = float(((joint - expected) ** 2 / expected).sum()), (len(operations) - 1) ** 2
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5
    assert float((chosen[1:, 0] == chosen[:-1, 0]).double().mean()) < 0.08  # neighbouring seeds


def test_random_numbers_are_those_of_splitmix64() -> None:
    """The first numbers for the seed 1234567, as published with the generator (Rosetta Code)."""
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = _uniform(torch.tensor([1234567]), 4)[0]
    assert found.tolist() == [(value >> 11) * 2.0**-53 for value in wanted]


def test_an_image_does_not_depend_on_its_batch() -> None:
    images, chosen = pictures(40), seeds(40)
    batched = BatchPolicy(rand_augment(2, 15))
    whole = batched(images, chosen)
    assert torch.equal(batched(images[7:9], chosen[7:9]), whole[7:9])
    assert torch.equal(pickle.loads(pickle.dumps(batched))(images, chosen), whole)
    assert batched(images[:0], chosen[:0]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("first", [True, False])
def test_images_in_memory_are_augmented_by_their_seeds(first: bool) -> None:
    """The strong view is the policy's of the clean one, crop and flip alike in both."""
    images = pictures(30)
    data = MemoryImages(
        images,
        torch.zeros(30).long(),
        ["x"],
        padding=4,
        flip=True,
        policy=BatchPolicy(rand_augment(2, 20)),
        policy_first=first,
    )
    chosen = torch.randint(2**62, (30,), generator=torch.Generator().manual_seed(3))
    batch = data.load(torch.arange(30), chosen)
    given = images if first else batch.images
    wanted = data.policy(given, chosen >> 20)
    wanted = data._geometry(wanted, chosen) if first else wanted
    assert torch.equal(batch.strong, wanted)
    assert not torch.equal(batch.strong, batch.images)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TypeError, match="rand_augment or auto_augment returns, got Repeated"):
        BatchPolicy(Repeated(rand_augment(), 2))
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, H, W\).*torch.float32 \(2, 3, 8, 8\)"):
        BatchPolicy(rand_augment())(torch.zeros(2, 3, 8, 8), seeds(2))
    with pytest.raises(ValueError, match=r"\(3,\) seeds"):
        BatchPolicy(rand_augment())(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), seeds(3))
