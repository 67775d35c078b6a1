"""The data manager that torchreid's Engine asks for, on our own loaders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keepaug.data.identity import describe_files, is_synthetic
from keepaug.runs.command import is_main
from keepaug.runs.distributed import Distributed
from reid.config import ReidConfig
from reid.data.checks import check_data, same_files
from reid.data.images import ResizedImages
from reid.data.layouts import SPLITS, Record, ReidData, name_of, open_data
from reid.data.sampler import IdentityLoader, IdentitySampler


@dataclass
class TestSet:
    """Query and gallery of one dataset.

    Attributes:
        name: for results.
        data: the records.
        query: its images.
        gallery: its images.
        cameras: whether the camera rule is used.
        excluded: (M, 2) int64, pairs of a query and a gallery image that are one file.
    """

    __test__ = False  # pytest takes the name for a test

    name: str
    data: ReidData
    query: ResizedImages
    gallery: ResizedImages
    cameras: bool
    excluded: Tensor

    @property
    def labels(self) -> dict[str, Any]:
        """Keyword arguments of `evaluate` and `evaluate_distances`."""
        return {
            "query_ids": self.identities("query"),
            "gallery_ids": self.identities("gallery"),
            "query_cameras": self.camera_numbers("query"),
            "gallery_cameras": self.camera_numbers("gallery"),
            "excluded": self.excluded,
        }

    def names(self, split: str) -> list[str]:
        """Identity and camera of each image as the user wrote them; nothing where they are numbers."""
        if not self.data.identity_names and not self.data.camera_names:
            return []
        return [_label(self.data, record) for record in self.data.split(split)]

    def identities(self, split: str) -> Tensor:
        """(N,) int64 of "query" or "gallery"."""
        return torch.tensor([record.identity for record in self.data.split(split)])

    def camera_numbers(self, split: str) -> Tensor | None:
        """(N,) int64, or None without the camera rule."""
        if not self.cameras:
            return None
        return torch.tensor([-1 if one.camera is None else one.camera for one in self.data.split(split)])


class DataManager:
    """What torchreid's Engine reads of a data manager: `train_loader`, `test_loader`, `sources`, `targets`.

    Args:
        train: P x K batches.
        sets: test sets; the first is the one trained for.
        labels: training identities by class, as the user wrote them where they are no numbers.
        identity: name, sizes and checksum of the data.
        synthetic: drawn by the program.
    """

    data_type = "image"

    def __init__(
        self,
        train: IdentityLoader,
        sets: Sequence[TestSet],
        labels: list[int | str],
        identity: dict[str, Any],
        *,
        synthetic: bool,
    ) -> None:
        self.train_loader = train
        self.test_loader = {one.name: one for one in sets}
        self.sources, self.targets = [sets[0].name], [one.name for one in sets]
        self.labels, self.identity, self.synthetic = labels, identity, synthetic

    @property
    def num_train_pids(self) -> int:
        """Training identities."""
        return len(self.labels)


def open_manager(config: ReidConfig, world: Distributed) -> DataManager:
    """Read and check everything that the config names.

    Raises:
        FileNotFoundError: missing folders or files.
        ValueError: anything `check_data` finds, unreadable images, too few identities.
    """
    data = _limited(open_data(config.layout, config.root), config)
    name = name_of(data, config.data_name)
    check_data(
        data,
        cameras=config.cameras == "use",
        allow_unmatched=config.allow_unmatched,
        allow_duplicates=config.allow_duplicates,
    )
    identities = sorted({record.identity for record in data.train})
    classes = {identity: number for number, identity in enumerate(identities)}
    labels = [data.identity_names.get(identity, identity) for identity in identities]
    targets = torch.tensor([classes[record.identity] for record in data.train])
    sampler = IdentitySampler(targets, config.identities, config.images, seed=config.seed)
    sets = [_test_set(config, name, data), *_others(config)]
    images = _images(config, data.train, targets, f"reading {name}/train", augment=True)
    train = IdentityLoader(
        images,
        sampler,
        seed=config.seed,
        rank=world.rank,
        world_size=world.world_size,
        max_steps=config.max_steps,
        pin_memory=world.device.type == "cuda",
        epochs=config.epochs,
    )
    splits = {split: [record.path for record in data.split(split)] for split in SPLITS}
    # In a CSV file the names of the images do not say whose they are.
    texts = {split: [_label(data, record) for record in data.split(split)] for split in SPLITS}
    identity = describe_files(name, data.root, splits, labels=texts if data.layout == "csv" else None)
    synthetic = is_synthetic(data.root) or is_synthetic(data.root.parent)
    return DataManager(train, sets, labels, identity, synthetic=synthetic)


def open_test_sets(config: ReidConfig) -> list[TestSet]:
    """Query and gallery alone, for an evaluation without training."""
    data = _limited(open_data(config.layout, config.root), config)
    return [_test_set(config, name_of(data, config.data_name), data), *_others(config)]


def _others(config: ReidConfig) -> list[TestSet]:
    found: list[TestSet] = []
    for target in config.also_evaluate:
        layout, _, root = target.partition(":")
        data = open_data(layout, root)
        found.append(_test_set(config, f"{name_of(data)}-{len(found) + 2}", data))
    return found


def _test_set(config: ReidConfig, name: str, data: ReidData) -> TestSet:
    cameras = config.cameras == "use"
    check_data(
        data,
        cameras=cameras,
        allow_unmatched=config.allow_unmatched,
        allow_duplicates=config.allow_duplicates,
        splits=("query", "gallery"),
    )
    query, gallery = (
        _images(
            config,
            data.split(split),
            torch.zeros(len(data.split(split)), dtype=torch.int64),
            f"reading {name}/{split}",
        )
        for split in ("query", "gallery")
    )
    same = same_files(data.query, data.gallery) if config.allow_duplicates else []
    if same and is_main():
        number = len({query for query, _ in same})
        print(
            f"note: {number} queries of {name} are in the gallery too; no file counts for its own query",
            flush=True,
        )
    return TestSet(name, data, query, gallery, cameras, torch.tensor(same, dtype=torch.int64).view(-1, 2))


def _label(data: ReidData, record: Record) -> str:
    return f"{data.identity_name(record.identity)} {data.camera_name(record.camera)}"


def _images(
    config: ReidConfig, records: Sequence[Record], labels: Tensor, description: str, *, augment: bool = False
) -> ResizedImages:
    size = (config.height, config.width)
    memory = config.loading == "memory" or (
        config.loading == "auto" and ResizedImages.gigabytes(len(records), size) <= config.memory_gb
    )
    return ResizedImages(
        [record.path for record in records],
        labels,
        size,
        padding=config.padding if augment else 0,
        flip=config.flip and augment,
        in_memory=memory,
        threads=config.num_workers,
        description=description,
    )


def _limited(data: ReidData, config: ReidConfig) -> ReidData:
    if config.limit_identities:
        some = set(sorted({record.identity for record in data.train})[: config.limit_identities])
        data.train = [record for record in data.train if record.identity in some]
    if config.limit_queries:
        data.query = data.query[: config.limit_queries]
    return data
