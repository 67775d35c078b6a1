"""Datasets drawn by the program: a small object whose box is known, on a cluttered background.

The class of an image (or of a detection box) is the shape of a small object; its colour, size, place and
slant say nothing, nor does the background of gradients, strokes, blobs and noise. As the box is known, it can
be measured how often an augmentation destroys the object. Everything is drawn in batches by torch operations
from one seed and written in the formats of the real datasets, so that the real loaders read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keepaug.data.drawing import (
    blend,
    draw_backgrounds,
    finish_folder,
    named_stream,
    prepare_folder,
    save_png,
    tight_boxes,
    to_uint8,
    turned,
    uniform,
)

_CHUNK = 128


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _radius(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.24, 0.88), _box(x, y, 0.88, 0.24))


# Each shape is a signed distance, in units of half the object's side, negative inside.
_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bars": lambda x, y: torch.minimum(_box(x, y.abs() - 0.62, 0.8, 0.17), _box(x, y, 0.8, 0.17)),
    "crescent": lambda x, y: torch.maximum(_radius(x, y) - 0.85, 0.7 - ((x - 0.45) ** 2 + y * y).sqrt()),
    "cross": _cross,
    "disc": lambda x, y: _radius(x, y) - 0.82,
    "ring": lambda x, y: (_radius(x, y) - 0.62).abs() - 0.2,
    "saltire": lambda x, y: _cross((x + y) * math.sqrt(0.5), (x - y) * math.sqrt(0.5)),
    "tee": lambda x, y: torch.minimum(_box(x, y + 0.6, 0.82, 0.22), _box(x, y - 0.1, 0.22, 0.72)),
    "triangle": lambda x, y: torch.maximum(y - 0.62, x.abs() * 0.88 - y * 0.48 - 0.42),
    "square": lambda x, y: _box(x, y, 0.72, 0.72),
    "hourglass": lambda x, y: torch.maximum(y.abs() - 0.8, (x.abs() - y.abs() * 0.85 - 0.08) * 0.76),
}
CLASSES: tuple[str, ...] = tuple(_SHAPES)
"""Names of the shapes; a dataset of k classes uses the first k, sorted by name."""


class LabelledImages(NamedTuple):
    """One object each: images (N,3,H,W) uint8, labels (N,) int64, boxes (N,4) int64 top/left/height/width."""

    images: Tensor
    labels: Tensor
    boxes: Tensor


class DetectionImages(NamedTuple):
    """Images with several objects: lists of (K,4) boxes and (K,) labels, int64, one each per image."""

    images: Tensor
    labels: list[Tensor]
    boxes: list[Tensor]


def draw_objects(
    canvas: Tensor,
    labels: Tensor,
    centres: Tensor,
    sides: Tensor,
    *,
    classes: Sequence[str] = CLASSES,
    colour_cue: float = 0.0,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw one object on each image: a filled shape with an outline, slightly slanted.

    Args:
        canvas: (N,3,H,W) float32 in [0, 1], left as it is.
        labels: (N,) int64 index into `classes`.
        centres: (N,2) float, y and x in pixels.
        sides: (N,) float, side of the square the shape is drawn in, in pixels.
        classes: names out of `CLASSES`.
        colour_cue: 0 draws random colours, so that the shape alone tells the class; up to 1 gives each class
            its own hue, which a network learns in far fewer steps.
        generator: the only source of randomness.

    Returns:
        The drawn images (N,3,H,W) and the tight boxes (N,4) int64 top/left/height/width of what was drawn.

    Raises:
        ValueError: when an object lies outside the image altogether.
    """
    num, _, height, width = canvas.shape
    slant = uniform((num,), -0.25, 0.25, generator)
    x, y = turned((height, width), centres[:, 0], centres[:, 1], slant)
    half = (sides / 2).view(-1, 1, 1)
    distance = torch.empty(num, height, width)
    for index, name in enumerate(classes):
        chosen = labels == index
        if bool(chosen.any()):
            distance[chosen] = _SHAPES[name](x[chosen] / half[chosen], y[chosen] / half[chosen])
    distance = distance * half  # in pixels
    # A light fill in a dark outline or the reverse: visible on any background.
    light = uniform((num, 3), 0.65, 1.0, generator)
    light = light * (1 - colour_cue) + colour_cue * _hues(len(classes))[labels]
    dark = uniform((num, 3), 0.0, 0.3, generator)
    swap = torch.rand(num, 1, generator=generator) < 0.5
    fill, outline = torch.where(swap, dark, light), torch.where(swap, light, dark)
    border = 0.09 * half
    outside = (border + 0.5 - distance).clamp_(0, 1)
    inside = (0.5 - distance).clamp_(0, 1)
    drawn = blend(blend(canvas, outside, outline), inside, fill)

    boxes = tight_boxes(outside > 0.5)
    if not bool((boxes[:, 2] > 0).all()):
        raise ValueError("an object lies outside its image: move its centre inside or make it larger")
    return drawn, boxes


def _hues(num: int) -> Tensor:
    """(num, 3) saturated colours, evenly spread over the colour circle."""
    angle = torch.arange(num)[:, None] / num * 2 * math.pi + torch.tensor([0.0, 2.0, 4.0]) * math.pi / 3
    return 0.5 + 0.5 * torch.cos(angle)


def _check_classes(num_classes: int) -> tuple[str, ...]:
    if not 2 <= num_classes <= len(CLASSES):
        raise ValueError(f"num_classes is {num_classes}; there are {len(CLASSES)} shapes: choose 2 to that")
    return tuple(sorted(CLASSES[:num_classes]))


def draw_classification(
    num: int,
    *,
    size: tuple[int, int] = (64, 64),
    num_classes: int = 8,
    object_share: tuple[float, float] = (0.26, 0.36),
    noise: float = 0.06,
    colour_cue: float = 0.0,
    generator: torch.Generator,
) -> LabelledImages:
    """Images with one object each, the classes as equally frequent as `num` allows.

    Args:
        num: number of images.
        size: (height, width) in pixels.
        num_classes: the first so many of `CLASSES`.
        object_share: smallest and largest side of the object as a share of the image's shorter side.
        noise: largest standard deviation of the pixel noise, for pixels in [0, 1].
        colour_cue: how far each class has its own hue, see `draw_objects`.
        generator: the only source of randomness.

    Returns:
        `LabelledImages`; label i is the i-th of the class names sorted.

    Raises:
        ValueError: when a size or a share is out of range.
    """
    classes = _check_classes(num_classes)
    height, width = size
    if min(size) < 16:
        raise ValueError(f"size is {size}; objects can be told apart from 16 pixels on")
    low, high = object_share
    if not 0 < low <= high <= 0.9:
        raise ValueError(f"object_share is {object_share}; give (low, high) with 0 < low <= high <= 0.9")
    order = torch.arange(num) % num_classes
    labels = order[torch.randperm(num, generator=generator)]
    parts = []
    for part in labels.split(_CHUNK):
        sides = uniform((len(part),), low, high, generator) * min(size)
        free = torch.stack([height - sides, width - sides], dim=1)
        centres = torch.rand(len(part), 2, generator=generator) * free + sides.unsqueeze(1) / 2
        canvas = draw_backgrounds(len(part), size, generator=generator)
        canvas, boxes = draw_objects(
            canvas, part, centres, sides, classes=classes, colour_cue=colour_cue, generator=generator
        )
        parts.append((to_uint8(canvas, noise, generator), boxes))
    if not parts:
        return LabelledImages(torch.empty(0, 3, *size, dtype=torch.uint8), labels, labels.new_empty(0, 4))
    return LabelledImages(torch.cat([p[0] for p in parts]), labels, torch.cat([p[1] for p in parts]))


def draw_detection(
    num: int,
    *,
    size: tuple[int, int] = (128, 128),
    num_classes: int = 8,
    objects: tuple[int, int] = (1, 4),
    object_sides: tuple[float, float] = (17.0, 24.0),
    noise: float = 0.06,
    colour_cue: float = 0.0,
    generator: torch.Generator,
) -> DetectionImages:
    """Images with several objects that do not overlap.

    Args:
        num: number of images.
        size: (height, width) in pixels.
        num_classes: the first so many of `CLASSES`.
        objects: fewest and most objects in an image.
        object_sides: smallest and largest side of an object in pixels.
        noise: largest standard deviation of the pixel noise, for pixels in [0, 1].
        colour_cue: how far each class has its own hue, see `draw_objects`.
        generator: the only source of randomness.

    Returns:
        `DetectionImages`.

    Raises:
        ValueError: when the image cannot hold that many objects.
    """
    classes = _check_classes(num_classes)
    height, width = size
    # Each object gets a cell of its own, somewhat larger than itself, and a random place in it.
    cell = 1.3 * object_sides[1]
    rows, columns = int(height // cell), int(width // cell)
    fewest, most = objects
    if not 1 <= fewest <= most <= rows * columns:
        raise ValueError(
            f"objects is {objects}; an image of {height}x{width} holds 1 to {rows * columns} objects of up "
            f"to {object_sides[1]:g} pixels"
        )
    images: list[Tensor] = []
    all_labels: list[Tensor] = []
    all_boxes: list[Tensor] = []
    for start in range(0, num, _CHUNK):
        count = min(_CHUNK, num - start)
        canvas = draw_backgrounds(count, size, generator=generator)
        per_image = torch.randint(fewest, most + 1, (count,), generator=generator)
        cells = torch.rand(count, rows * columns, generator=generator).argsort(dim=1)[:, :most]
        labels = torch.randint(num_classes, (count, most), generator=generator)
        sides = uniform((count, most), *object_sides, generator)
        jitter = torch.rand(count, most, 2, generator=generator)
        steps = torch.tensor([height / rows, width / columns])
        corners = torch.stack([cells // columns, cells % columns], dim=-1) * steps
        centres = corners + jitter * (steps - sides.unsqueeze(-1)) + sides.unsqueeze(-1) / 2
        boxes = torch.zeros(count, most, 4, dtype=torch.int64)
        for slot in range(most):
            chosen = (per_image > slot).nonzero().squeeze(1)
            canvas[chosen], boxes[chosen, slot] = draw_objects(
                canvas[chosen],
                labels[chosen, slot],
                centres[chosen, slot],
                sides[chosen, slot],
                classes=classes,
                colour_cue=colour_cue,
                generator=generator,
            )
        images.append(to_uint8(canvas, noise, generator))
        all_labels += [row[:k] for row, k in zip(labels, per_image.tolist(), strict=True)]
        all_boxes += [row[:k] for row, k in zip(boxes, per_image.tolist(), strict=True)]
    drawn = torch.cat(images) if images else torch.empty(0, 3, height, width, dtype=torch.uint8)
    return DetectionImages(drawn, all_labels, all_boxes)


def _identity(
    kind: str, classes: Sequence[str], num_train: int, num_val: int, **settings: Any
) -> dict[str, object]:
    """What dataset.json says of a drawn dataset."""
    return {
        "name": f"synthetic-{kind}",
        "synthetic": True,
        "classes": list(classes),
        "sizes": {"train": num_train, "val": num_val},
        "settings": {key: list(one) if isinstance(one, tuple) else one for key, one in settings.items()},
    }


def write_classification(
    root: Path | str,
    *,
    num_train: int = 2000,
    num_val: int = 500,
    size: tuple[int, int] = (64, 64),
    num_classes: int = 8,
    object_share: tuple[float, float] = (0.26, 0.36),
    noise: float = 0.06,
    colour_cue: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write an image folder `root/{train,val}/CLASS/*.png` with `boxes.json` and `dataset.json`.

    A folder that holds the very dataset is left as it is.

    Returns:
        The root.

    Raises:
        ValueError: the folder holds something else; an argument is out of range (see `draw_classification`).
    """
    root, classes = Path(root), _check_classes(num_classes)
    drawing: dict[str, Any] = {
        "size": size,
        "object_share": object_share,
        "noise": noise,
        "colour_cue": colour_cue,
    }
    identity = _identity("classification", classes, num_train, num_val, **drawing, seed=seed)
    if (partial := prepare_folder(root, identity)) is None:
        return root
    boxes: dict[str, list[int]] = {}
    for split, num in (("train", num_train), ("val", num_val)):
        generator = named_stream(seed, "classification", split)
        drawn = draw_classification(num, num_classes=num_classes, **drawing, generator=generator)
        for name in classes:
            (partial / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(num):
            path = f"{split}/{classes[int(drawn.labels[index])]}/{index:05d}.png"
            save_png(drawn.images[index], partial / path)
            boxes[path] = drawn.boxes[index].tolist()
    (partial / "boxes.json").write_text(json.dumps(boxes) + "\n")
    finish_folder(partial, root, identity)
    return root


def write_detection(
    root: Path | str,
    *,
    num_train: int = 200,
    num_val: int = 100,
    size: tuple[int, int] = (128, 128),
    num_classes: int = 8,
    objects: tuple[int, int] = (1, 4),
    object_sides: tuple[float, float] = (17.0, 24.0),
    noise: float = 0.06,
    colour_cue: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write COCO's layout: `root/{train2017,val2017}/*.png` and
    `root/annotations/instances_{train,val}2017.json`.

    Category ids count from 1 as COCO's do. A folder that holds the very dataset is left as it is.

    Returns:
        The root.

    Raises:
        ValueError: the folder holds something else, or an argument is out of range (see `draw_detection`).
    """
    root, classes = Path(root), _check_classes(num_classes)
    drawing: dict[str, Any] = {"size": size, "objects": objects, "object_sides": object_sides, "noise": noise}
    drawing["colour_cue"] = colour_cue
    identity = _identity("detection", classes, num_train, num_val, **drawing, seed=seed)
    if (partial := prepare_folder(root, identity)) is None:
        return root
    (partial / "annotations").mkdir()
    for split, num in (("train", num_train), ("val", num_val)):
        generator = named_stream(seed, "detection", split)
        drawn = draw_detection(num, num_classes=num_classes, **drawing, generator=generator)
        folder = partial / f"{split}2017"
        folder.mkdir()
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for index in range(num):
            file_name = f"{index + 1:012d}.png"
            save_png(drawn.images[index], folder / file_name)
            images.append({"id": index + 1, "file_name": file_name, "height": size[0], "width": size[1]})
            for label, box in zip(drawn.labels[index].tolist(), drawn.boxes[index].tolist(), strict=True):
                top, left, height, width = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": label + 1,
                        "bbox": [left, top, width, height],
                        "area": height * width,
                        "iscrowd": 0,
                        "segmentation": [],
                    }
                )
        document = {
            "info": {"description": "drawn by keepaug.data.synthetic"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(classes, 1)
            ],
        }
        (partial / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document) + "\n")
    finish_folder(partial, root, identity)
    return root
