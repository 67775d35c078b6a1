"""Pictures of predictions next to the ground truth."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from detection.coco import CocoDataset
from keepaug.data.pictures import lettering
from keepaug.data.reading import read_image

_MARGIN, _HEADER, _LETTERS = 6, 30, 22  # pixels


def colour_of(index: int) -> tuple[int, int, int]:
    """A colour for a class: hues a golden ratio apart, so that neighbouring numbers differ."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.85, 0.95 - 0.25 * (index % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Image.Image, boxes: Sequence[tuple[Sequence[float], int, str]], *, scale: float = 1.0
) -> Image.Image:
    """A copy of `image`, `scale` times as large, with labelled boxes.

    Args:
        image: an RGB image.
        boxes: ([x, y, width, height] in pixels of `image`, class number, label).
        scale: enlargement.
    """
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    font = lettering(_LETTERS - 4)
    # Large boxes first, so that small ones and their labels stay on top.
    for (x, y, width, height), index, label in sorted(boxes, key=lambda item: -item[0][2] * item[0][3]):
        colour = colour_of(index)
        left, top = x * scale, y * scale
        right, bottom = (x + width) * scale, (y + height) * scale
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
        if not label:
            continue
        _, _, text_width, text_height = draw.textbbox((0, 0), label, font=font)
        text_left = min(max(0.0, left), max(0.0, canvas.width - text_width - 4.0))
        above = top - text_height - 3
        text_top = above if above >= 0 else min(max(0.0, top + 1), canvas.height - text_height - 3.0)
        right, bottom = text_left + text_width + 3, text_top + text_height + 2
        draw.rectangle((text_left, text_top, right, bottom), fill=colour)
        brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        draw.text((text_left + 2, text_top), label, fill="black" if brightness > 140 else "white", font=font)
    return canvas


def draw_predictions(
    dataset: CocoDataset,
    results: Sequence[dict[str, Any]],
    folder: str | Path,
    *,
    num_images: int = 16,
    columns: int = 2,
    rows: int = 4,
    min_score: float = 0.5,
    max_boxes: int = 20,
    side: int = 480,
) -> list[Path]:
    """Write PNG grids: each cell shows one image twice, the ground truth at left, the predictions at right.

    Args:
        dataset: the split that was predicted.
        results: COCO results with the annotation file's category ids.
        folder: where `predictions_1.png`, ... go.
        num_images: how many images to draw, evenly spaced over the split.
        columns: cells side by side in a file.
        rows: cells below each other in a file.
        min_score: predictions below are not drawn.
        max_boxes: at most so many predictions an image, the best ones.
        side: the longer side of a drawn image in pixels; smaller images are enlarged.

    Returns:
        The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index_of = {json_id: index for index, json_id in enumerate(dataset.contiguous_to_json_id)}
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for result in results:
        if result["score"] >= min_score:
            by_image.setdefault(result["image_id"], []).append(result)
    count = min(num_images, len(dataset.records))
    chosen = [dataset.records[i * len(dataset.records) // count] for i in range(count)]
    cells = []
    for record in chosen:
        image_id = dataset.json_image_ids[record["image_id"] - 1]
        best = sorted(by_image.get(image_id, []), key=lambda result: -result["score"])
        truth = [
            (a["bbox"], a["category_id"], dataset.thing_classes[a["category_id"]])
            for a in record["annotations"]
        ]
        predicted = []
        for result in best[:max_boxes]:
            index = index_of[result["category_id"]]
            label = f"{dataset.thing_classes[index]} {100 * result['score']:.0f}%"
            predicted.append((result["bbox"], index, label))
        cells.append(_cell(record, truth, predicted, side, f"score at least {100 * min_score:.0f}%"))
    written = []
    for number, start in enumerate(range(0, len(cells), columns * rows), start=1):
        path = folder / f"predictions_{number}.png"
        _grid(cells[start : start + columns * rows], columns).save(path)
        written.append(path)
    return written


def _cell(record: dict[str, Any], truth: Any, predicted: Any, side: int, note: str) -> Image.Image:
    image = read_image(record["file_name"])
    scale = side / max(image.size)
    pictures = [draw_boxes(image, boxes, scale=scale) for boxes in (truth, predicted)]
    width, height = pictures[0].size
    cell = Image.new("RGB", (2 * width + _MARGIN, height + _HEADER), "white")
    draw = ImageDraw.Draw(cell)
    font = lettering(_LETTERS - 2)
    draw.text((2, 2), f"{Path(record['file_name']).name}: {len(truth)} annotated", fill="black", font=font)
    draw.text((width + _MARGIN + 2, 2), f"{len(predicted)} predicted, {note}", fill="black", font=font)
    cell.paste(pictures[0], (0, _HEADER))
    cell.paste(pictures[1], (width + _MARGIN, _HEADER))
    return cell


def _grid(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    width = max(cell.width for cell in cells) + 2 * _MARGIN
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) + _MARGIN for line in lines]
    sheet = Image.new("RGB", (width * min(columns, len(cells)), sum(heights) + _MARGIN), "white")
    top = _MARGIN
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (column * width + _MARGIN, top))
        top += height
    return sheet
