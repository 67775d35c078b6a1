"""A loader whose order and randomness depend on the seed alone, which resumes exactly where it stopped."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from keepaug.data.batch_transforms import with_mirror
from keepaug.data.checking import own_cores
from keepaug.data.images import Batch, Images
from keepaug.runs.seeds import make_generator
from keepaug.runs.stopping import iterate


def default_workers(device: torch.device, *, in_memory: bool) -> int:
    """Decoding processes for one training process: none on a CPU, as many as it can feed a GPU with.

    Args:
        device: where the training runs.
        in_memory: the images need no decoding: at most 4, otherwise at most 16.
    """
    if device.type == "cpu":
        return 0
    return min(4 if in_memory else 16, max(1, own_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


class _Batches(Dataset[Batch]):
    """Whole batches by their images' positions and seeds, for the library's workers."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, wanted: tuple[Any, Any]) -> Batch:
        return self.images.load(*map(torch.from_numpy, wanted))


class _Rest(Sampler[Any]):
    """What is left of the present epoch; asked anew in every epoch, so that the workers can stay.

    As arrays, because tensors would go to a worker through shared memory, one file each.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        for indices, seeds in self.loader._plan()[self.loader.position :]:
            yield indices.numpy(), seeds.numpy()

    def __len__(self) -> int:
        return len(self.loader) - self.loader.position


class Loader:
    """Batches whose contents do not depend on the number of workers or processes.

    Args:
        images: the dataset.
        batch_size: of all processes together; each gets every `world_size`-th image of it.
        seed: decides the order and each image's augmentation, per epoch.
        shuffle: a new order each epoch.
        alternate: the seeds say that a drawn half of the images is mirrored in even epochs, the other half in
            odd ones (`MemoryImages(alternate=True)`), so that two epochs show every image both ways.
        drop_last: leave out an incomplete last batch.
        num_workers: decoding processes; 0 decodes in this one.
        rank: of this process.
        world_size: number of processes.
        pin_memory: for faster copies to a GPU.

    Raises:
        ValueError: a batch larger than the dataset with drop_last, or not divisible over the processes.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        alternate: bool = False,
        drop_last: bool = False,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or (shuffle and batch_size % world_size):
            raise ValueError(
                f"batch_size {batch_size} must be 1 or more and divisible by the {world_size} process(es)"
            )
        if drop_last and batch_size > len(images):
            raise ValueError(
                f"batch_size {batch_size} is larger than the {len(images)} images: no batch would be left"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.shuffle, self.alternate, self.drop_last = shuffle, alternate, drop_last
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.position = 0
        self._batches: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        total = len(self.images)
        return total // self.batch_size if self.drop_last else -(-total // self.batch_size)

    def _plan(self) -> list[tuple[Tensor, Tensor]]:
        """Indices and seeds of this process's part of every batch of the epoch."""
        num = len(self.images)
        order = torch.arange(num)
        if self.shuffle:
            order = torch.randperm(num, generator=make_generator(self.seed, "order", self.epoch))
        seeds = torch.randint(2**62, (num,), generator=make_generator(self.seed, "samples", self.epoch))
        if self.alternate:
            first = torch.randint(2, (num,), generator=make_generator(self.seed, "mirrored"))
            seeds = with_mirror(seeds, (first + self.epoch) % 2 == 1)
        whole = [order[start : start + self.batch_size] for start in range(0, num, self.batch_size)]
        parts = [batch[self.rank :: self.world_size] for batch in whole[: len(self)]]
        return [(part, seeds[part]) for part in parts]

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the present epoch from the present position on; then the epoch is over."""
        if self._batches is None:
            workers: dict[str, Any] = {"num_workers": self.num_workers}
            if self.num_workers:
                workers |= {"prefetch_factor": 4, "persistent_workers": True}
            rest = _Rest(weakref.proxy(self))
            self._batches = DataLoader(
                _Batches(self.images), None, sampler=rest, pin_memory=self.pin_memory, **workers
            )
        for batch in iterate(self._batches):
            self.position += 1
            yield batch
        self.epoch += 1
        self.position = 0

    @property
    def weight(self) -> float:
        """Of this process's part of the batch, for the mean over all; 1 unless a last batch is uneven."""
        start = (self.position - 1) * self.batch_size
        total = min(self.batch_size, len(self.images) - start)
        return len(range(self.rank, total, self.world_size)) * self.world_size / total

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: epoch, batches taken, and what they were cut from."""
        place = {"epoch": self.epoch, "position": self.position}
        return {**place, "num_images": len(self.images), "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there.

        Raises:
            ValueError: another dataset size or batch size.
        """
        if (state["num_images"], state["batch_size"]) != (len(self.images), self.batch_size):
            raise ValueError(
                f"the run was interrupted with {state['num_images']} images in batches of "
                f"{state['batch_size']}; now there are {len(self.images)} in batches of {self.batch_size}: "
                "it cannot be resumed on other data"
            )
        self.epoch, self.position = state["epoch"], state["position"]
