"""The classifier's data: which images, which transforms, which identity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepaug.choices import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from keepaug.classify.config import ClassifyConfig
from keepaug.classify.methods import build_batch_policy, build_policy
from keepaug.data.checking import check_images
from keepaug.data.cifar import load_cifar10
from keepaug.data.files import ImageFiles
from keepaug.data.folder import open_folder
from keepaug.data.identity import data_name, describe_files, describe_tensors, is_synthetic
from keepaug.data.imagenet import read_eval, read_train
from keepaug.data.images import FileImages, Images, MemoryImages, decode_all
from keepaug.data.reading import ImageError
from keepaug.runs.config import ConfigError


@dataclass(frozen=True)
class Datasets:
    """Training and validation images with what is needed to use and to name them.

    Attributes:
        train: with crop, flip and, for image-level methods, the strong view.
        val: without.
        mean: of the normalisation, RGB in [0, 1].
        std: of the normalisation.
        identity: name, sizes, checksum.
        synthetic: drawn by the program.
    """

    train: Images
    val: Images
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    identity: dict[str, Any]
    synthetic: bool


def _limit(num: int, limit: int, labels: Tensor) -> Tensor:
    """Positions of `limit` images, the classes in turn, so that few images still show all of them."""
    if not limit or limit >= num:
        return torch.arange(num)
    # rank of each image within its class, then by rank: the first of every class, the second ...
    order = labels.argsort(stable=True)
    starts = torch.searchsorted(labels[order], labels[order])
    rank = torch.empty_like(order)
    rank[order] = torch.arange(num) - starts
    return (rank * (int(labels.max()) + 1) + labels).argsort()[:limit].sort().values


def open_datasets(config: ClassifyConfig) -> Datasets:
    """Read what the config names.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: layout errors, unreadable images.
    """
    root = Path(config.root).expanduser()
    in_memory = config.loading == "memory" or (config.loading == "auto" and config.dataset != "imagenet")
    if config.dataset == "cifar10":
        if config.loading == "files":
            raise ConfigError("loading=files is for image folders; cifar10 is held in memory")
        train, val, classes = load_cifar10(root)
        return _memory(config, train, val, classes, CIFAR_MEAN, CIFAR_STD, "cifar10", root)
    train_files, val_files, classes = open_folder(root)
    name = data_name(root, classes, "imagenet" if config.dataset == "imagenet" else "")
    if in_memory:
        train = (decode_all(train_files[0], f"reading {name}/train"), train_files[1])
        val = (decode_all(val_files[0], f"reading {name}/val"), val_files[1])
        return _memory(config, train, val, classes, IMAGENET_MEAN, IMAGENET_STD, name, root)
    return _files(config, train_files, val_files, classes, name, root)


def _memory(
    config: ClassifyConfig,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    classes: list[str],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    name: str,
    root: Path,
) -> Datasets:
    some = _limit(len(train[1]), config.limit_train, train[1])
    some_val = _limit(len(val[1]), config.limit_val, val[1])
    train, val = (train[0][some], train[1][some]), (val[0][some_val], val[1][some_val])
    return Datasets(
        MemoryImages(
            *train,
            classes,
            padding=config.padding,
            flip=config.flip,
            alternate=config.alternate_flips,
            border=config.mean_colour if config.border == "mean" else config.border,
            policy=build_batch_policy(config),
            policy_first=config.policy_order == "before_crop",
        ),
        MemoryImages(*val, classes),
        mean,
        std,
        describe_tensors(name, {"train": train, "val": val}),
        is_synthetic(root),
    )


def _files(
    config: ClassifyConfig,
    train: tuple[ImageFiles, Tensor],
    val: tuple[ImageFiles, Tensor],
    classes: list[str],
    name: str,
    root: Path,
) -> Datasets:
    def limited(files: tuple[ImageFiles, Tensor], limit: int) -> tuple[ImageFiles, Tensor]:
        if not limit or limit >= len(files[0]):
            return files
        some = _limit(len(files[0]), limit, files[1])
        return files[0].take(some.tolist()), files[1][some]

    train, val = limited(train, config.limit_train), limited(val, config.limit_val)
    problems = []
    for part, files in (("val", val), ("train", train)):
        try:
            check_images(files[0], description=f"checking {name}/{part}")
        except ImageError as error:
            problems.append(f"{part}: {error}")
    if problems:
        raise ImageError("; ".join(problems))
    side = config.image_size
    return Datasets(
        FileImages(*train, classes, read=partial(read_train, size=side), policy=build_policy(config)),
        FileImages(*val, classes, read=partial(read_eval, size=side)),
        IMAGENET_MEAN,
        IMAGENET_STD,
        describe_files(name, root, {"train": train[0], "val": val[0]}),
        is_synthetic(root),
    )
