"""Ranked lists, and what erasing takes away."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.baselines import RandomErasing
from keepaug.data.pictures import lettering
from keepaug.data.reading import read_image
from keepaug.keep import KeepRandomErasing
from keepaug.regions import Regions
from keepaug.runs.files import write_bytes_atomic
from keepaug.runs.seeds import make_generator
from reid.evaluation.erased import is_important
from reid.evaluation.protocol import check_features, distance_chunks

_RIGHT, _WRONG, _GREY = (0, 114, 178), (213, 94, 0), (120, 120, 120)  # told apart by the colour-blind
_FRAME, _GAP, _TEXT = 4, 6, 13


def draw_ranked_lists(
    path: str | Path,
    query_features: Tensor,
    gallery_features: Tensor,
    *,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_paths: Sequence[Path],
    gallery_paths: Sequence[Path],
    query_cameras: Tensor | None = None,
    gallery_cameras: Tensor | None = None,
    query_names: Sequence[str] = (),
    gallery_names: Sequence[str] = (),
    excluded: Tensor | None = None,
    metric: str = "cosine",
    num_queries: int = 8,
    queries: Sequence[int] | None = None,
    top: int = 10,
    size: tuple[int, int] = (128, 64),
) -> Path:
    """A row for each query: itself, then the nearest gallery images, blue frames with a tick right, orange
    ones with a cross wrong.

    Identity, camera and distance stand below each. What is junk for the query (its own camera, negative
    identities) is left out, as in the evaluation.

    Args:
        path: PNG file.
        query_features: (Q, D).
        gallery_features: (G, D).
        query_ids: (Q,) integer.
        gallery_ids: (G,) integer.
        query_paths: Q image files.
        gallery_paths: G image files.
        query_cameras: (Q,) integer; None for both ignores cameras.
        gallery_cameras: (G,) integer.
        query_names: Q texts below instead of the numbers of identity and camera, such as "ann, door".
        gallery_names: G texts.
        excluded: (M, 2) pairs of a query and a gallery image that are one file, and left out.
        metric: "cosine" (distance 1 - cosine) or "euclidean".
        num_queries: so many, evenly spaced over those with a match.
        queries: these instead.
        top: gallery images per query.
        size: (height, width) in pixels of an image in the picture.

    Returns:
        The path.

    Raises:
        ValueError: numbers that do not fit, or no query with a match.
    """
    check_features(query_features, gallery_features)
    if (query_cameras is None) != (gallery_cameras is None):
        raise ValueError("cameras must be given for queries and gallery, or for neither")
    for name, number, expected in (
        ("query_ids", len(query_ids), len(query_features)),
        ("query_paths", len(query_paths), len(query_features)),
        ("gallery_ids", len(gallery_ids), len(gallery_features)),
        ("gallery_paths", len(gallery_paths), len(gallery_features)),
    ):
        if number != expected:
            raise ValueError(f"{name} has {number} entries for {expected} features")

    def junk_of(query: int) -> Tensor:
        junk = gallery_ids < 0
        if query_cameras is not None and gallery_cameras is not None:
            junk |= (gallery_ids == query_ids[query]) & (gallery_cameras == query_cameras[query])
        if excluded is not None:
            junk[excluded[excluded[:, 0] == query, 1]] = True
        return junk

    if queries is None:
        matched = [q for q in range(len(query_ids)) if ((gallery_ids == query_ids[q]) & ~junk_of(q)).any()]
        if not matched:
            raise ValueError("no query has a match in the gallery: there is nothing to draw")
        count = min(num_queries, len(matched))
        queries = [matched[number * len(matched) // count] for number in range(count)]
    features = query_features[list(queries)]
    rows = torch.cat(list(distance_chunks(features, gallery_features, metric=metric)))
    if metric == "cosine":
        rows = 1 + rows
    else:
        rows = (rows + features.float().square().sum(dim=1, keepdim=True) / 2).mul(2).clamp(min=0).sqrt()
    lines = []
    for query, distances in zip(queries, rows, strict=True):
        kept = distances.masked_fill(junk_of(query).to(distances.device), torch.inf)
        order = kept.argsort(stable=True)[: min(top, int(torch.isfinite(kept).sum()))].tolist()
        line = [(query_paths[query], _GREY, _below(query_names, query_ids, query_cameras, query))]
        for place in order:
            right = bool(gallery_ids[place] == query_ids[query])
            named = _below(gallery_names, gallery_ids, gallery_cameras, place)
            text = f"{named}  {float(distances[place]):.3f}"
            line.append((gallery_paths[place], _RIGHT if right else _WRONG, text))
        lines.append(line)
    return _save(_sheet(lines, size, 1 + top), path)


def _below(names: Sequence[str], ids: Tensor, cameras: Tensor | None, index: int) -> str:
    if names:
        return names[index]
    return f"{int(ids[index])}" + ("" if cameras is None else f" c{int(cameras[index])}")


def _sheet(
    lines: Sequence[Sequence[tuple[Path, tuple[int, int, int], str]]], size: tuple[int, int], columns: int
) -> Image.Image:
    height, width = size
    font = lettering(_TEXT - 2)
    longest = max(font.getlength(text) for line in lines for _, _, text in line)
    cell_height = height + 2 * _FRAME + _TEXT + 4
    cell_width = max(width + 2 * _FRAME, 62, min(round(longest) + 2, 200))
    # The query stands apart by a wider gap.
    sheet = Image.new(
        "RGB", (columns * (cell_width + _GAP) + 2 * _GAP, len(lines) * (cell_height + _GAP) + _GAP), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        y = _GAP + row * (cell_height + _GAP)
        for column, (path, colour, text) in enumerate(line):
            x = _GAP + column * (cell_width + _GAP) + (_GAP if column else 0)
            frame = (x, y, x + width + 2 * _FRAME - 1, y + height + 2 * _FRAME - 1)
            pen.rectangle(frame, fill=colour)
            shown = ImageOps.pad(read_image(path), (width, height), Image.Resampling.BICUBIC, color="white")
            sheet.paste(shown, (x + _FRAME, y + _FRAME))
            _mark(pen, x, y, colour)
            while font.getlength(text) > cell_width + _GAP:
                text = text[:-2] + "…"
            pen.text((x, y + height + 2 * _FRAME + 1), text, fill="black", font=font)
    return sheet


def draw_erasing(
    path: str | Path,
    images: Tensor,
    heat: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    fill: str = "bot",
    tau: float = 0.6,
    seed: int = 0,
    titles: Sequence[str] = (),
) -> Path:
    """Four rows: the images, their saliency over them, what RandomErasing and what KeepRandomErasing erases.

    Both erase regions of the same sizes, framed thick and orange above the tau-quantile of
    importance, thin and blue elsewhere.

    Args:
        path: PNG file.
        images: (N, 3, H, W) normalized.
        heat: (N, H, W) saliency, >= 0.
        mean: of the normalization.
        std: of the normalization.
        area: smallest and largest share of the image.
        aspect: smallest and largest height / width.
        fill: of the erased regions, as in `RandomErasing`.
        tau: quantile.
        seed: of the regions.
        titles: of the images, their identities for example.

    Returns:
        The path.

    Raises:
        ValueError: no images, or shapes that do not fit.
    """
    if images.ndim != 4 or not len(images) or heat.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"expected (N, 3, H, W) images and (N, H, W) saliency, got {tuple(images.shape)} and "
            f"{tuple(heat.shape)}"
        )
    images, heat = images.detach().float().cpu(), heat.detach().float().cpu()
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))

    def pixels(batch: Tensor) -> Tensor:
        return (batch * scale + shift).clamp(0, 1)

    factor = max(1, round(1100 / (len(images) * (images.shape[3] + 4))))
    rows = [[_enlarged(image, factor) for image in pixels(images)]]
    rows.append([_enlarged(image, factor) for image in _warmed(pixels(images), heat)])
    for eraser in (
        RandomErasing(1.0, area, aspect, fill),
        KeepRandomErasing(1.0, area, aspect, fill, tau=tau),
    ):
        generator = make_generator(seed, "erasing")  # the same sizes
        regions = eraser.sample(images, heat, generator=generator)
        erased = pixels(eraser(images, heat, regions=regions, generator=generator))
        important = is_important(regions, heat, tau=tau).tolist()
        drawn = [_enlarged(image, factor) for image in erased]
        for index, (picture, bad) in enumerate(zip(drawn, important, strict=True)):
            _frame(picture, regions, index, factor, _WRONG if bad else _RIGHT)
        rows.append(drawn)
    sizes = f"{area[0]:.0%} to {area[1]:.0%} of the image"
    names = ("", "saliency", f"RandomErasing, {sizes}", f"KeepRandomErasing, {sizes}, tau {tau:g}")
    width, height = rows[0][0].size
    side = (len(images) * (width + 4) + 4, len(rows) * (height + _TEXT + _GAP) + 4)
    sheet = Image.new("RGB", side, "white")
    pen, font = ImageDraw.Draw(sheet), lettering(_TEXT - 1)
    for line, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = line * (height + _TEXT + _GAP)
        pen.text((4, y + 1), name, fill="black", font=font)
        for column, picture in enumerate(row):
            sheet.paste(picture, (4 + column * (width + 4), y + _TEXT + 4))
            if not name:
                title = titles[column] if titles else "image"
                pen.text((4 + column * (width + 4), y + 1), title, fill="black", font=font)
    return _save(sheet, path)


def _warmed(pixels: Tensor, heat: Tensor) -> Tensor:
    """Grey images with the saliency in red and yellow over them."""
    peak = heat.flatten(1).quantile(0.995, dim=1).clamp(min=1e-12)[:, None, None]
    strength = (heat / peak).clamp(0, 1).sqrt()[:, None]
    grey = pixels.mean(dim=1, keepdim=True).expand_as(pixels) * 0.7
    warm = torch.cat([torch.ones_like(strength), strength**2, torch.zeros_like(strength)], dim=1)
    return torch.lerp(grey, warm, 0.75 * strength)


def _enlarged(image: Tensor, factor: int) -> Image.Image:
    picture = to_pil_image((image * 255).round().to(torch.uint8))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _frame(
    picture: Image.Image, regions: Regions, index: int, factor: int, colour: tuple[int, int, int]
) -> None:
    top, left, height, width = (int(value[index]) * factor for value in regions)
    if height:
        box = (left, top, left + width - 1, top + height - 1)
        ImageDraw.Draw(picture).rectangle(box, outline=colour, width=5 if colour == _WRONG else 2)


def _mark(pen: ImageDraw.ImageDraw, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """A tick for right, a cross for wrong, in the corner: the colour alone says nothing to some."""
    strokes: list[list[tuple[int, int]]] = []
    if colour == _RIGHT:
        strokes = [[(3, 8), (6, 11), (12, 3)]]
    elif colour == _WRONG:
        strokes = [[(4, 4), (11, 11)], [(4, 11), (11, 4)]]
    if strokes:
        pen.rectangle((x, y, x + 15, y + 15), fill=colour)
    for stroke in strokes:
        pen.line([(x + right, y + down) for right, down in stroke], fill="white", width=2)


def _save(picture: Image.Image, path: str | Path) -> Path:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return write_bytes_atomic(path, buffer.getvalue())
