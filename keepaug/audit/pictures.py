"""Pictures side by side, each row with its name, and boxes around what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.regions import Regions

__all__ = ["enlarged", "grey_map", "labelled_sheet"]

_GAP, _HEAD, _LINE, _LETTER = 6, 22, 13, 7  # pixels


def grey_map(heat: Tensor) -> Tensor:
    """(3, H, W) uint8 of a map (H, W) >= 0; its square root, so that more than the peaks is seen."""
    grey = (heat / heat.max().clamp(min=1e-12)).sqrt() * 255
    return grey.to(torch.uint8).expand(3, -1, -1).contiguous()


def enlarged(image: Tensor, scale: int = 1, regions: Regions | None = None, index: int = 0) -> Image.Image:
    """An image (3, H, W) uint8 by a whole factor, with a white frame around a region where there is one."""
    picture = to_pil_image(image)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    if regions is not None and int(regions.area[index]):
        top, left, height, width = (int(part[index]) * scale for part in regions)
        frame = (left, top, left + width - 1, top + height - 1)
        ImageDraw.Draw(picture).rectangle(frame, outline="white", width=2)
    return picture


def labelled_sheet(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """A title above each column, and left of each row its label, which may have several lines.

    Args:
        titles: one per column.
        rows: label and pictures of one size; a row may be shorter than the titles.
    """
    width, height = rows[0][1][0].size
    lines = [line for label, _ in rows for line in label.splitlines()]
    margin = _GAP + _LETTER * max((len(line) for line in lines), default=0) + _GAP
    tall = max(height, *(_LINE * len(label.splitlines()) for label, _ in rows)) + _GAP
    sheet = Image.new("RGB", (margin + len(titles) * (width + _GAP), _HEAD + len(rows) * tall), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((margin + column * (width + _GAP), 5), title, fill="black")
    for row, (label, pictures) in enumerate(rows):
        pen.multiline_text((_GAP, _HEAD + row * tall), label, fill="black")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (margin + column * (width + _GAP), _HEAD + row * tall))
    return sheet
