"""Sheets of small pictures with their names: what an augmentation does to a few images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.regions import Regions
from keepaug.runs.files import write_atomic

_GAP = 6  # pixels
_WIDTH = 1100  # of a sheet of views, about


def lettering(size: int) -> Any:
    """A font of `size` pixels: DejaVu Sans, which has many alphabets, or Pillow's own, which has ASCII."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size=size)


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
        titles: one per column; what is wider than its column is cut short.
        rows: label and pictures of one size; a row may be shorter than the titles.
    """
    width, height = rows[0][1][0].size
    letters = min(max(15, width // 7), 24)  # pixels
    font = lettering(letters)
    margin = max(font.getlength(line) for label, _ in rows for line in label.split("\n"))
    margin = round(margin) + 2 * _GAP
    head, line = (letters + 2 * _GAP if any(titles) else _GAP), letters + 4
    tall = max(height, *(line * len(label.split("\n")) for label, _ in rows)) + _GAP
    sheet = Image.new("RGB", (margin + len(titles) * (width + _GAP), head + len(rows) * tall), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        while font.getlength(title) > width:
            title = title[:-2] + "…"
        pen.text((margin + column * (width + _GAP), _GAP), title, fill="black", font=font)
    for row, (label, pictures) in enumerate(rows):
        pen.multiline_text((_GAP, head + row * tall), label, fill="black", font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (margin + column * (width + _GAP), head + row * tall))
    return sheet


def draw_views(
    rows: Sequence[tuple[str, Tensor]],
    heat: Tensor,
    path: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    titles: Sequence[str] = (),
) -> Path:
    """The first row, then the saliency, then the others; one column for each image.

    Args:
        rows: label and (N, 3, H, W) normalised images of each, such as images and training input.
        heat: (N, h, w) saliency of the first; shown at the images' size.
        path: PNG file.
        mean: of the normalisation.
        std: of the normalisation.
        titles: of the N images, their classes for example.
    """
    num, _, height, width = rows[0][1].shape
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    if heat.shape[1:] != (height, width):
        heat = F.interpolate(heat[:, None], size=(height, width), mode="nearest")[:, 0]
    shown = [
        (label, ((views.float().cpu() * scale + shift).clamp(0, 1) * 255).round().to(torch.uint8))
        for label, views in rows
    ]
    shown.insert(1, ("saliency", torch.stack([grey_map(one) for one in heat.cpu()])))
    factor = max(1, round(_WIDTH / (num * (width + _GAP))))
    pictures = [(label, [enlarged(one, factor) for one in views]) for label, views in shown]
    sheet = labelled_sheet([*titles, *[""] * (num - len(titles))], pictures)
    return write_atomic(path, lambda file: sheet.save(file, "PNG"))
