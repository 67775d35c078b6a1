"""COCO annotations: where they lie, and as the normalised set that both engines and every evaluator take.

`load_coco` reads an annotation file once: every field gets its type or is refused, ids are renumbered, boxes
that cannot be learnt are dropped and counted, images are found. All problems are reported at once, among them
those that otherwise show as an AP of 0 after hours of training.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from keepaug.data.checking import check_images
from keepaug.data.reading import ImageError

SPLITS = {"coco_2017_train": "train2017", "coco_2017_val": "val2017"}

# So many boxes outside their images point to another format; a few are somebody's slips.
OUTSIDE_SHARE, OUTSIDE_COUNT = 0.1, 3


class CocoDataError(ValueError):
    """All problems found in a COCO dataset, each with its count and first examples."""


@dataclass(frozen=True)
class CocoPaths:
    """One split: its annotation file and the folder of its images."""

    json_path: Path
    image_root: Path


@dataclass(frozen=True)
class CocoDataset:
    """A normalised split in memory.

    Attributes:
        records: one dict per image, in the order of the file's ids, with Detectron2's keys: `file_name`,
            `image_id` from 1 without gaps, `height`, `width`, `annotations` (`bbox` [x, y, width, height] in
            pixels, `area` in pixels, `category_id` counted from 0 without gaps, `iscrowd` 0 or 1).
        thing_classes: class names, by contiguous id.
        contiguous_to_json_id: the file's category id, by contiguous id.
        json_image_ids: the file's image id of `image_id` 1, 2, ...
        json_path: the annotation file.
        image_root: the folder of the images.
        notes: what was dropped, will be clipped or was looked up.
    """

    records: list[dict[str, Any]]
    thing_classes: list[str]
    contiguous_to_json_id: list[int | str]
    json_image_ids: list[int | str]
    json_path: Path
    image_root: Path
    notes: list[str] = field(default_factory=list)

    @property
    def checksum(self) -> str:
        """SHA-256 of everything that training and evaluation see of the annotations."""
        digest = hashlib.sha256(json.dumps(self.thing_classes).encode())
        for record in self.records:
            name = os.path.relpath(record["file_name"], self.image_root)
            content = [name, record["height"], record["width"], record["annotations"]]
            digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()[:32]


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

    def example(self) -> str:
        return next((shown[0] for shown in self.examples.values() if shown), "")

    def error(self, head: str) -> CocoDataError:
        return CocoDataError("\n".join([head, *(f"  - {line}" for line in self.lines())]))


def find_coco(
    data_root: str | Path | None, *, train: CocoPaths | None = None, val: CocoPaths | None = None
) -> dict[str, CocoPaths]:
    """The paths of `coco_2017_train` and `coco_2017_val`.

    Args:
        data_root: `{root}/{train2017,val2017}/*.jpg` and `{root}/annotations/instances_{train,val}2017.json`,
            or for data of one's own `{root}/{train,val}/*.jpg` and `{root}/annotations/{train,val}.json`.
        train: an explicit training split; goes before `data_root`.
        val: an explicit validation split; goes before `data_root`.

    Returns:
        The splits that are known, by the names that `DATASETS.TRAIN` and `DATASETS.TEST` use.
    """
    given = {"coco_2017_train": train, "coco_2017_val": val}
    found = {name: paths for name, paths in given.items() if paths is not None}
    if data_root is not None:
        root = Path(data_root).expanduser()
        for name, split in SPLITS.items():
            coco = CocoPaths(root / "annotations" / f"instances_{split}.json", root / split)
            short = split.removesuffix("2017")
            own = CocoPaths(root / "annotations" / f"{short}.json", root / short)
            found.setdefault(name, own if own.json_path.is_file() and not coco.json_path.is_file() else coco)
    return found


def _read_json(json_path: str | Path) -> dict[str, Any]:
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
        data: dict[str, Any] = json.loads(path.read_bytes())  # UTF-8, 16 or 32, with or without a mark
    except (ValueError, RecursionError) as error:
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


def load_coco(
    json_path: str | Path,
    image_root: str | Path,
    *,
    max_images: int | None = None,
    num_classes: int | None = None,
    num_classes_key: str = "NUM_CLASSES",
    strict_boxes: bool = False,
    tolerance: float = 2.0,
    images: bool = False,
) -> CocoDataset:
    """Read, check and normalize one split.

    Boxes without area in their image are dropped (they can neither be learnt nor found); boxes that leave it
    are left to the engines, which clip them after resizing.

    Args:
        json_path: an instance annotation file.
        image_root: the folder of its images.
        max_images: only the first so many images that have annotations, by id.
        num_classes: the model's number of classes, or None.
        num_classes_key: the config key to name when that number is wrong.
        strict_boxes: refuse boxes that would be dropped or clipped.
        tolerance: pixels by which a box may leave its image (COCO's coordinates are rounded).
        images: also find and read every file, by the end of its name where only that is unique.

    Raises:
        CocoDataError: every kind of problem with its count and examples, or the images that cannot be read.
    """
    data = _read_json(json_path)
    problems, notes = _Problems(), _Problems()
    categories = _by_id(data["categories"], "category", ("id", "name"), problems)
    entries = _by_id(data["images"], "image", ("id", "file_name", "height", "width"), problems)
    classes = sorted(categories.values(), key=lambda entry: _order(entry["id"]))
    if num_classes is not None and len(data["categories"]) != num_classes:
        problems.add(
            f"the file has {len(data['categories'])} categories, the model {num_classes} classes",
            f"set {num_classes_key} {len(data['categories'])}",
        )
    for name, count in Counter(str(entry["name"]) for entry in classes).items():
        if count > 1:
            problems.add("a category name is used more than once", name)
    for kind, entry in (("images", data["images"]), ("annotations", data["annotations"])):
        if not entry:
            problems.add(f"there are no {kind}: nothing to learn from or to evaluate against")
    records = _records(entries, problems)
    named = {_key(entry.get("id")) for entry in data["images"] if isinstance(entry, dict)}
    number_of = {_key(entry["id"]): number for number, entry in enumerate(classes)}
    refused = named - records.keys() - {None}
    _fill(records, refused, number_of, data["annotations"], tolerance, strict_boxes, problems, notes)
    chosen = sorted(records, key=lambda key: _order(entries[key]["id"]))
    if max_images is not None:
        chosen = [key for key in chosen if records[key]["annotations"]][:max_images]
    kept = [records[key] for key in chosen]
    root = Path(image_root)
    if images:
        _find_files(kept, root, problems, notes)
    else:
        for record in kept:
            record["file_name"] = str(root / record["file_name"])
    if problems.counts:
        raise problems.error(f"{json_path} cannot be used with the images in {image_root}:")
    for number, record in enumerate(kept, start=1):
        record["image_id"] = number
    if images:
        try:
            check_images(
                [record["file_name"] for record in kept],
                sizes=[(record["height"], record["width"]) for record in kept],
                description=f"checking the images of {Path(json_path).name}",
            )
        except ImageError as error:
            raise CocoDataError(f"{json_path}: {error}") from error
    return CocoDataset(
        records=kept,
        thing_classes=[str(entry["name"]) for entry in classes],
        contiguous_to_json_id=[entry["id"] for entry in classes],
        json_image_ids=[entries[key]["id"] for key in chosen],
        json_path=Path(json_path),
        image_root=root,
        notes=notes.lines(),
    )


def check_same_categories(train: CocoDataset, val: CocoDataset) -> None:
    """Training and validation must number the classes alike.

    Raises:
        CocoDataError: names the first categories that differ.
    """
    ours, theirs = (
        dict(zip(map(str, split.contiguous_to_json_id), split.thing_classes, strict=True))
        for split in (train, val)
    )
    differing = sorted(id_ for id_ in ours.keys() | theirs.keys() if ours.get(id_) != theirs.get(id_))
    if differing:
        examples = "; ".join(f"id {id_}: {ours.get(id_)!r} / {theirs.get(id_)!r}" for id_ in differing[:3])
        raise CocoDataError(
            f"{train.json_path} and {val.json_path} have {len(differing)} different categories ({examples}); "
            "the same class would get two numbers"
        )


def _typed(value: Any) -> int | str | None:
    """An id as a whole number or a text; None of anything else."""
    if isinstance(value, str):
        return value
    return _whole(value)


def _key(value: Any) -> str | None:
    """1, 1.0 and "1" are one id: files often write it in two ways."""
    typed = _typed(value)
    return None if typed is None else str(typed)


def _order(value: Any) -> tuple[int, int, str]:
    text = str(_typed(value))
    return (0, int(text), "") if text.isascii() and text.isdecimal() else (1, 0, text)


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _by_id(
    entries: Sequence[Any], kind: str, needed: Iterable[str], problems: _Problems
) -> dict[str, dict[str, Any]]:
    """Whole entries by id."""
    found: dict[str, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        if missing := [key for key in needed if not isinstance(entry, dict) or entry.get(key) is None]:
            problems.add(f"an entry of {kind} lacks {', '.join(missing)}", f"number {position}")
            continue
        if (key := _key(entry["id"])) is None:
            problems.add(f"a {kind} id is neither a whole number nor a text", f"{entry['id']!r}")
        elif key in found:
            problems.add(f"a {kind} id is used more than once", f"{kind} {entry['id']!r}")
        elif "name" in needed and not isinstance(entry["name"], str | int | float):
            problems.add("a category name is no text", f"{kind} {entry['id']!r}: {entry['name']!r}")
        else:
            found[key] = {**entry, "id": _typed(entry["id"])}
    return found


def _records(entries: dict[str, dict[str, Any]], problems: _Problems) -> dict[str, dict[str, Any]]:
    """Images by the key of their id, as yet without annotations."""
    records = {}
    for key, entry in entries.items():
        height, width = _whole(entry["height"]), _whole(entry["width"])
        if height is None or width is None or height < 1 or width < 1:
            problems.add(
                "an image's height or width is not a whole number above 0",
                f"image {entry['id']!r}: {(entry['height'], entry['width'])}",
            )
        elif not isinstance(entry["file_name"], str) or not entry["file_name"]:
            problems.add("a file_name is no text", f"image {entry['id']!r}: {entry['file_name']!r}")
        else:
            records[key] = {
                "file_name": entry["file_name"],
                "height": height,
                "width": width,
                "annotations": [],
            }
    return records


def _fill(
    records: dict[str, dict[str, Any]],
    refused: Container[str | None],
    number_of: dict[str | None, int],
    annotations: Sequence[Any],
    tolerance: float,
    strict: bool,
    problems: _Problems,
    notes: _Problems,
) -> None:
    """Put the annotations into their images; those of images that were refused are as good as theirs."""
    seen: set[str] = set()
    odd = problems if strict else notes
    leaving, corners, kept, crowds = 0, True, 0, 0
    for position, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            problems.add("an annotation is no dictionary", f"number {position}: {annotation!r:.60}")
            continue
        name = f"annotation {annotation.get('id', f'number {position}')!r}"
        if (identity := annotation.get("id")) is not None:
            if str(identity) in seen:
                problems.add("an annotation id is used more than once", name)
            seen.add(str(identity))
        ready = _annotation(annotation, name, number_of, problems)
        image = _key(annotation.get("image_id"))
        if (record := records.get(image or "")) is None and image not in refused:
            problems.add("an image id is not among the images", f"{name}: {annotation.get('image_id')!r}")
        if ready is None or record is None:
            continue
        if annotation.get("area") is None:
            notes.add("an annotation has no area: width * height is taken", name)
        x, y, width, height = ready["bbox"]
        corners &= width > x and height > y and width <= record["width"] and height <= record["height"]
        where = f"{name}: {ready['bbox']} in {record['width']} x {record['height']} (width x height)"
        if width == 0 or height == 0:
            odd.add("a box has no area and is dropped", where)
            continue
        if max(-x, -y, x + width - record["width"], y + height - record["height"]) > tolerance:
            leaving += 1
            if x >= record["width"] or y >= record["height"] or x + width <= 0 or y + height <= 0:
                odd.add("a box lies outside its image and is dropped", where)
                continue
            odd.add(f"a box leaves its image by more than {tolerance:g} pixels and is clipped", where)
        kept += 1
        crowds += ready["iscrowd"]
        record["annotations"].append(ready)
    if leaving > max(OUTSIDE_COUNT, OUTSIDE_SHARE * len(annotations)) or (corners and leaving > 1):
        problems.add(
            f"{leaving} of {len(annotations)} boxes leave their images or lie outside: are they corners, or "
            f"of another image size?"
        )
    if annotations and not kept and not problems.counts:
        problems.add(
            "no annotation is left: every box lies outside its image or has no area", notes.example()
        )
    if kept and crowds == kept:
        problems.add("all annotations are crowds: nothing to learn from")


def _annotation(
    annotation: dict[str, Any], name: str, number_of: dict[str | None, int], problems: _Problems
) -> dict[str, Any] | None:
    """Its typed fields; None where one cannot be meant."""
    before = problems.counts.total()
    if (category := number_of.get(_key(annotation.get("category_id")))) is None:
        given_id = annotation.get("category_id")
        problems.add("a category id is not among the categories", f"{name}: category {given_id!r}")
    given = annotation.get("bbox")
    bbox = [_number(value) for value in given] if isinstance(given, list) else []
    if len(bbox) != 4 or None in bbox:
        problems.add("a bbox is not four finite numbers [x, y, width, height]", f"{name}: {given!r:.80}")
        return None
    x, y, width, height = (value or 0.0 for value in bbox)
    if width < 0 or height < 0:
        problems.add("a box has a negative size (COCO's boxes are [x, y, width, height])", f"{name}: {given}")
    area: float | None = width * height
    if annotation.get("area") is not None:
        area = _number(annotation["area"])
        if area is None or area < 0:
            problems.add("an area is not a number from 0", f"{name}: {annotation['area']!r:.40}")
    given = annotation.get("iscrowd")
    crowd = {"0": 0, "1": 1}.get(str(int(given)) if isinstance(given, bool) else _key(given) or "")
    if given is None:
        crowd = 0
    if crowd is None:
        problems.add("iscrowd is neither 0 nor 1", f"{name}: {annotation['iscrowd']!r:.40}")
    if problems.counts.total() > before:
        return None
    return {"bbox": [x, y, width, height], "area": area, "category_id": category, "iscrowd": crowd}


def _find_files(records: Sequence[dict[str, Any]], root: Path, problems: _Problems, notes: _Problems) -> None:
    """Give records their files' paths: as named, or by the longest end that only one file has."""
    if not root.is_dir():
        problems.add(f"there is no image folder {root}")
        return
    listings: dict[str, set[str]] = {}
    below: dict[str, list[tuple[str, ...]]] | None = None
    taken: dict[str, str] = {}
    for record in records:
        given = record["file_name"]
        path = os.path.join(root, given)
        folder, base = os.path.split(path)
        if folder not in listings:  # one listing, not 118,000 questions
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            below = _files_below(root) if below is None else below
            found = _by_end(given, below)
            if len(found) != 1:
                kind = "several image files end in this name" if found else "an image file is missing"
                problems.add(kind, given)
                continue
            path = os.path.join(root, *found[0])
            notes.add("an image was found by the end of its name alone", f"{given} is {path}")
        if taken.setdefault(path, given) != given:
            problems.add("two names in the annotations fall on one image file", f"{taken[path]} and {given}")
        record["file_name"] = path


def _files_below(root: Path) -> dict[str, list[tuple[str, ...]]]:
    """Relative paths by file name; hidden folders and files are not looked at."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        parts = Path(folder).relative_to(root).parts
        for name in names:
            if not name.startswith("."):
                found.setdefault(unicodedata.normalize("NFC", name), []).append((*parts, name))
    return found


def _by_end(given: str, below: dict[str, list[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """The files that share most of the end of a name, its backslashes and %20 resolved."""
    plain = given.replace("\\", "/")
    for text in (plain, unquote(plain)):
        parts = [unicodedata.normalize("NFC", part) for part in text.split("/") if part]
        shared = {}
        for path in below.get(parts[-1], []) if parts else []:
            pairs = zip(reversed(parts), reversed(path), strict=False)
            equal = [one == unicodedata.normalize("NFC", other) for one, other in pairs]
            shared[path] = equal.index(False) if False in equal else len(equal)
        if shared:
            longest = max(shared.values())
            return [path for path, length in shared.items() if length == longest]
    return []
