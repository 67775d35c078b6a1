"""Batches of P identities with K images each, which say what they use and leave nothing out for good."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from keepaug.data.images import Batch, Images
from keepaug.data.loader import Loader
from keepaug.runs.seeds import make_generator

_AHEAD = 2  # batches read in advance


class IdentitySampler:
    """P x K batches of an epoch as a function of seed and epoch.

    As in Bag of Tricks, an identity with n images gives n // K groups of K an epoch (one, filled up with
    repeats, if n <= K), and a batch has groups of P different identities. Unlike there, an identity goes on
    in the next epoch with the images that were left over (each pass over them has a new order), and no group
    is dropped: groups are dealt to the batches in turn, which keeps equal identities apart, and the few
    missing groups are filled in from other identities.

    Args:
        labels: (N,) int64 class of each image.
        identities: P.
        images: K.
        seed: decides everything.

    Raises:
        ValueError: fewer than P identities.
    """

    def __init__(self, labels: Tensor, identities: int, images: int, *, seed: int = 0) -> None:
        self.num_identities, self.num_images, self.seed = identities, images, seed
        self.total = len(labels)
        self.members = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
        if len(self.members) < identities:
            raise ValueError(
                f"a batch needs {identities} identities, and there are {len(self.members)} with "
                f"{len(labels)} images: set identities={max(2, len(self.members))} or less"
            )
        self._passes: dict[int, tuple[int, Tensor]] = {}  # the last one of each identity, to go on from
        wanted = [max(1, len(member) // images) for member in self.members]
        # An identity appears once in a batch, so no more often than there are batches.
        self.num_batches = -(-sum(wanted) // identities)
        while True:
            self.groups = [min(number, self.num_batches) for number in wanted]
            fewer = -(-sum(self.groups) // identities)
            if fewer >= self.num_batches:
                break
            self.num_batches = fewer

    def __len__(self) -> int:
        """Batches per epoch, exactly."""
        return self.num_batches

    @property
    def epochs_to_cover(self) -> int:
        """After how many epochs every image has been used."""
        return max(
            1 if len(member) <= self.num_images else -(-len(member) // (groups * self.num_images))
            for member, groups in zip(self.members, self.groups, strict=True)
        )

    def share(self, epoch: int = 0) -> float:
        """Share of the images that an epoch uses."""
        return len(torch.cat(self.batches(epoch)).unique()) / self.total

    def batches(self, epoch: int) -> list[Tensor]:
        """(P x K,) indices for each batch, the images of an identity one after another."""
        generator = make_generator(self.seed, "identities", epoch)
        order = torch.randperm(len(self.members), generator=generator).tolist()
        dealt: list[list[Tensor]] = [[] for _ in range(self.num_batches)]
        inside: list[set[int]] = [set() for _ in range(self.num_batches)]
        turn = 0
        for identity in order:
            for group in self._groups(identity, epoch):
                dealt[turn % self.num_batches].append(group)
                inside[turn % self.num_batches].add(identity)
                turn += 1
        for batch, present in zip(dealt, inside, strict=True):
            others = iter(torch.randperm(len(self.members), generator=generator).tolist())
            while len(batch) < self.num_identities:
                identity = next(others)
                if identity not in present:
                    member = self.members[identity]
                    mixed = member[torch.randperm(len(member), generator=generator)]
                    batch.append(_filled(mixed, self.num_images))
        shuffled = torch.randperm(self.num_batches, generator=generator).tolist()
        return [torch.cat(dealt[number]) for number in shuffled]

    def _groups(self, identity: int, epoch: int) -> list[Tensor]:
        member, size = self.members[identity], self.num_images
        if len(member) <= size:
            return [_filled(self._pass(identity, epoch), size)]
        taken = self.groups[identity] * size
        start = epoch * taken
        first, last = start // len(member), (start + taken - 1) // len(member)
        stream = torch.cat([self._pass(identity, number) for number in range(first, last + 1)])
        begin = start - first * len(member)
        return list(stream[begin : begin + taken].split(size))

    def _pass(self, identity: int, number: int) -> Tensor:
        """All images of an identity in the order of its `number`-th pass.

        An epoch that begins with the rest of a pass goes on with the next's images that were not in it.
        """
        member, taken = self.members[identity], self.groups[identity] * self.num_images
        last, order = self._passes.get(identity, (-1, member))
        if last > number:
            last, order = -1, member
        while last < number:
            last += 1
            generator = make_generator(self.seed, "images", identity, last)
            fresh = member[torch.randperm(len(member), generator=generator)]
            rest = (last * len(member)) % taken if len(member) > self.num_images else 0
            if rest:
                late = torch.isin(fresh, order[-rest:])
                fresh = torch.cat([fresh[~late], fresh[late]])
            order = fresh
        self._passes[identity] = (last, order)
        return order


def _filled(order: Tensor, size: int) -> Tensor:
    """The first `size`, starting again where there are fewer."""
    return order[torch.arange(size) % len(order)]


class IdentityLoader(Loader):
    """Batches of an `IdentitySampler`, one epoch after another; goes on exactly where it stopped.

    Every process draws the same batches; process r of W gets the r-th W-th of each: whole identities.

    Args:
        images: the dataset.
        sampler: the batches.
        seed: of mirror and crop.
        rank: of this process.
        world_size: number of processes.
        max_steps: over all epochs; 0: no limit.
        pin_memory: for faster copies to a GPU.
        epochs: for the bar.

    Raises:
        ValueError: P identities that cannot be divided over the processes.
    """

    def __init__(
        self,
        images: Images,
        sampler: IdentitySampler,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_steps: int = 0,
        pin_memory: bool = False,
        epochs: int = 0,
    ) -> None:
        if sampler.num_identities % world_size:
            raise ValueError(
                f"{sampler.num_identities} identities per batch cannot be divided over {world_size} "
                f"processes: each takes whole identities; set identities to a multiple of {world_size}"
            )
        super().__init__(
            images,
            sampler.num_identities * sampler.num_images,
            seed=seed,
            shuffle=True,
            rank=rank,
            world_size=world_size,
            pin_memory=pin_memory,
        )
        self.sampler, self.max_steps, self.epochs = sampler, max_steps, epochs

    def __len__(self) -> int:
        """Batches of the present epoch."""
        whole = len(self.sampler)
        return whole if not self.max_steps else max(0, min(whole, self.max_steps - self.epoch * whole))

    def _plan(self) -> list[tuple[Tensor, Tensor]]:
        size = self.batch_size // self.world_size
        generator = make_generator(self.seed, "samples", self.epoch)
        plan = []
        for batch in self.sampler.batches(self.epoch)[: len(self)]:
            seeds = torch.randint(2**62, (len(batch),), generator=generator)
            part = slice(self.rank * size, (self.rank + 1) * size)
            plan.append((batch[part], seeds[part]))
        return plan

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the present epoch from the present position on; then the epoch is over.

        The next batches are read while the present one is computed with.
        """
        plan, total = self._plan(), len(self)
        with ThreadPoolExecutor(1) as reader:
            jobs = [plan[place] for place in range(self.position, total)[:_AHEAD]]
            ahead = deque(reader.submit(self._read, *job) for job in jobs)
            for place in range(self.position, total):
                batch = ahead.popleft().result()
                if place + _AHEAD < total:
                    ahead.append(reader.submit(self._read, *plan[place + _AHEAD]))
                self.position = place + 1
                yield batch
        if total == len(
            self.sampler
        ):  # else `max_steps` ends the run here, and a longer one goes on from here
            self.epoch += 1
            self.position = 0

    def _read(self, indices: Tensor, seeds: Tensor) -> Batch:
        batch = self.images.load(indices, seeds)
        return batch._replace(images=batch.images.pin_memory()) if self.pin_memory else batch
