"""Ranked lists show the ranking that is scored; the erasing sheet regions of equal sizes, framed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from reid.evaluation.pictures import draw_erasing, draw_ranked_lists

RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
SIZE = (40, 60)  # wide enough that a cell is its image, its frame and the gap
CELL = (60 + 8 + 6, 40 + 8 + 17 + 6)


@pytest.fixture
def world(tmp_path: Path) -> dict:
    """3 queries and 12 gallery images, each an image of one grey level that tells its number."""
    paths = []
    for number in range(15):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (30, 20), (10 * number,) * 3).save(paths[-1])
    generator = torch.Generator().manual_seed(0)
    return {
        "query_features": torch.randn(3, 5, generator=generator),
        "gallery_features": torch.randn(12, 5, generator=generator),
        "query_ids": torch.tensor([1, 2, 9]),  # 9 has no match
        "gallery_ids": torch.tensor([1, 1, 1, 2, 2, 3, 3, 0, -1, 2, 1, -1]),
        "query_cameras": torch.tensor([1, 2, 1]),
        "gallery_cameras": torch.tensor([1, 2, 3, 1, 2, 1, 2, 3, 1, 3, 1, 2]),
        "query_paths": paths[:3],
        "gallery_paths": paths[3:],
    }


def shown(path: Path, row: int, column: int) -> tuple[int, tuple[int, ...]]:
    """Number of the image in a cell and the colour of its frame."""
    pixels = np.array(Image.open(path))
    y, x = 6 + row * CELL[1], 6 + column * CELL[0] + (6 if column else 0)
    return int(pixels[y + 4 + 20, x + 4 + 30, 0]) // 10, tuple(int(v) for v in pixels[y + 1, x + 1])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_lists_are_the_ranking_without_junk(world: dict, metric: str, tmp_path: Path) -> None:
    path = draw_ranked_lists(tmp_path / "r.png", **world, metric=metric, top=10, size=SIZE)
    assert Image.open(path).height == 2 * CELL[1] + 6  # the query without a match is not drawn
    query, gallery = world["query_features"], world["gallery_features"]
    cosine = 1 - F.normalize(query) @ F.normalize(gallery).T
    distances = cosine if metric == "cosine" else torch.cdist(query, gallery)
    for row in range(2):
        kept = [
            place
            for place in distances[row].argsort().tolist()
            if world["gallery_ids"][place] >= 0
            and not (
                world["gallery_ids"][place] == world["query_ids"][row]
                and world["gallery_cameras"][place] == world["query_cameras"][row]
            )
        ]
        assert 7 <= len(kept) < 10
        for column, place in enumerate(kept, start=1):
            right = bool(world["gallery_ids"][place] == world["query_ids"][row])
            assert shown(path, row, column) == (3 + place, RIGHT if right else WRONG)
        assert shown(path, row, len(kept) + 1)[1] == (255, 255, 255)  # the rest is empty


def test_right_and_wrong_are_told_apart_without_colour(world: dict, tmp_path: Path) -> None:
    """By a tick and a cross in the corner of the frame; the query has none."""
    path = draw_ranked_lists(tmp_path / "r.png", **world, size=SIZE)
    pixels = np.array(Image.open(path))
    marks: dict[tuple[int, ...], set[bytes]] = {}
    for column in range(8):
        y, x = 6, 6 + column * CELL[0] + (6 if column else 0)
        corner = pixels[y : y + 16, x : x + 16]
        marks.setdefault(shown(path, 0, column)[1], set()).add(((corner == 255).all(axis=2)).tobytes())
    assert set(marks) == {RIGHT, WRONG, (120, 120, 120)}
    assert [len(shapes) for shapes in marks.values()] == [1, 1, 1]
    assert len(set.union(*marks.values())) == 3


def test_written_distances_are_those_of_the_metric(
    world: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list = []
    monkeypatch.setattr(
        "reid.evaluation.pictures._sheet", lambda rows, *_: lines.append(rows) or Image.new("RGB", (1, 1))
    )
    query, gallery = world["query_features"], world["gallery_features"]
    expected = {
        "cosine": 1 - F.normalize(query) @ F.normalize(gallery).T,
        "euclidean": torch.cdist(query, gallery),
    }
    for metric, distances in expected.items():
        draw_ranked_lists(tmp_path / "r.png", **world, metric=metric, queries=[1])
        for path, _, text in lines[-1][0][1:]:
            place = world["gallery_paths"].index(path)
            identity, camera, number = text.split()
            assert identity == str(int(world["gallery_ids"][place]))
            assert camera == f"c{int(world['gallery_cameras'][place])}"
            assert float(number) == pytest.approx(float(distances[1, place]), abs=6e-4)


def test_without_cameras_only_negative_identities_are_junk(world: dict, tmp_path: Path) -> None:
    world |= {"query_cameras": None, "gallery_cameras": None}
    path = draw_ranked_lists(tmp_path / "r.png", **world, size=SIZE, queries=[0], top=12)
    assert sorted(shown(path, 0, column)[0] - 3 for column in range(1, 11)) == [*range(8), 9, 10]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_paths": []}, "query_paths has 0 entries for 3 features"),
        ({"gallery_cameras": None}, "or for neither"),
        ({"query_ids": torch.tensor([7, 8, 9])}, "no query has a match"),
    ],
)
def test_errors_say_what_to_do(world: dict, change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        draw_ranked_lists(tmp_path / "r.png", **(world | change))
    assert not (tmp_path / "r.png").exists()


def test_erasing_shows_equal_sizes_and_frames_what_matters(tmp_path: Path) -> None:
    num, height, width, factor = 6, 32, 24, round(1100 / (6 * 28))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(num, 3, height, width, generator=generator) * 0.2 + 0.6
    heat = torch.zeros(num, height, width)
    heat[:, 10:22, 8:16] = torch.rand(num, 12, 8, generator=generator)
    path = draw_erasing(
        tmp_path / "e.png", images, heat, mean=(0.0,) * 3, std=(1.0,) * 3, fill="zero", area=(0.2, 0.4)
    )
    pixels = torch.from_numpy(np.array(Image.open(path))).int()
    step = (height * factor + 19, width * factor + 4)
    areas, colours = [], []
    for row in (2, 3):
        for column in range(num):
            top, left = row * step[0] + 17, 4 + column * step[1]
            cell = pixels[top : top + height * factor, left : left + width * factor]
            frames = [((cell - torch.tensor(colour)).abs().sum(dim=2) == 0) for colour in (WRONG, RIGHT)]
            areas.append(int(((cell.sum(dim=2) < 100) | frames[0] | frames[1]).sum()))
            colours.append((bool(frames[0].any()), bool(frames[1].any())))
    assert areas[:num] == areas[num:]
    assert min(areas) > 0.1 * height * width * factor**2
    assert all(wrong != right for wrong, right in colours)
    assert any(wrong for wrong, _ in colours[:num])
    assert not any(wrong for wrong, _ in colours[num:])


def test_erasing_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\) and \(2, 4, 4\)"):
        draw_erasing(
            tmp_path / "e.png", torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4), mean=(0.0,) * 3, std=(1.0,) * 3
        )
