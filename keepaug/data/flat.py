"""Labels of validation images in one folder: ImageNet's development kit, and other lists in use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from keepaug.runs.checkpoint import read_weights_only

_NAMED = ("LOC_val_solution.csv", "val_annotations.txt", "val.txt")  # a line is: image, class
_ORDERED = (
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)  # a line per image
_SYNSETS = ("map_clsloc.txt", "synsets.txt", "synset_words.txt")  # a line is: class, or class and number
_BELOW = ("", "devkit", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")
_UP = 4  # folders: Kaggle keeps its list three above ILSVRC/Data/CLS-LOC/val


def read_flat_labels(split: Path, names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """The classes of the images in the folder `split`, from the first of these lists in it or near it.

    - `LOC_val_solution.csv` (Kaggle), `val_annotations.txt` (Tiny ImageNet), `val.txt` (Caffe): a line begins
      with an image's name and its class, which may be a number from 0 in the order of the sorted names.
    - `imagenet_2012_validation_synset_labels.txt`: a class per image, in the order of the images' names.
    - `ILSVRC2012_validation_ground_truth.txt`: a number from 1 per image, in that order, explained by the
      development kit's `meta.mat`, or a list of classes in their order (`map_clsloc.txt`, `synsets.txt`).
    - torchvision's `meta.bin`.

    Args:
        split: the folder.
        names: of its images, sorted.
        classes: of the training images, sorted.

    Returns:
        (N,) int64.

    Raises:
        FileNotFoundError: none of them.
        ValueError: a list that does not fit images or classes, or that needs a second one.
    """
    if (found := _find(split, (*_NAMED, *_ORDERED, "meta.bin"))) is None:
        raise FileNotFoundError(
            f"{split} has {len(names)} images and no class folders, and no list of their classes is in it "
            f"or near it: put "
            f"{', '.join(_NAMED)}, {', '.join(_ORDERED)} or torchvision's meta.bin into {split.parent}"
        )
    if found.name == "meta.bin":
        content = read_weights_only(found)
        if not (isinstance(content, tuple) and len(content) == 2 and isinstance(content[1], list)):
            raise ValueError(f"{found} is not torchvision's meta.bin: expected a pair with a list second")
        labels = list(map(str, content[1]))
    elif found.name in _NAMED:
        labels = _by_name(found, names)
        if all(label.isdigit() for label in labels) and not set(labels) <= set(classes):
            labels = _numbered(found, labels, dict(enumerate(classes)))
    else:
        labels = found.read_text(encoding="utf-8-sig").split()
        if all(label.isdigit() for label in labels) and not set(labels) <= set(classes):
            labels = _numbered(found, labels, _ilsvrc_numbers(found, split, classes))
    if len(labels) != len(names):
        raise ValueError(f"{found} has {len(labels)} labels for the {len(names)} images in {split}")
    if unknown := sorted(set(labels) - set(classes)):
        raise ValueError(
            f"{found} names {len(unknown)} class(es) without training images, for example "
            f"{', '.join(unknown[:5])}; the training folder has {len(classes)}: {', '.join(classes[:5])} ..."
        )
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number[label] for label in labels])


def _find(split: Path, names: Sequence[str]) -> Path | None:
    folders = [split, *split.absolute().parents[:_UP]]
    places = (folder / below / name for folder in folders for below in _BELOW for name in names)
    return next((place for place in places if place.is_file()), None)


def _by_name(path: Path, names: Sequence[str]) -> list[str]:
    label_of: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        parts = re.split(r"[,\s]+", line.strip())
        if len(parts) > 1:
            label_of[Path(parts[0]).stem] = parts[1]
    if missing := [name for name in names if Path(name).stem not in label_of]:
        raise ValueError(
            f"{path} has no line for {len(missing)} of {len(names)} images, for example "
            f"{', '.join(missing[:3])}"
        )
    return [label_of[Path(name).stem] for name in names]


def _numbered(path: Path, labels: Sequence[str], class_of: Mapping[int, str]) -> list[str]:
    if wrong := sorted({int(label) for label in labels} - class_of.keys()):
        raise ValueError(
            f"{path} has labels that stand for no class, for example {wrong[:5]}; expected {min(class_of)} "
            f"to {max(class_of)}"
        )
    return [class_of[int(label)] for label in labels]


def _ilsvrc_numbers(path: Path, split: Path, classes: Sequence[str]) -> dict[int, str]:
    """Class by ILSVRC2012_ID, which is not the alphabetical order."""
    if (found := _find(split, ("meta.mat", *_SYNSETS))) is None:
        raise FileNotFoundError(
            f"{path} numbers the classes in an order of its own: put the development kit's meta.mat, or a "
            f"list of the classes in that order ({', '.join(_SYNSETS)}), beside it"
        )
    if found.name == "meta.mat":
        return _read_meta(found)
    known = set(classes)
    rows = [line.split() for line in found.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    listed = [row[0] for row in rows]
    if not set(listed) & known:
        raise ValueError(f"{found} begins with {listed[:3]}, expected a class per line, such as {classes[0]}")
    if all(len(row) > 1 and row[1].isdigit() for row in rows):
        return {int(row[1]): row[0] for row in rows}
    if listed == sorted(listed) and len(listed) > 2:
        raise ValueError(
            f"{found} lists the classes alphabetically, and {path} numbers them in the order of the "
            "development kit: the labels would be wrong; put the kit's meta.mat beside it"
        )
    return dict(enumerate(listed, start=1))


def _read_meta(path: Path) -> dict[int, str]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"reading {path} needs scipy: pip install scipy") from error
    load: Callable[..., dict[str, object]] = loadmat
    try:
        synsets = load(path, squeeze_me=True)["synsets"]
        numbers, names = synsets["ILSVRC2012_ID"], synsets["WNID"]  # type: ignore[index]
        return {int(number): str(name) for number, name in zip(numbers, names, strict=True)}
    except Exception as error:  # scipy raises its own and others for a damaged file
        raise ValueError(f"{path} is not the development kit's meta.mat ({error})") from error
