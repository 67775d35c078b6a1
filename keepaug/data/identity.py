"""Which data a result was measured on: name, sizes and a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepaug.data.files import ImageFiles
from keepaug.runs.errors import ConfigError
from keepaug.runs.shapes import read_json

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PUBLIC = {"cifar10": 10, "imagenet": 1000, "coco": 80}
"""Names under which a result counts as one on public data, and how many classes those have."""
CARD = {"name?": str, "synthetic?": bool, str: Any}
"""What dataset.json holds, which drawn data sets carry in their root."""


def read_card(root: str | Path) -> dict[str, Any]:
    """The folder's dataset.json, {} where there is none.

    Raises:
        ValueError: it is damaged.
    """
    card = Path(root).expanduser() / "dataset.json"
    return dict(read_json(card, CARD)) if card.is_file() else {}


def is_synthetic(root: str | Path) -> bool:
    """Whether the folder's dataset.json says that the program drew it."""
    return bool(read_card(root).get("synthetic", False))


def data_name(root: str | Path, classes: Sequence[str], public: str = "") -> str:
    """What results call a folder's data; a public data set's name is for that alone.

    Args:
        root: the folder.
        classes: of its images.
        public: the name of `PUBLIC` that the settings give the data; "": they are anybody's.

    Raises:
        ConfigError: they are not that data. What the program drew may be called so: it is marked as drawn.
    """
    stem, number = public or Path(root).expanduser().resolve().name, len(classes)
    known = tuple(classes) == CIFAR10 if stem == "cifar10" else number == PUBLIC.get(stem, number)
    if known or (public and is_synthetic(root)):
        return stem
    if not public:
        return f"{stem}-like"
    some = f"{', '.join(classes[:3])}{' ...' if number > 3 else ''}"
    theirs = f"{PUBLIC[public]:,}{' (airplane to truck)' * (public == 'cifar10')}"
    raise ConfigError(
        f"{root} is not {public}: it has {number} classes ({some}), that has {theirs}; own images are "
        "dataset=image_folder"
    )


def describe_tensors(name: str, splits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Identity of data in memory: SHA-256 over images and labels.

    Args:
        name: of the dataset.
        splits: (images, labels) by split.
    """
    digest = hashlib.sha256()
    for images, labels in splits.values():
        digest.update(images.contiguous().numpy().data)
        digest.update(labels.to(torch.int64).contiguous().numpy().data)
    return {
        "name": name,
        "sizes": {split: len(labels) for split, (_, labels) in splits.items()},
        "checksum": digest.hexdigest()[:32],
    }


def describe_files(
    name: str,
    root: str | Path,
    splits: Mapping[str, Sequence[Path]],
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Identity of data on disk: SHA-256 over relative paths and file sizes (contents are not read).

    Args:
        name: of the dataset.
        root: all paths are below it.
        splits: files by split.
        labels: of each file, where paths do not say them.
    """
    digest = hashlib.sha256()
    root = Path(root).expanduser()
    if labels is not None:
        digest.update(json.dumps({split: list(texts) for split, texts in labels.items()}).encode())
    for paths in splits.values():
        if isinstance(paths, ImageFiles):
            before = "".join(f"{part}/" for part in paths.root.relative_to(root).parts)
            sized = zip(paths.names(), paths.sizes.tolist(), strict=True)
            digest.update("".join(f"{before}{name} {size}\n" for name, size in sized).encode())
        else:
            for path in paths:
                digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    sizes = {split: len(paths) for split, paths in splits.items()}
    return {"name": name, "sizes": sizes, "checksum": digest.hexdigest()[:32]}
