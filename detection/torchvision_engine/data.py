"""Images and boxes as Detectron2's mapper and sampler prepare them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detection.coco import CocoDataset
from keepaug.data.reading import read_image
from keepaug.runs.seeds import derive_seed, make_generator


class Sample(NamedTuple):
    """An image: (3, H, W) uint8 in INPUT.FORMAT, boxes (K, 4) x0, y0, x1, y1, labels (K,) from 0."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


def resized_shape(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Detectron2's ResizeShortestEdge: shorter side to `shortest`, longer one at most `longest`."""
    if shortest == 0:
        return height, width
    scale = shortest / min(height, width)
    new_height, new_width = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(new_height, new_width) > longest:
        factor = longest / max(new_height, new_width)
        new_height, new_width = new_height * factor, new_width * factor
    return int(new_height + 0.5), int(new_width + 0.5)


def load_image(record: dict[str, Any], color_order: str, shape: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8, turned upright by its EXIF mark, resized by PIL's bilinear filter.

    Raises:
        ValueError: see `read_image`; the size is not the annotations', so that the boxes would not fit.
    """
    image = read_image(record["file_name"], size=(record["height"], record["width"]))
    if shape != (image.height, image.width):
        image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return (pixels.flip(0) if color_order == "BGR" else pixels).contiguous()


def usable(dataset: CocoDataset, filter_empty: bool) -> list[dict[str, Any]]:
    """Records with at least one box that is not a crowd."""
    if not filter_empty:
        return dataset.records
    return [
        record
        for record in dataset.records
        if any(not annotation["iscrowd"] for annotation in record["annotations"])
    ]


def batches(records: list[dict[str, Any]], cfg: Any, seed: int) -> Iterator[list[int]]:
    """Endless batches of positions: shuffled epoch after epoch, wide and tall images apart if configured."""
    size, grouping = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.ASPECT_RATIO_GROUPING
    generator = make_generator(seed, "order")
    buckets: dict[bool, list[int]] = {True: [], False: []}
    while True:
        for position in torch.randperm(len(records), generator=generator).tolist():
            record = records[position]
            bucket = buckets[grouping and record["width"] > record["height"]]
            bucket.append(position)
            if len(bucket) == size:
                yield list(bucket)
                bucket.clear()


class TrainingBatches(Dataset[list[Sample]]):
    """Batches of the iterations `start` to MAX_ITER; all draws depend on seed and iteration alone."""

    def __init__(self, records: list[dict[str, Any]], cfg: Any, seed: int, start: int) -> None:
        self.records, self.cfg, self.seed, self.start = records, cfg, seed, start
        stream = batches(records, cfg, seed)
        plan = [next(stream) for _ in range(cfg.SOLVER.MAX_ITER)]
        self.plan = plan[start:]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> list[Sample]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "images", self.start + number))
        return [self._sample(self.records[position], generator) for position in self.plan[number]]

    def _sample(self, record: dict[str, Any], generator: torch.Generator) -> Sample:
        inputs = self.cfg.INPUT
        sizes = list(inputs.MIN_SIZE_TRAIN)
        if inputs.MIN_SIZE_TRAIN_SAMPLING == "range":
            shortest = int(torch.randint(sizes[0], sizes[1] + 1, (), generator=generator))
        else:
            shortest = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        flipped = inputs.RANDOM_FLIP == "horizontal" and bool(torch.rand((), generator=generator) < 0.5)
        height, width = resized_shape(record["height"], record["width"], shortest, inputs.MAX_SIZE_TRAIN)
        image = load_image(record, inputs.FORMAT, (height, width))
        kept = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
        boxes = torch.tensor([annotation["bbox"] for annotation in kept]).reshape(-1, 4)
        labels = torch.tensor([annotation["category_id"] for annotation in kept], dtype=torch.int64)
        boxes[:, 2:] += boxes[:, :2]
        boxes *= torch.tensor([width / record["width"], height / record["height"]] * 2)
        if flipped:
            image = image.flip(2)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2, dtype=torch.float32))
        real = (boxes[:, 2:] - boxes[:, :2] > 1e-5).all(dim=1)
        return Sample(image, boxes[real], labels[real])


class EvaluationImages(Dataset[Tensor]):
    """The images of `records`, resized for the test."""

    def __init__(self, records: list[dict[str, Any]], cfg: Any) -> None:
        self.records, self.cfg = records, cfg

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Tensor:
        record, inputs = self.records[number], self.cfg.INPUT
        shape = resized_shape(record["height"], record["width"], inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST)
        return load_image(record, inputs.FORMAT, shape)
