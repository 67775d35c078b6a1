"""Drawn people: Market-1501's layout, true boxes, identities that can be told apart but not by pixels
alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from keepaug.data.drawing import named_stream
from keepaug.data.identity import is_synthetic
from keepaug.data.synthetic_reid import PARTS, draw_cameras, draw_people, make_people, write_reid

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def listing(root: Path, folder: str) -> list[tuple[int, int]]:
    """(identity, camera) of every file."""
    found = []
    for path in sorted((root / folder).iterdir()):
        match = re.fullmatch(r"(-1|\d{4})_c(\d)s1_\d{6}_00\.jpg", path.name)
        assert match, path.name
        found.append((int(match[1]), int(match[2])))
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reid") / "set"
    return write_reid(root, num_train_identities=6, num_test_identities=40, distractors=9, junk=5, seed=4)


def test_is_market_1501s_layout(drawn: Path) -> None:
    train, query, gallery = (listing(drawn, folder) for folder in FOLDERS)
    assert Counter(train) == {(i, c): 2 for i in range(1, 7) for c in range(1, 5)}
    assert Counter(query) == {(i, c): 1 for i in range(7, 47) for c in range(1, 5)}
    people = Counter(row for row in gallery if row[0] > 0)
    assert people == Counter(query)
    assert Counter(i for i, _ in gallery if i <= 0) == {0: 9, -1: 5}
    with Image.open(next((drawn / "query").iterdir())) as image:
        assert image.size == (32, 64)
    assert is_synthetic(drawn)


def test_same_seed_same_files_and_another_set_is_refused(drawn: Path, tmp_path: Path) -> None:
    settings = {"num_train_identities": 6, "num_test_identities": 40, "distractors": 9, "junk": 5}
    again = write_reid(tmp_path / "again", **settings, seed=4)
    for path in drawn.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(drawn)).read_bytes()
    before = (drawn / "boxes.json").stat().st_mtime_ns
    write_reid(drawn, **settings, seed=4)
    assert (drawn / "boxes.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another dataset"):
        write_reid(drawn, **settings, seed=5)


def test_boxes_hold_the_person() -> None:
    """The same people in the same place on a black and on a white background differ outside of their boxes
    alone.
    """
    people = make_people(30, generator=named_stream(0, "people"))
    camera = torch.zeros(30, dtype=torch.int64)
    site = draw_cameras(1, (64, 32), generator=named_stream(0, "camera"))
    drawings = [
        draw_people(
            people, site._replace(background=torch.full_like(site.background, shade)), camera,
            occluded=0, noise=0, generator=named_stream(0, "image"),
        )
        for shade in (0.0, 1.0)
    ]  # fmt: skip
    same = (drawings[0].images.int() - drawings[1].images.int()).abs().amax(dim=1) < 30
    for index, (top, left, height, width) in enumerate(drawings[0].boxes.tolist()):
        outside = same[index].clone()
        outside[top : top + height, left : left + width] = False
        assert not outside.any()
        assert height > 45
        assert same[index].sum() > 0.3 * height * width
        inner = drawings[0].part_boxes[index]
        some = inner[:, 2] > 0
        assert some[:4].all()  # a bag not everybody has
        assert (inner[some, 0] >= top).all()
        assert (inner[some, 0] + inner[some, 2] <= top + height).all()
        assert (inner[some, 1] >= left).all()
        assert (inner[some, 1] + inner[some, 3] <= left + width).all()
    assert 5 < int((drawings[0].part_boxes[:, 4, 2] > 0).sum()) < 30


def test_boxes_are_listed_by_path(drawn: Path) -> None:
    paths = {path.relative_to(drawn).as_posix() for path in drawn.rglob("*.jpg")}
    boxes = json.loads((drawn / "boxes.json").read_text())
    parts = json.loads((drawn / "part_boxes.json").read_text())
    assert set(boxes) == set(parts) == paths
    assert {name for found in parts.values() for name in found} == set(PARTS)
    head = parts[min(p for p in paths if p.startswith("query/"))]["head"]
    assert head[0] < 10
    assert head[2] < 20


def test_pixels_tell_more_than_chance_and_far_from_all(drawn: Path) -> None:
    def load(folder: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        files = sorted((drawn / folder).iterdir())
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(f))).float().flatten() for f in files])
        return F.normalize(pixels - pixels.mean(dim=1, keepdim=True)), listing(drawn, folder)

    (query, query_rows), (gallery, gallery_rows) = load("query"), load("bounding_box_test")
    order = (query @ gallery.T).argsort(dim=1, descending=True)
    precisions, chance = [], []
    for row, (identity, camera) in enumerate(query_rows):
        kept = [
            g
            for g in order[row].tolist()
            if gallery_rows[g][0] >= 0 and gallery_rows[g] != (identity, camera)
        ]
        hits = [rank for rank, g in enumerate(kept, start=1) if gallery_rows[g][0] == identity]
        precisions.append(sum(k / rank for k, rank in enumerate(hits, start=1)) / len(hits))
        chance.append(len(hits) / len(kept))
    mean = sum(precisions) / len(precisions)
    assert 3 * sum(chance) / len(chance) < mean < 0.7, mean


def test_cameras_differ_in_light(drawn: Path) -> None:
    means = defaultdict(list)
    for path in (drawn / "bounding_box_train").iterdir():
        means[path.name[6]].append(np.asarray(Image.open(path)).mean(axis=(0, 1)))
    colours = torch.tensor(np.array([np.mean(means[c], axis=0) for c in sorted(means)]))
    assert torch.pdist(colours).min() > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_identities": 0}, "at least 1 each"),
        ({"num_test_identities": 9999}, "9999 together"),
        ({"cameras": 1}, "2 to 9"),
        ({"images_per_camera": 1}, "at least 2"),
        ({"size": (16, 16)}, r"\(32, 16\)"),
        ({"junk": -1}, "counts"),
        ({"occluded": 2.0}, r"in \[0, 1\]"),
    ],
)
def test_errors_say_what_to_do(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_reid(tmp_path / "x", **change)
    assert not list(tmp_path.iterdir())
