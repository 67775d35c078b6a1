"""CIFAR-10, from torchvision's archive or folder, or from a folder of images."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keepaug.data.folder import open_folder
from keepaug.data.identity import CIFAR10, data_name
from keepaug.data.images import decode_all
from keepaug.runs.restricted import unpickle_arrays
from keepaug.runs.shapes import check_shape

_FOLDER, _ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"


def load_cifar10(root: str | Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    """Training and test images.

    Args:
        root: a folder with `cifar-10-batches-py` or `cifar-10-python.tar.gz` (torchvision's), or with
            `{train,test}/CLASS/*` images.

    Returns:
        (images (N, 3, 32, 32) uint8, labels (N,) int64) for training and test, and the class names.

    Raises:
        FileNotFoundError: nothing of the kind is there.
        ValueError: a damaged file, or a folder of other classes.
    """
    root = Path(root).expanduser()
    if (root / _FOLDER).is_dir() or (root / "data_batch_1").is_file():
        folder = root / _FOLDER if (root / _FOLDER).is_dir() else root
        return _from_batches(lambda name: (folder / name).read_bytes(), str(folder))
    archive = root if root.suffix == ".gz" else root / _ARCHIVE
    if archive.is_file():
        try:
            with gzip.open(archive) as packed:
                content = io.BytesIO(packed.read())  # to its end, where the checksum is
            with tarfile.open(fileobj=content) as tar:
                return _from_batches(lambda name: _member(tar, f"{_FOLDER}/{name}"), str(archive))
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{archive} is damaged or cut short ({error}); download it again") from error
    if (root / "train").is_dir():
        (train_paths, train_labels), (test_paths, test_labels), classes = open_folder(root)
        data_name(root, classes, "cifar10")  # or is refused
        train = decode_all(train_paths, f"reading {root.name}/train")
        test = decode_all(test_paths, f"reading {root.name}/test")
        return (train, train_labels), (test, test_labels), classes
    raise FileNotFoundError(
        f"no CIFAR-10 in {root}: expected {_FOLDER}/, {_ARCHIVE} or train/CLASS/*; "
        "torchvision.datasets.CIFAR10(root, download=True) brings it"
    )


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    if (file := tar.extractfile(name)) is None:
        raise ValueError(f"{name} in the archive is not a file")
    return file.read()


def _from_batches(
    read: Callable[[str], bytes], where: str
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    def part(names: list[str]) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for name in names:
            try:
                content = unpickle_arrays(io.BytesIO(read(name)))
                check_shape(content, {"data": np.ndarray, "labels": [int], str: Any}, name)
                images.append(torch.from_numpy(content["data"]).view(-1, 3, 32, 32))
                labels.append(torch.tensor(content["labels"]))
                fits = images[-1].dtype == torch.uint8 and len(images[-1]) == len(labels[-1])
                if not fits or not set(content["labels"]) <= set(range(len(CIFAR10))):
                    raise ValueError(
                        f"expected images in bytes and a label of 0 to {len(CIFAR10) - 1} for each"
                    )
            except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
                raise ValueError(
                    f"{where}/{name} is not a batch of CIFAR-10 ({error}); download it again"
                ) from error
        return torch.cat(images), torch.cat(labels)

    return part([f"data_batch_{n}" for n in range(1, 6)]), part(["test_batch"]), list(CIFAR10)
