"""The drawn datasets: real formats, true boxes, same seed same data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from keepaug.data.folder import open_folder
from keepaug.data.images import decode_all
from keepaug.data.synthetic import (
    draw_backgrounds,
    draw_classification,
    draw_objects,
    write_classification,
    write_detection,
)


def test_boxes_are_those_of_the_drawn_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    canvas = draw_backgrounds(20, (48, 64), generator=generator)
    centres = torch.stack([torch.full((20,), 24.0), torch.linspace(16, 48, 20)], dim=1)
    drawn, boxes = draw_objects(
        canvas, torch.arange(20) % 10, centres, torch.full((20,), 18.0), generator=generator
    )
    changed = (drawn - canvas).abs().amax(dim=1) > 0.25
    for index in range(20):
        top, left, height, width = boxes[index].tolist()
        inside = changed[index, top : top + height, left : left + width]
        assert inside.sum() >= 0.9 * changed[index].sum()
        assert 8 <= height <= 24
        assert 8 <= width <= 24


def test_classification_folder_is_read_by_the_real_loader(tmp_path: Path) -> None:
    root = write_classification(tmp_path / "a", num_train=12, num_val=6, num_classes=3, size=(32, 40), seed=1)
    (paths, labels), (val_paths, _), classes = open_folder(root)
    assert labels.bincount().tolist() == [4, 4, 4]
    assert len(val_paths) == 6
    assert len(classes) == 3
    assert decode_all(paths, "x").shape == (12, 3, 32, 40)
    boxes = json.loads((root / "boxes.json").read_text())
    assert set(boxes) == {path.relative_to(root).as_posix() for path in [*paths, *val_paths]}
    before = paths[0].read_bytes()
    again = write_classification(
        tmp_path / "b", num_train=12, num_val=6, num_classes=3, size=(32, 40), seed=1
    )
    assert (again / paths[0].relative_to(root)).read_bytes() == before
    write_classification(root, num_train=12, num_val=6, num_classes=3, size=(32, 40), seed=1)
    with pytest.raises(ValueError, match="another dataset"):
        write_classification(root, num_train=12, num_val=6, num_classes=3, size=(32, 40), seed=2)


def test_detection_is_coco(tmp_path: Path) -> None:
    root = write_detection(tmp_path / "d", num_train=4, num_val=2, num_classes=3, seed=2)
    data = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    assert len(data["images"]) == 4
    assert {category["id"] for category in data["categories"]} == {1, 2, 3}
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= 128
        assert y + height <= 128


def test_colour_cue_gives_each_class_its_hue() -> None:
    def spread(cue: float) -> float:
        drawn = draw_classification(
            200, num_classes=2, colour_cue=cue, generator=torch.Generator().manual_seed(0)
        )
        means = []
        for label in range(2):
            colours = [
                drawn.images[i, :, t : t + h, left : left + w].double().mean(dim=(1, 2))
                for i, (t, left, h, w) in enumerate(drawn.boxes.tolist())
                if drawn.labels[i] == label
            ]
            means.append(torch.stack(colours).mean(dim=0))
        return float((means[0] - means[1]).abs().max())

    assert spread(0.0) < 12 < 30 < spread(1.0)
