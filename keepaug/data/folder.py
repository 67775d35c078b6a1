"""Image folders: `root/{train,val}/CLASS/*`, the layout of ImageNet and of the drawn datasets."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["EXTENSIONS", "find_split", "list_images", "open_folder"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def find_split(root: Path, *names: str) -> Path:
    """The first of `root/NAME` that exists.

    Raises:
        FileNotFoundError: none does.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"no folder {' or '.join(str(root / name) for name in names)}; expected {root}/{names[0]}/CLASS/IMAGE"
    )


def list_images(split: Path) -> tuple[list[Path], Tensor, list[str]]:
    """Paths, labels (N,) and class names of `split/CLASS/*`, all sorted.

    Raises:
        ValueError: no class folders, or one without images.
    """
    classes = sorted(
        entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise ValueError(f"{split} has no class folders; expected {split}/CLASS/IMAGE")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (split / name).rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not found:
            raise ValueError(f"the class folder {split / name} has no images ({', '.join(EXTENSIONS)})")
        paths += found
        labels += [label] * len(found)
    return paths, torch.tensor(labels), classes


def open_folder(root: str | Path) -> tuple[tuple[list[Path], Tensor], tuple[list[Path], Tensor], list[str]]:
    """Training and validation files of a folder, and the class names.

    Raises:
        FileNotFoundError: no such folder or split.
        ValueError: an empty class, or classes that differ between the splits.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    train_paths, train_labels, classes = list_images(find_split(root, "train"))
    val_paths, val_labels, val_classes = list_images(find_split(root, "val", "test"))
    if classes != val_classes:
        different = sorted(set(classes) ^ set(val_classes))
        raise ValueError(
            f"{root}: training and validation must have the same class folders; only in one: {', '.join(different[:5])}"
            f"{' ...' if len(different) > 5 else ''}"
        )
    return (train_paths, train_labels), (val_paths, val_labels), classes
