"""A semi-supervised run's images, all as uint8 on the training device, and endless index streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from keepaug.choices import IMAGENET_MEAN, IMAGENET_STD
from keepaug.data.checking import read_all
from keepaug.data.cifar import load_cifar10
from keepaug.data.files import EXTENSIONS, find_images, is_hidden
from keepaug.data.folder import VALIDATION, open_folder
from keepaug.data.identity import data_name, describe_tensors, is_synthetic
from keepaug.data.reading import read_image
from keepaug.runs.command import is_main
from keepaug.runs.config import ConfigError
from keepaug.runs.seeds import make_generator
from ssl_uda.algorithms import ALGORITHMS
from ssl_uda.config import UdaConfig
from ssl_uda.split import LabelSplit, choose_labelled, split_labels

# of google-research/uda's augmentation_transforms.py
CIFAR_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR_STD = (0.24703223, 0.24348513, 0.26158784)
UNLABELLED = ("unlabelled", "unlabeled")


@dataclass(frozen=True)
class Data:
    """What a run trains and is evaluated on.

    Attributes:
        images: (N + U, 3, H, W) uint8, training images and the unlabelled folder's, on the device.
        labels: (N,) int64 on the same device; only the labelled ones may be looked at in training.
        split: which are labelled; on the CPU.
        val_images: (M, 3, H, W) uint8, on the training device.
        val_labels: (M,) int64.
        classes: names.
        mean: of the normalisation, for [0, 1].
        std: of the normalisation.
        identity: name, sizes, checksum.
        synthetic: drawn by the program.
    """

    images: Tensor
    labels: Tensor
    split: LabelSplit
    val_images: Tensor
    val_labels: Tensor
    classes: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    identity: dict[str, Any]
    synthetic: bool

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.images.shape[2], self.images.shape[3]


class Stream:
    """Batches of positions without end: shuffled epoch after epoch, each batch decided by its number alone.

    Args:
        num: positions 0 to num - 1; may be fewer than a batch.
        batch_size: of all processes together.
        seed: of the order.
        name: streams of different names are independent.
    """

    def __init__(self, num: int, batch_size: int, *, seed: int, name: str) -> None:
        if num < 1:
            raise ValueError(f"a stream needs at least one position, got {num}")
        self.num, self.batch_size, self.seed, self.name = num, batch_size, seed, name
        self._orders: dict[int, Tensor] = {}

    def batch(self, number: int) -> Tensor:
        """(batch_size,) int64; any batch can be asked for at any time."""
        start, parts = number * self.batch_size, []
        end = start + self.batch_size
        epochs = range(start // self.num, (end - 1) // self.num + 1)
        self._orders = {epoch: order for epoch, order in self._orders.items() if epoch in epochs}
        for epoch in epochs:
            if epoch not in self._orders:
                generator = make_generator(self.seed, self.name, epoch)
                self._orders[epoch] = torch.randperm(self.num, generator=generator)
            first = epoch * self.num
            parts.append(self._orders[epoch][max(start - first, 0) : end - first])
        return torch.cat(parts)


def open_data(config: UdaConfig, device: torch.device) -> Data:
    """Read, split and check what the config names.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: layout errors, unreadable images, a split that cannot be made.
    """
    root = Path(config.root).expanduser()
    if config.dataset == "cifar10":
        train, val, classes = load_cifar10(root)
        name = "cifar10"
    else:
        train_files, val_files, classes = open_folder(root)
        name = data_name(root, classes)
        train = (_read(train_files[0], config.image_size, f"reading {name}/train"), train_files[1])
        val = (_read(val_files[0], config.image_size, f"reading {name}/val"), val_files[1])
    if config.limit_train and config.limit_train < len(train[1]):
        some = choose_labelled(train[1], config.limit_train, len(classes), "balanced_first", 0)
        train = (train[0][some], train[1][some])
    if config.limit_val and config.limit_val < len(val[1]):
        some = choose_labelled(val[1], config.limit_val, len(classes), "balanced_first", 0)
        val = (val[0][some], val[1][some])
    if min(train[0].shape[2:]) <= config.padding:
        raise ConfigError(f"padding {config.padding} needs larger images than {tuple(train[0].shape[2:])}")
    if config.keep and config.size > min(train[0].shape[2:]):
        shape = tuple(train[0].shape[2:])
        raise ConfigError(f"size {config.size}, of the pasted region, is larger than images of {shape}")
    extra = _read_unlabelled(config, root, train[0])
    seed = config.seed if config.split_seed < 0 else config.split_seed
    split = split_labels(
        train[1],
        config.num_labels,
        len(classes),
        config.split,
        seed=seed,
        unlabelled=config.unlabelled,
        num_extra=len(extra),
    )
    cifar = config.dataset == "cifar10"
    parts = {"train": train, "val": val}
    if len(extra):
        parts["unlabelled"] = (extra, torch.full((len(extra),), -1))
    return Data(
        (torch.cat([train[0], extra]) if len(extra) else train[0]).to(device),
        train[1].to(device),
        split,
        val[0].to(device),
        val[1].to(device),
        list(classes),
        CIFAR_MEAN if cifar else IMAGENET_MEAN,
        CIFAR_STD if cifar else IMAGENET_STD,
        describe_tensors(name, parts),
        is_synthetic(root),
    )


def _read_unlabelled(config: UdaConfig, root: Path, train: Tensor) -> Tensor:
    """(U, 3, H, W) images of the unlabelled folder, of the training images' size; U is 0 where there is none.

    Raises:
        ConfigError: another size, no images, or a folder that is not there.
    """
    if not ALGORITHMS[config.algorithm].unlabelled:
        return train[:0]
    there = [root / name for name in UNLABELLED if (root / name).is_dir()]
    if len(there) > 1 and not config.unlabelled_root:
        raise ConfigError(f"both {there[0]} and {there[1]} are there: merge them, or set unlabelled_root")
    folder = Path(config.unlabelled_root).expanduser() if config.unlabelled_root else next(iter(there), None)
    if config.dataset == "image_folder" and is_main():
        for unread in _unread_folders(root, folder):
            print(
                f"note: {unread} holds images that nothing reads; unlabelled_root={unread} would", flush=True
            )
    if folder is None:
        return train[:0]
    if not folder.is_dir():
        raise ConfigError(f"unlabelled_root: no folder {folder}")
    files, _ = find_images(folder)
    if not len(files):
        raise ConfigError(f"{folder} holds no images ({', '.join(EXTENSIONS)}): leave it out, or put some in")
    side = 32 if config.dataset == "cifar10" else config.image_size
    images = _read(files[: config.limit_train or None], side, f"reading {folder.name}")
    if images.shape[1:] != train.shape[1:]:
        raise ConfigError(
            f"the images of {folder} are {images.shape[2]} x {images.shape[3]} and the training images "
            f"{train.shape[2]} x {train.shape[3]}: set image_size to resize all of them"
        )
    return images


def _unread_folders(root: Path, unlabelled: Path | None) -> list[Path]:
    """Folders beside the training images in which images lie and which are none of the dataset's own."""
    own = {"train", *VALIDATION}
    beside = [one for one in sorted(root.iterdir()) if one.is_dir() and not is_hidden(one.name)]
    return [one for one in beside if one.name not in own and one != unlabelled and len(find_images(one)[0])]


def _read(paths: Sequence[Path], side: int, description: str) -> Tensor:
    """All images as one uint8 tensor; with a side, resized (shorter side, then a central square)."""

    def one(path: Path) -> Tensor:
        image = read_image(path)
        if side:
            width, height = image.size
            square = min(width, height)
            left, top = (width - square) / 2, (height - square) / 2
            box = (left, top, left + square, top + square)
            image = image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=None)
        return pil_to_tensor(image)

    images = read_all(one, paths, description)
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise ConfigError(
                f"{path} is {image.shape[1]} x {image.shape[2]} and {paths[0]} is {images[0].shape[1]} x "
                f"{images[0].shape[2]}; all images are held as one tensor: set image_size to resize them"
            )
    return torch.stack(images)
