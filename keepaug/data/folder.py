"""Image folders: `root/{train,val}/CLASS/*`, as ImageNet and the drawn datasets; flat validation images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from keepaug.data.files import EXTENSIONS, ImageFiles, find_images
from keepaug.data.flat import read_flat_labels

VALIDATION = ("val", "valid", "validation", "test")


def find_split(root: Path, *names: str) -> Path:
    """The first of `root/NAME` that exists.

    Raises:
        FileNotFoundError: none does.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    inside = sorted(path.parent.name for path in root.glob(f"[!._]*/{names[0]}") if path.is_dir())
    folders = sorted(path.name for path in root.glob("[!._]*/") if path.name not in ("train", *VALIDATION))
    hint = ""
    if inside:
        hint = f" (there is {root / inside[0] / names[0]}: is {root / inside[0]} meant?)"
    elif folders:
        some = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
        hint = f" (it has {some}: if these are classes, move most of their images to train, others to val)"
    raise FileNotFoundError(
        f"no folder {' or '.join(str(root / name) for name in names)}; expected {root}/{names[0]}/CLASS/IMAGE"
        + hint
    )


def list_images(split: Path) -> tuple[ImageFiles, Tensor, list[str]]:
    """Files, labels (N,) and class names of `split/CLASS/*`, all sorted, without hidden ones.

    Raises:
        ValueError: no class folders, or one without images; images beside the class folders.
    """
    files, folders = find_images(split)
    classes = sorted(name for name in folders if "/" not in name)
    names = files.names()
    loose = [name for name in names if "/" not in name]
    if not classes:
        raise ValueError(f"{split} has no class folders; expected {split}/CLASS/IMAGE")
    if loose:
        raise ValueError(
            f"{split} has {len(loose)} image(s) beside its class folders, for example {loose[0]}: which "
            f"class are they of? Move them; expected {split}/CLASS/IMAGE"
        )
    counts = Counter(name.partition("/")[0] for name in names)
    for name in classes:
        if name not in counts:
            raise ValueError(f"the class folder {split / name} has no images ({', '.join(EXTENSIONS)})")
    numbers = torch.tensor([counts[name] for name in classes])
    return files, torch.arange(len(classes)).repeat_interleave(numbers), classes


def open_folder(root: str | Path) -> tuple[tuple[ImageFiles, Tensor], tuple[ImageFiles, Tensor], list[str]]:
    """Training and validation files of a folder, and the class names.

    Validation images are in `val`, `valid`, `validation` or `test`: in class folders, or flat with a list of
    their labels (`read_flat_labels`), as ImageNet's are distributed.

    Raises:
        FileNotFoundError: no such folder or split, or no list for flat validation images.
        ValueError: an empty class, or classes that differ between the splits.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    train_files, train_labels, classes = list_images(find_split(root, "train"))
    split = find_split(root, *VALIDATION)
    files, folders = find_images(split)
    if len(files) and set(folders) <= {"images"} - set(classes):
        return (train_files, train_labels), (files, read_flat_labels(split, files.names(), classes)), classes
    val_files, val_labels, val_classes = list_images(split)
    if classes != val_classes:
        different = sorted(set(classes) ^ set(val_classes))
        raise ValueError(
            f"{root}: training and validation must have the same class folders; only in one: "
            f"{', '.join(different[:5])}{' ...' if len(different) > 5 else ''}"
        )
    return (train_files, train_labels), (val_files, val_labels), classes
