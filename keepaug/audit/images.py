"""The audited images and, where they are known, the objects in them: folders, CIFAR, COCO, lists, tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from keepaug.data.cifar import load_cifar10
from keepaug.data.files import EXTENSIONS, find_images
from keepaug.data.folder import list_images
from keepaug.data.reading import read_image
from keepaug.runs.seeds import make_generator
from keepaug.runs.shapes import read_json

_ID = (int, str)
COCO = {
    "images": [{"id": _ID, "file_name": str, "height": int, "width": int, str: Any}],
    "annotations": [
        {"image_id": _ID, "category_id": _ID, "segmentation?": ([[float]], {str: Any}, None), str: Any}
    ],
    "categories": [{"id": _ID, "name": (str, float), str: Any}],
    str: Any,
}
"""What the audit needs of COCO annotations; boxes are checked where they count."""
_CROP = 224 / 256  # the share of the shorter side that a classifier is usually shown
_LEAST_SHOWN = 0.5  # of an object, for it to count
_LEAST_SIDE = 2.0  # pixels, likewise


class Objects(NamedTuple):
    """The known objects of one image.

    Attributes:
        boxes: (K, 4) float64 left, top, right, bottom in pixels of the image.
        labels: K names.
        outlines: for each, polygons as lists of x, y, x, y ... in pixels, or None for its box.
    """

    boxes: Tensor
    labels: list[str]
    outlines: list[list[list[float]] | None]


@dataclass(frozen=True)
class Source:
    """Images that can be read one by one.

    Attributes:
        name: for people.
        read: the i-th image, RGB.
        keys: what identifies each image, for checksums and for people.
        labels: class of each, or None.
        classes: their names, or None.
        objects: of the i-th image, or None where none are known.
    """

    name: str
    read: Callable[[int], Image.Image]
    keys: list[str]
    labels: list[int] | None = None
    classes: list[str] | None = None
    objects: Callable[[int], Objects] | None = None

    def __len__(self) -> int:
        return len(self.keys)


def open_source(
    data: Any, *, boxes: str | Path | None = None, use_labels: bool = True, split: str | None = None
) -> Source:
    """What the audit reads.

    Args:
        data: an image folder (`CLASS/*`, `{val,test,train}/CLASS/*`, or images alone), CIFAR-10's archive or
            its folder, a text file that lists images (a line each: path, or path, tab, class), a sequence of
            paths, or `(images, labels)` with images (N, 3, H, W) uint8 and labels (N,) or None, and as a
            third part, if known, boxes (N, 4) top/left/height/width.
        boxes: COCO's JSON for the folder's images; or drawn datasets' boxes.json, which is found by itself.
        use_labels: False leaves the classes aside.
        split: folder below `data`; None: the first of val, test, train that is there.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no images, or annotations that do not fit them.
    """
    source = _opened(data, boxes, split)
    if not len(source):
        raise ValueError(f"no images in {source.name} ({', '.join(EXTENSIONS)})")
    return source if use_labels else replace(source, labels=None, classes=None)


def _opened(data: Any, boxes: str | Path | None, split: str | None) -> Source:
    if isinstance(data, Source):
        return data
    if isinstance(data, str | Path):
        root = Path(data).expanduser()
        if not root.exists():
            raise FileNotFoundError(f"no images at {root}: expected a folder, CIFAR-10 or a list of files")
        if boxes is not None and Path(boxes).name != "boxes.json":
            return _coco(root, _find_boxes(root, Path(boxes).expanduser()))
        if root.is_file():
            return _cifar(root) if root.name.endswith(".tar.gz") else _listed(root)
        return _folder(root, split)
    if isinstance(data, tuple) and data and isinstance(data[0], Tensor):
        return _tensors(*data)
    if isinstance(data, Sequence) and all(isinstance(item, str | Path) for item in data):
        return _of_files(f"{len(data)} files", [Path(item).expanduser() for item in data])
    raise ValueError(
        f"data is {type(data).__name__}; expected a path, a sequence of paths, or (images uint8 (N, 3, H, "
        "W), labels or None)"
    )


def _key(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise FileNotFoundError(f"no image {path}") from error
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _of_files(name: str, paths: Sequence[Path], *known: Any) -> Source:
    return Source(name, lambda index: read_image(paths[index]), [_key(path) for path in paths], *known)


def _one_box(numbers: Sequence[float], label: str) -> Objects:
    top, left, height, width = numbers
    return Objects(torch.tensor([[left, top, left + width, top + height]]).double(), [label], [None])


def _cifar(root: Path) -> Source:
    _, (images, labels), classes = load_cifar10(root)
    return _tensors(images, labels, name=f"{root.name}, test", classes=classes)


def _tensors(
    images: Tensor,
    labels: Tensor | None = None,
    boxes: Tensor | None = None,
    *,
    name: str = "images in memory",
    classes: list[str] | None = None,
) -> Source:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have the shape ({len(images)},), got {tuple(labels.shape)}")
    if boxes is not None and boxes.shape != (len(images), 4):
        raise ValueError(f"boxes must have the shape ({len(images)}, 4), got {tuple(boxes.shape)}")

    def read(index: int) -> Image.Image:
        return Image.fromarray(images[index].permute(1, 2, 0).contiguous().numpy())

    def objects(index: int) -> Objects:
        assert boxes is not None
        label = "object" if labels is None else class_name(int(labels[index]), classes)
        return _one_box(boxes[index].tolist(), label)

    keys = [
        f"{number} {hashlib.sha256(image.contiguous().numpy().data).hexdigest()[:16]}"
        for number, image in enumerate(images)
    ]
    known = None if labels is None else labels.tolist()
    return Source(name, read, keys, known, classes, None if boxes is None else objects)


def class_name(label: int, classes: Sequence[str] | None) -> str:
    """Where there is one."""
    return classes[label] if classes is not None and label < len(classes) else f"class {label}"


def _folder(root: Path, split: str | None) -> Source:
    if split is not None and not (root / split).is_dir():
        raise FileNotFoundError(f"no folder {root / split}")
    if (root / "cifar-10-batches-py").is_dir() or (root / "cifar-10-python.tar.gz").is_file():
        return _cifar(root)
    names = [split] if split else ["val", "test", "train"]
    chosen = next((root / name for name in names if (root / name).is_dir()), root)
    paths, folders = find_images(chosen)
    if folders:
        paths, found, classes = list_images(chosen)
        labels: list[int] | None = found.tolist()
    else:
        labels, classes = None, None  # type: ignore[assignment]
    name = root.name if chosen == root else f"{root.name}/{chosen.name}"
    drawn = root / "boxes.json"
    objects = _drawn_boxes(drawn, root, paths) if drawn.is_file() else None
    return _of_files(name, paths, labels, classes, objects)


def _drawn_boxes(file: Path, root: Path, paths: Sequence[Path]) -> Callable[[int], Objects]:
    known: Mapping[str, Sequence[float]] = read_json(file, {str: [float]})
    names = [path.relative_to(root).as_posix() for path in paths]
    if wrong := [name for name in names if len(known.get(name, ())) != 4]:
        raise ValueError(
            f"{file} has no four numbers (top, left, height, width) for {len(wrong)} images, for example "
            f"{wrong[0]}"
        )

    def objects(index: int) -> Objects:
        return _one_box(known[names[index]], paths[index].parent.name)

    return objects


def _listed(file: Path) -> Source:
    paths, names = [], []
    try:
        lines = file.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no text: expected a folder of images, CIFAR-10's archive (.tar.gz), or a text file "
            "that lists images"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, tab, label = line.partition("\t")
        full = Path(path.strip()).expanduser()
        full = full if full.is_absolute() else file.parent / full
        if not full.is_file():
            raise FileNotFoundError(f"{file}, line {number}: no image {full}")
        paths.append(full)
        names.append(label.strip() if tab else "")
    classes = sorted(set(names)) if names and all(names) else None
    labels = [classes.index(name) for name in names] if classes else None
    return _of_files(file.name, paths, labels, classes)


def _find_boxes(root: Path, boxes: Path) -> Path:
    """The annotations as given, or in COCO's usual place beside the images."""
    places = [boxes, root / boxes, root.parent / "annotations" / boxes.name, root.parent / boxes.name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"no annotations {boxes}, nor {places[2]}")


def _coco(root: Path, file: Path) -> Source:
    content = read_json(file, COCO)
    images, annotations = content["images"], content["annotations"]
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    kept = [image for image in images if by_image.get(image["id"])]
    for image in kept:
        for annotation in by_image[image["id"]]:
            _check_box(annotation, image, file)
    paths = [root / image["file_name"] for image in kept]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{file} names {path}, which is not there")

    def objects(index: int) -> Objects:
        found = by_image[kept[index]["id"]]
        boxes = torch.tensor([annotation["bbox"] for annotation in found], dtype=torch.float64)
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        labels = [names.get(one["category_id"], str(one["category_id"])) for one in found]
        outlines = [annotation.get("segmentation") for annotation in found]
        return Objects(corners, labels, [one if isinstance(one, list) and one else None for one in outlines])

    def read(index: int) -> Image.Image:
        return read_image(paths[index], size=(kept[index]["height"], kept[index]["width"]))

    return Source(f"{root.name} with {file.name}", read, [_key(path) for path in paths], objects=objects)


def _check_box(annotation: Mapping[str, Any], image: Mapping[str, Any], file: Path) -> None:
    try:
        left, top, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: annotation {annotation.get('id')} has no box of four numbers") from error
    inside = left + width <= image["width"] + 1 and top + height <= image["height"] + 1
    if not (inside and min(left, top) >= -1 and min(width, height) > 0):
        raise ValueError(
            f"{file}: the box [{left:g}, {top:g}, {width:g}, {height:g}] (left, top, width, height) of "
            f"annotation {annotation.get('id')} does not lie within its image {image['file_name']} of "
            f"{image['width']} x {image['height']} pixels (width x height); correct or remove it"
        )


class Sample:
    """A seeded sample of a source, fitted to what the network is shown.

    Args:
        source: of images.
        num: how many; all where there are fewer.
        size: side of the square that the network is shown: the middle of the image, 7/8 of its shorter side;
            None: the images as they are, which must then be of one size.
        seed: of the sample.

    Raises:
        ValueError: no size, and the first images differ in theirs.
    """

    def __init__(self, source: Source, num: int, size: int | None, seed: int) -> None:
        if num < 1:
            raise ValueError(f"the number of images must be 1 or more, got {num}")
        order = torch.randperm(len(source), generator=make_generator(seed, "audit", "sample"))
        self.source = source
        self.positions: list[int] = order[:num].tolist()
        self.size = size
        self.num_objects, self.num_left_out = 0, 0
        self._first = self.source.read(self.positions[0]).size
        self._labels: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the images as the network sees them."""
        return (self.size, self.size) if self.size else (self._first[1], self._first[0])

    @property
    def object_names(self) -> list[str]:
        """Of the classes of objects met so far."""
        return list(self._labels)

    @property
    def checksum(self) -> str:
        """Of the sampled images' keys and of how they are fitted."""
        text = "\n".join([str(self.size), *(self.source.keys[position] for position in self.positions)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """A batch.

        Returns:
            images (N, 3, H, W) uint8, labels (N,) or None, and the objects of all of them: masks (K, H, W)
            bool, image (K,) counted from 0 in the batch, class (K,) index into `object_names`.

        Raises:
            ValueError: an unreadable image, or one of another size where all must have one.
        """
        images, masks, owners, kinds = [], [], [], []
        chosen = self.positions[start:stop]
        for number, position in enumerate(chosen):
            image = self.source.read(position)
            if self.size is None and image.size != self._first:
                raise ValueError(
                    f"the images differ in size ({self.source.keys[position].rsplit(' ', 2)[0]} is "
                    f"{image.size[0]} x {image.size[1]}, the first {self._first[0]} x {self._first[1]}, "
                    "width x height) and the network does not say what it was trained with: give size "
                    "(--side)"
                )
            fitted, left, top, scale = _fit(image, self.size)
            images.append(pil_to_tensor(fitted))
            if self.source.objects is not None:
                for mask, name in self._masks(self.source.objects(position), left, top, scale):
                    masks.append(mask)
                    owners.append(number)
                    kinds.append(self._labels.setdefault(name, len(self._labels)))
        labels = self.source.labels
        height, width = self.shape
        return (
            torch.stack(images),
            None if labels is None else torch.tensor([labels[position] for position in chosen]),
            torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
            torch.tensor(owners, dtype=torch.int64),
            torch.tensor(kinds, dtype=torch.int64),
        )

    def _masks(self, objects: Objects, left: float, top: float, scale: float) -> list[tuple[Tensor, str]]:
        height, width = self.shape
        found = []
        for box, label, outline in zip(objects.boxes.tolist(), objects.labels, objects.outlines, strict=True):
            self.num_objects += 1
            pairs = zip(box, (left, top) * 2, strict=True)
            x0, y0, x1, y1 = ((value - shift) * scale for value, shift in pairs)
            inside = [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]
            sides = (inside[2] - inside[0], inside[3] - inside[1])
            whole = max((x1 - x0) * (y1 - y0), 1e-9)
            if min(sides) < _LEAST_SIDE or sides[0] * sides[1] < _LEAST_SHOWN * whole:
                self.num_left_out += 1
                continue
            mask = torch.zeros(height, width, dtype=torch.bool)
            if outline is not None:
                mask = _filled(outline, left, top, scale, (height, width))
            if not bool(mask.any()):
                rows, columns = (
                    slice(round(inside[1]), round(inside[3])),
                    slice(round(inside[0]), round(inside[2])),
                )
                mask[rows, columns] = True
            found.append((mask, label))
        return found


def _filled(
    outline: Sequence[Sequence[float]], left: float, top: float, scale: float, shape: tuple[int, int]
) -> Tensor:
    canvas = Image.new("1", (shape[1], shape[0]))
    pen = ImageDraw.Draw(canvas)
    for polygon in outline:
        pairs = zip(polygon[::2], polygon[1::2], strict=False)
        points = [((x - left) * scale, (y - top) * scale) for x, y in pairs]
        if len(points) >= 3:
            pen.polygon(points, fill=1)
    return torch.from_numpy(np.array(canvas))


def _fit(image: Image.Image, size: int | None) -> tuple[Image.Image, float, float, float]:
    """The image as the network sees it, and the corner and scale that take its pixels there."""
    if size is None or image.size == (size, size):
        return image, 0.0, 0.0, 1.0
    width, height = image.size
    side = min(width, height) * (_CROP if size > 64 else 1.0)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box), left, top, size / side
