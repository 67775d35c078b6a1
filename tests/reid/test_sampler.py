"""P x K batches: every image in the long run, the same in any number of processes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keepaug.data.images import MemoryImages
from reid.data.sampler import IdentityLoader, IdentitySampler
from reid.torchreid_api import torchreid_module


def labels_of(counts: list[int], seed: int = 0) -> torch.Tensor:
    labels = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 25), min_size=4, max_size=15),
    identities=st.integers(2, 4),
    images=st.integers(2, 5),
    seed=st.integers(0, 3),
)
def test_batches_are_p_identities_by_k_images_and_cover_everything(
    counts: list[int], identities: int, images: int, seed: int
) -> None:
    labels = labels_of(counts)
    sampler = IdentitySampler(labels, identities, images, seed=seed)
    seen: set[int] = set()
    for epoch in range(sampler.epochs_to_cover):
        batches = sampler.batches(epoch)
        assert len(batches) == len(sampler)
        used = torch.cat(batches)
        assert sampler.share(epoch) == pytest.approx(len(set(used.tolist())) / len(labels))
        seen |= set(used.tolist())
        for batch in batches:
            rows = labels[batch].view(identities, images)
            assert (rows == rows[:, :1]).all()  # an identity's images one after another
            assert len(rows[:, 0].unique()) == identities
    assert seen == set(range(len(labels)))


def test_images_of_an_identity_repeat_in_a_group_only_where_there_are_too_few() -> None:
    labels = labels_of([7, 9, 3, 4, 6, 8])
    sampler = IdentitySampler(labels, 3, 4)
    for epoch in range(6):
        for batch in sampler.batches(epoch):
            for group in batch.view(3, 4):
                assert len(group.unique()) == min(4, int((labels == labels[group[0]]).sum()))


def test_passes_are_even() -> None:
    """After many epochs no image of an identity has been used much more often than another."""
    labels = labels_of([7] * 8)  # 8 identities: no filling up
    sampler = IdentitySampler(labels, 4, 4)
    uses = Counter(torch.cat([torch.cat(sampler.batches(epoch)) for epoch in range(14)]).tolist())
    assert set(uses.values()) == {8}  # 14 epochs x 4 of 7 images


def test_torchreids_sampler_drops_images_and_miscounts_and_ours_does_not() -> None:
    counts = [2] * 30 + [5] * 20 + [7] * 10 + [24]
    labels = labels_of(counts)
    theirs = torchreid_module("data.sampler").RandomIdentitySampler(
        [("", int(label), 0, 0) for label in labels], batch_size=64, num_instances=4
    )
    drawn = list(theirs)
    assert len(drawn) != len(theirs)
    share = len(set(drawn)) / len(labels)
    ours = IdentitySampler(labels, 16, 4)
    assert sum(len(batch) for batch in ours.batches(0)) == len(ours) * 64
    assert ours.share(0) > share + 0.05
    assert share < 0.85


def test_seed_and_epoch_decide_the_batches() -> None:
    labels = labels_of([6] * 10)
    one = IdentitySampler(labels, 5, 2, seed=3)
    torch.manual_seed(99)
    again = IdentitySampler(labels, 5, 2, seed=3)
    for first, second in zip(one.batches(4), again.batches(4), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(torch.cat(one.batches(4)), torch.cat(one.batches(5)))
    assert not torch.equal(
        torch.cat(one.batches(4)), torch.cat(IdentitySampler(labels, 5, 2, seed=4).batches(4))
    )


def test_a_dominating_identity_is_spread_over_epochs() -> None:
    sampler = IdentitySampler(labels_of([100, 4, 4, 4]), 4, 4)
    assert len(sampler) == 2  # it fits into a batch once
    assert sampler.epochs_to_cover == 13


def test_too_few_identities() -> None:
    with pytest.raises(
        ValueError, match="a batch needs 16 identities, and there are 3 with 12 images: set identities=3"
    ):
        IdentitySampler(labels_of([4, 4, 4]), 16, 4)


def loader(world_size: int = 1, rank: int = 0, max_steps: int = 0) -> IdentityLoader:
    labels = labels_of([5] * 8)
    pixels = torch.arange(len(labels) * 3 * 8 * 8).remainder(251).to(torch.uint8).view(-1, 3, 8, 8)
    images = MemoryImages(pixels, labels, [str(number) for number in range(8)], padding=2, flip=True)
    return IdentityLoader(
        images, IdentitySampler(labels, 4, 2), rank=rank, world_size=world_size, max_steps=max_steps
    )


def test_processes_share_a_batch_by_whole_identities() -> None:
    whole = list(loader())
    parts = [list(loader(2, rank)) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)
        assert torch.equal(torch.cat([first.labels, second.labels]), batch.labels)
        assert not set(first.labels.tolist()) & set(second.labels.tolist())
    with pytest.raises(ValueError, match="4 identities per batch cannot be divided over 3 processes"):
        loader(3)


def test_loader_goes_on_where_it_stopped() -> None:
    straight = loader()
    batches = [batch.images for _ in range(2) for batch in straight]
    stopped = loader()
    taken = []
    for batch in stopped:
        taken.append(batch.images)
        if len(taken) == 3:
            break
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    taken += [batch.images for batch in resumed]
    taken += [batch.images for batch in resumed]
    assert len(taken) == len(batches)
    assert all(torch.equal(first, second) for first, second in zip(taken, batches, strict=True))


def test_max_steps_ends_an_epoch_early() -> None:
    limited = loader(max_steps=len(loader()) + 1)
    assert [len(list(limited)), len(list(limited))] == [len(loader()), 1]
