"""COCO annotations: where they lie, whether they can be trained on, and as records both engines take.

`check_coco` looks for the mistakes that otherwise show as an AP of 0 after hours of training, and reports all
of them at once.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from keepaug.runs.files import write_json_atomic

SPLITS = {"coco_2017_train": "train2017", "coco_2017_val": "val2017"}

# COCO itself has a few empty boxes among 860,001; up to this share is dropped or clipped with a word.
ODDITY_SHARE = 1e-3

_EXIF_ORIENTATION = 0x0112
_SWAPS_SIDES = {5, 6, 7, 8}


class CocoDataError(ValueError):
    """All problems found in a COCO dataset, each with its count and first examples."""


@dataclass(frozen=True)
class CocoPaths:
    """One split: its annotation file and the folder of its images."""

    json_path: Path
    image_root: Path


@dataclass(frozen=True)
class CocoDataset:
    """A split in memory.

    Attributes:
        records: one dict per image, in the order of image ids, with Detectron2's keys: `file_name`,
            `image_id`, `height`, `width`, `annotations` (`bbox` [x, y, width, height] in pixels,
            `category_id` counted from 0 without gaps, `iscrowd`).
        thing_classes: class names, by contiguous id.
        contiguous_to_json_id: the JSON's category id, by contiguous id.
        json_path: the annotation file.
        image_root: the folder of the images.
        notes: oddities that were dropped or will be clipped.
    """

    records: list[dict[str, Any]]
    thing_classes: list[str]
    contiguous_to_json_id: list[int]
    json_path: Path
    image_root: Path
    notes: list[str] = field(default_factory=list)


@dataclass
class _Problems:
    """Collects problems by kind: how often, and the first examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str = "") -> None:
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if example and len(shown) < 3:
            shown.append(example)

    def lines(self) -> list[str]:
        lines = []
        for kind, count in self.counts.items():
            examples = "; ".join(self.examples[kind])
            lines.append(f"{kind} ({count}x)" + (f": {examples}" if examples else ""))
        return lines


def find_coco(
    data_root: str | Path | None,
    *,
    train: CocoPaths | None = None,
    val: CocoPaths | None = None,
) -> dict[str, CocoPaths]:
    """The paths of `coco_2017_train` and `coco_2017_val`.

    Args:
        data_root: `{root}/{train2017,val2017}/*.jpg` and `{root}/annotations/instances_{train,val}2017.json`.
        train: an explicit training split; goes before `data_root`.
        val: an explicit validation split; goes before `data_root`.

    Returns:
        The splits that are known, by the names that `DATASETS.TRAIN` and `DATASETS.TEST` use.
    """
    found = {
        name: paths
        for name, paths in (("coco_2017_train", train), ("coco_2017_val", val))
        if paths is not None
    }
    if data_root is not None:
        root = Path(data_root).expanduser()
        for name, split in SPLITS.items():
            found.setdefault(name, CocoPaths(root / "annotations" / f"instances_{split}.json", root / split))
    return found


def read_json(json_path: str | Path) -> dict[str, Any]:
    """The annotation file's dict, with the three lists an instance file must have.

    Raises:
        CocoDataError: no such file, not JSON, or not an instance annotation file.
    """
    path = Path(json_path)
    if not path.is_file():
        raise CocoDataError(
            f"no annotation file {path}; give --data-root with annotations/instances_*.json, or --train-json "
            "and --val-json"
        )
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CocoDataError(f"{path} is not a JSON file: {error}") from error
    wanted = ("images", "annotations", "categories")
    missing = [key for key in wanted if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        hint = ""
        if isinstance(data, list):
            hint = "; it is a list: a results file?"
        elif missing == ["categories"]:
            hint = "; is it a captions file? Take instances_*.json"
        elif missing == ["annotations"]:
            hint = "; is it a test set without labels?"
        raise CocoDataError(f"{path} has no list of {', '.join(missing)}{hint}")
    return data


def check_coco(
    json_path: str | Path,
    image_root: str | Path,
    *,
    num_classes: int | None = None,
    num_classes_key: str = "NUM_CLASSES",
    tolerance: float = 2.0,
    sampled_sizes: int = 64,
) -> list[str]:
    """Check one split's annotations and images before any training.

    Args:
        json_path: an instance annotation file.
        image_root: the folder of its images.
        num_classes: the model's number of classes, or None.
        num_classes_key: the config key to name when that number is wrong.
        tolerance: pixels by which a box may leave its image (COCO's coordinates are rounded).
        sampled_sizes: of how many images, evenly spaced, the width and height are held against the file.

    Returns:
        Notes about oddities too rare to stop for: they are dropped or clipped.

    Raises:
        CocoDataError: lists every kind of problem with its count and first examples.
    """
    data = read_json(json_path)
    images, annotations, categories = data["images"], data["annotations"], data["categories"]
    problems, oddities = _Problems(), _Problems()

    category_ids = _check_ids(categories, "category", ("id", "name"), problems)
    sizes = _check_images(images, problems)
    _check_ids(annotations, "annotation", ("id", "image_id", "category_id", "bbox"), problems)
    if num_classes is not None and len(categories) != num_classes:
        problems.add(
            f"the file has {len(categories)} categories, the model {num_classes} classes",
            f"set {num_classes_key} {len(categories)}",
        )
    names = [str(category.get("name")) for category in categories]
    for name, count in Counter(names).items():
        if count > 1:
            problems.add("a category name is used more than once", name)
    if not images:
        problems.add("there are no images")
    if not annotations:
        problems.add("there are no annotations: nothing to learn from or to evaluate against")

    for annotation in annotations:
        _check_annotation(annotation, category_ids, sizes, tolerance, problems, oddities)
    if annotations and not any(not annotation.get("iscrowd", 0) for annotation in annotations):
        problems.add("all annotations are crowds: nothing to learn from")
    _check_files(images, Path(image_root), sampled_sizes, problems)

    notes = []
    for kind, count in oddities.counts.items():
        examples = oddities.examples[kind]
        if count > max(ODDITY_SHARE * len(annotations), 0):
            problems.counts[kind] += count
            problems.examples[kind] = examples
        else:
            notes.append(f"{kind} ({count}x, dropped or clipped): {'; '.join(examples)}")
    if problems.counts:
        lines = "\n".join(f"  - {line}" for line in problems.lines())
        raise CocoDataError(f"{json_path} cannot be used with the images in {image_root}:\n{lines}")
    return notes


def check_same_categories(train_json: str | Path, val_json: str | Path) -> None:
    """Training and validation must number the classes alike.

    Raises:
        CocoDataError: names the first categories that differ.
    """
    train, val = (
        {category["id"]: category["name"] for category in read_json(path)["categories"]}
        for path in (train_json, val_json)
    )
    differing = sorted(id_ for id_ in train.keys() | val.keys() if train.get(id_) != val.get(id_))
    if differing:
        examples = "; ".join(f"id {id_}: {train.get(id_)!r} / {val.get(id_)!r}" for id_ in differing[:3])
        raise CocoDataError(
            f"{train_json} and {val_json} have {len(differing)} different categories ({examples}); the same "
            "class would get two numbers"
        )


def load_coco(json_path: str | Path, image_root: str | Path) -> CocoDataset:
    """Read a split that `check_coco` has passed into records.

    Boxes without area are dropped (they can neither be learnt nor found); boxes that leave the image are left
    to the engines, which clip them after resizing.
    """
    data = read_json(json_path)
    root = Path(image_root)
    categories = sorted(data["categories"], key=lambda category: category["id"])
    contiguous = {category["id"]: index for index, category in enumerate(categories)}
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
    dropped = 0
    for annotation in data["annotations"]:
        bbox = [float(value) for value in annotation["bbox"]]
        if min(bbox[2:]) <= 0:
            dropped += 1
            continue
        by_image[annotation["image_id"]].append(
            {
                "bbox": bbox,
                "category_id": contiguous[annotation["category_id"]],
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    records = [
        {
            "file_name": str(root / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": by_image[image["id"]],
        }
        for image in sorted(data["images"], key=lambda image: image["id"])
    ]
    return CocoDataset(
        records=records,
        thing_classes=[category["name"] for category in categories],
        contiguous_to_json_id=[category["id"] for category in categories],
        json_path=Path(json_path),
        image_root=root,
        notes=[f"dropped {dropped} boxes without area"] if dropped else [],
    )


def write_subset(json_path: str | Path, output: str | Path, max_images: int) -> Path:
    """Write the annotations of the first `max_images` images that have any, by image id, to `output`.

    Raises:
        ValueError: `max_images` is below 1.
    """
    if max_images < 1:
        raise ValueError(f"max_images is {max_images}, expected 1 or more")
    data = read_json(json_path)
    annotated = {annotation["image_id"] for annotation in data["annotations"]}
    images = sorted(
        (image for image in data["images"] if image["id"] in annotated), key=lambda image: image["id"]
    )[:max_images]
    kept = {image["id"] for image in images}
    subset = {
        **data,
        "images": images,
        "annotations": [annotation for annotation in data["annotations"] if annotation["image_id"] in kept],
    }
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(output, subset)
    return output


def _check_ids(entries: Sequence[Any], kind: str, needed: Iterable[str], problems: _Problems) -> set[Any]:
    seen: set[Any] = set()
    for position, entry in enumerate(entries):
        missing = [key for key in needed if not isinstance(entry, dict) or key not in entry]
        if missing:
            problems.add(f"an entry of {kind} lacks {', '.join(missing)}", f"number {position}")
            continue
        if entry["id"] in seen:
            problems.add(f"a {kind} id is used more than once", f"{kind} {entry['id']!r}")
        seen.add(entry["id"])
    return seen


def _check_images(images: Sequence[Any], problems: _Problems) -> dict[Any, tuple[int, int]]:
    """(height, width) by image id."""
    _check_ids(images, "image", ("id", "file_name", "height", "width"), problems)
    sizes = {}
    for image in images:
        if not isinstance(image, dict) or not {"id", "file_name", "height", "width"} <= image.keys():
            continue
        size = (image["height"], image["width"])
        if not all(isinstance(side, int) and side > 0 for side in size):
            problems.add(
                "an image's height or width is not a whole number above 0", f"image {image['id']}: {size}"
            )
            continue
        sizes[image["id"]] = size
    return sizes


def _check_annotation(
    annotation: Any,
    category_ids: set[Any],
    sizes: dict[Any, tuple[int, int]],
    tolerance: float,
    problems: _Problems,
    oddities: _Problems,
) -> None:
    if not isinstance(annotation, dict) or not {"id", "image_id", "category_id", "bbox"} <= annotation.keys():
        return
    name = f"annotation {annotation['id']}"
    if annotation["category_id"] not in category_ids:
        problems.add(
            "a category id is not among the categories", f"{name}: category {annotation['category_id']!r}"
        )
    bbox = annotation["bbox"]
    numbers = isinstance(bbox, list | tuple) and all(
        type(value) in (int, float) and math.isfinite(value) for value in bbox
    )
    if not numbers or len(bbox) != 4:
        problems.add("a box is not four finite numbers [x, y, width, height]", f"{name}: {bbox}")
        return
    if "area" not in annotation:
        problems.add("an annotation has no area (the evaluation needs it; width * height will do)", name)
    if annotation["image_id"] not in sizes:
        problems.add("an image id is not among the images", f"{name}: image {annotation['image_id']!r}")
        return
    x, y, width, height = bbox
    if width < 0 or height < 0:
        problems.add(
            "a box has a negative size (COCO's boxes are [x, y, width, height])",
            f"{name}: {bbox}",
        )
        return
    if width == 0 or height == 0:
        oddities.add("a box has no area", f"{name}: {bbox}")
        return
    image_height, image_width = sizes[annotation["image_id"]]
    outside = max(-x, -y, x + width - image_width, y + height - image_height)
    if outside > tolerance:
        oddities.add(
            f"a box leaves its image by more than {tolerance:g} pixels (are the boxes corners, or of another "
            "image size?)",
            f"{name}: {bbox} in {image_width} x {image_height} (width x height)",
        )


def _check_files(images: Sequence[Any], root: Path, sampled: int, problems: _Problems) -> None:
    if not root.is_dir():
        problems.add(f"there is no image folder {root}")
        return
    named = [image for image in images if isinstance(image, dict) and isinstance(image.get("file_name"), str)]
    listings: dict[Path, set[str]] = {}
    present = []
    for image in named:
        path = root / image["file_name"]
        if path.parent not in listings:  # one listing, not 118,000 questions
            is_folder = path.parent.is_dir()
            listings[path.parent] = {entry.name for entry in os.scandir(path.parent)} if is_folder else set()
        if path.name in listings[path.parent]:
            present.append((path, image))
        else:
            problems.add("an image file is missing", image["file_name"])
    step = max(1, len(present) // max(sampled, 1))
    for path, image in present[::step]:
        try:
            with Image.open(path) as opened:
                width, height = opened.size
                if opened.getexif().get(_EXIF_ORIENTATION) in _SWAPS_SIDES:
                    width, height = height, width
        except (UnidentifiedImageError, OSError) as error:
            problems.add("an image file cannot be read", f"{image['file_name']}: {error}")
            continue
        if (height, width) != (image.get("height"), image.get("width")):
            problems.add(
                "an image file's size is not that of the annotations (height, width)",
                f"{image['file_name']}: file {(height, width)}, annotations "
                f"{(image.get('height'), image.get('width'))}",
            )
