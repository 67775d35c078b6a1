"""Lists of files, and COCO's masks as the objects that may be hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from keepaug.audit.images import Sample, open_source


def draw(path: Path, size: tuple[int, int] = (32, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert("RGB").save(path)
    return path


def test_lists_of_files(tmp_path: Path) -> None:
    paths = [draw(tmp_path / "a" / "1.png"), draw(tmp_path / "b" / "2.png"), draw(tmp_path / "c" / "3.png")]
    plain, named = tmp_path / "plain.txt", tmp_path / "named.txt"
    plain.write_text(f"{paths[0]}\n\nb/2.png\n")  # relative to the list; an empty line means nothing
    named.write_text("a/1.png\tdog\nb/2.png\tcat\nc/3.png\tdog\n")
    unlabelled, labelled = open_source(plain), open_source(named)
    assert unlabelled.labels is None
    assert [key.split()[0] for key in unlabelled.keys] == [str(paths[0]), str(paths[1])]
    assert labelled.classes == ["cat", "dog"]
    assert labelled.labels == [1, 0, 1]
    assert labelled.read(1).tobytes() == Image.open(paths[1]).tobytes()
    assert len(open_source(paths)) == 3  # the same from Python
    plain.write_text("a/1.png\na/2.png\n")
    with pytest.raises(FileNotFoundError, match=r"line 2: no image .*a/2\.png"):
        open_source(plain)


def test_masks_are_the_objects_where_there_are_polygons(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "1.png")
    triangle = [0, 0, 31, 0, 0, 31]
    annotations = [
        {"bbox": [0, 0, 32, 32], "category_id": 3, "segmentation": [triangle]},
        {"bbox": [8, 4, 10, 6], "category_id": 3},
        {"bbox": [8, 4, 10, 6], "category_id": 5, "segmentation": {"counts": "abc", "size": [32, 32]}},
        {"bbox": [0, 0, 32, 32], "category_id": 5, "segmentation": [triangle], "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 7, "file_name": "1.png", "height": 32, "width": 32}],
        "annotations": [{"id": number, "image_id": 7, **one} for number, one in enumerate(annotations)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    (tmp_path / "boxes_of_mine.json").write_text(json.dumps(content))
    source = open_source(tmp_path / "images", boxes=tmp_path / "boxes_of_mine.json")
    sample = Sample(source, 1, None, 0)
    images, labels, masks, owners, kinds = sample.load(0, 1)
    assert images.shape == (1, 3, 32, 32)
    assert labels is None
    assert owners.tolist() == [0, 0, 0]
    assert [sample.object_names[kind] for kind in kinds] == ["cat", "cat", "dog"]
    assert masks[0].sum() == pytest.approx(32 * 33 / 2, abs=40)
    assert bool(masks[0, 0, 31])
    assert bool(masks[0, 31, 0])
    assert not bool(masks[0, 25:, 25:].any())
    for mask in masks[1:]:  # no polygon: the box
        assert mask.sum() == 60
        assert bool(mask[4:10, 8:18].all())
    # as a larger network sees it: the middle 7/8, where most of the triangle still is
    shown = Sample(source, 1, 128, 0).load(0, 1)[2][0]
    assert 0.4 < float(shown.double().mean()) < 0.6


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("annotations", 0), "x"), (("annotations", 0, "image_id"), [1]), (("annotations",), {}),
        (("annotations", 0, "segmentation"), 5), (("annotations", 0, "segmentation"), [["x", "y"]]),
        (("images", 0, "width"), "32"), (("images", 0, "file_name"), None), (("images", 0), []),
        (("categories", 0, "id"), {}), (("categories",), [None]), ((), 3),
    ],
)  # fmt: skip
def test_annotations_of_another_shape_are_refused(
    place: tuple[str | int, ...], value: object, tmp_path: Path
) -> None:
    draw(tmp_path / "images" / "1.png")
    box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "segmentation": []}
    content: Any = {
        "images": [{"id": 7, "file_name": "1.png", "height": 32, "width": 32}],
        "annotations": [box],
        "categories": [{"id": 3, "name": "cat"}],
    }
    holder = {"it": content}
    *above, last = ("it", *place)
    parent: Any = holder
    for key in above:
        parent = parent[key]
    parent[last] = value
    (tmp_path / "mine.json").write_text(json.dumps(holder["it"]))
    with pytest.raises(ValueError, match=r"mine\.json (has|lacks)"):
        open_source(tmp_path / "images", boxes=tmp_path / "mine.json")


@pytest.mark.parametrize(
    "content", [[], {}, {"val/a/1.png": [1, 2, 3]}, {"val/a/1.png": ["x"]}, {"val/a/1.png": 1}]
)
def test_drawn_boxes_of_another_shape_are_refused(content: object, tmp_path: Path) -> None:
    draw(tmp_path / "val" / "a" / "1.png")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"boxes\.json has"):
        open_source(tmp_path)
