"""Sheets show each picture in its place, and say what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from keepaug.data.pictures import draw_views, enlarged, labelled_sheet
from keepaug.regions import Regions


def sheet_of(colours: list[list[int]], titles: list[str], labels: list[str]) -> np.ndarray:
    rows = [
        (label, [Image.new("RGB", (60, 40), (grey,) * 3) for grey in row])
        for label, row in zip(labels, colours, strict=True)
    ]
    return np.array(labelled_sheet(titles, rows))


def test_every_picture_is_at_its_place_and_has_its_names() -> None:
    pixels = sheet_of(
        [[10, 20, 30], [40, 50]], ["cat", "a very long name of a class", ""], ["image", "with Keep\ntau 0.6"]
    )
    left = pixels.shape[1] - 3 * 66
    found = [int(pixels[y, left + 66 * column + 30, 0]) for y in (47, 93) for column in range(3)]
    assert found == [10, 20, 30, 40, 50, 255]
    head, side = pixels[:27, left:], pixels[27:, : left - 6]
    assert (head[:, :60] < 128).any()  # a title above its column ...
    assert (head[:, 66:126] < 128).any()
    assert (head[:, 126:] == 255).all()  # ... that does not run into the next
    assert (side[:46] < 128).any()
    assert (side[46:] < 128).any()


def test_without_titles_there_is_no_empty_line() -> None:
    assert len(sheet_of([[1]], [""], ["a"])) < len(sheet_of([[1]], ["x"], ["a"]))


def test_views_are_the_images_the_map_and_what_is_trained_on(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 3, 8, 10), generator=generator, dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    views = (images / 255 - shift) / scale
    heat = torch.rand(3, 4, 5, generator=generator)
    path = draw_views(
        [("a", views), ("b", -views)], heat, tmp_path / "v.png", mean=mean, std=std, titles=["x"]
    )
    pixels, factor = np.array(Image.open(path)), round(1100 / (3 * 16))
    height, width = 8 * factor + 6, 10 * factor + 6
    left, top = pixels.shape[1] - 3 * width, len(pixels) - 3 * height
    for column in range(3):
        cell = pixels[top:, left + column * width :][: 8 * factor : factor, : 10 * factor : factor]
        assert (cell == images[column].permute(1, 2, 0).numpy()).all()
        lit = pixels[top + height :, left + column * width :][: 8 * factor : factor, : 10 * factor : factor]
        small = lit[::2, ::2].astype(float)
        assert (lit == np.repeat(np.repeat(lit[::2, ::2], 2, 0), 2, 1)).all()
        expected = 255 * (heat[column] / heat[column].max()).sqrt().numpy()
        assert np.abs(small - expected[..., None]).max() <= 1


def test_a_region_is_framed_at_its_place() -> None:
    regions = Regions(*(torch.tensor([value]) for value in (2, 3, 4, 5)))
    pixels = np.array(enlarged(torch.zeros(3, 12, 12, dtype=torch.uint8), 3, regions))
    lit = np.argwhere(pixels[..., 0] == 255)
    assert lit.min(axis=0).tolist() == [6, 9]
    assert lit.max(axis=0).tolist() == [6 + 12 - 1, 9 + 15 - 1]
