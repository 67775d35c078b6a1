"""COCO data checks, and evaluation by two libraries."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from detection.coco import CocoDataError, check_coco, check_same_categories, load_coco, write_subset
from detection.draw import draw_predictions
from detection.evaluation import ResultsError, evaluate, load_results, save_results
from keepaug.data.synthetic import write_detection


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection(tmp_path_factory.mktemp("coco") / "d", num_train=6, num_val=4, num_classes=3)


def annotations(root: Path) -> dict:
    return json.loads((root / "annotations" / "instances_val2017.json").read_text())


def noisy_results(data: dict, seed: int = 0) -> list[dict]:
    """Shifted truth with wrong classes and false alarms: AP in between."""
    generator = torch.Generator().manual_seed(seed)
    categories = [category["id"] for category in data["categories"]]
    results = []
    for annotation in data["annotations"]:
        for _ in range(3):
            shift = (torch.rand(4, generator=generator) - 0.5) * max(annotation["bbox"][2:]) * 0.3
            box = [
                max(0.0, float(value + change))
                for value, change in zip(annotation["bbox"], shift, strict=True)
            ]
            category = annotation["category_id"]
            if torch.rand((), generator=generator) < 0.3:
                category = categories[int(torch.randint(len(categories), (), generator=generator))]
            score = float(torch.rand((), generator=generator))
            results.append(
                {"image_id": annotation["image_id"], "category_id": category, "bbox": box, "score": score}
            )
    return results


def test_both_evaluators_agree(root: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    results = noisy_results(annotations(root))
    slow, fast = (evaluate(path, results, backend=backend) for backend in ("pycocotools", "faster"))
    assert 5 < slow.stats["AP"] < 95
    assert {slow.backend, fast.backend} == {"pycocotools", "faster-coco-eval"}
    for name, value in slow.stats.items():
        assert fast.stats[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name
    for name, value in slow.per_class.items():
        assert fast.per_class[name] == pytest.approx(value, abs=1e-9)


@pytest.mark.data
def test_both_evaluators_agree_on_real_coco(data_root: Path) -> None:
    path = data_root / "coco" / "annotations" / "instances_val2017.json"
    results = noisy_results(json.loads(path.read_text()))
    slow, fast = (evaluate(path, results, backend=backend) for backend in ("pycocotools", "faster"))
    assert 5 < slow.stats["AP"] < 95
    for name, value in slow.stats.items():
        assert fast.stats[name] == pytest.approx(value, abs=1e-9), name


def test_perfect_and_empty_results(root: Path) -> None:
    data = annotations(root)
    path = root / "annotations" / "instances_val2017.json"
    perfect = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in data["annotations"]
    ]
    assert evaluate(path, perfect).stats["AP"] == pytest.approx(100)
    empty = evaluate(path, [])
    assert empty.stats["AP"] == 0.0
    assert "no detections at all" in empty.table()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 999}, "image id 999 is not in the annotation file"),
        ({"category_id": 0}, "category id 0 is not in the annotation file; contiguous"),
        ({"score": float("nan")}, "score nan is not a finite number"),
        ({"bbox": [1, 2, 3]}, "not four finite numbers"),
        ({"bbox": [10, 10, -5, 5]}, "negative size"),
    ],
)
def test_bad_results_are_refused(change: dict, message: str, root: Path) -> None:
    results = noisy_results(annotations(root))
    results[2] |= change
    with pytest.raises(ResultsError, match=f"1 of .*entry 2.*{message}"):
        evaluate(root / "annotations" / "instances_val2017.json", results)


def test_results_go_through_a_file(root: Path, tmp_path: Path) -> None:
    results = noisy_results(annotations(root))
    assert load_results(save_results(tmp_path / "r.json", results)) == results


def test_pictures(root: Path, tmp_path: Path) -> None:
    dataset = load_coco(root / "annotations" / "instances_val2017.json", root / "val2017")
    paths = draw_predictions(dataset, noisy_results(annotations(root)), tmp_path, num_images=3)
    assert [Image.open(path).size[0] > 400 for path in paths] == [True]


def broken(data: dict, kind: str) -> dict:
    data = copy.deepcopy(data)
    first = data["annotations"][0]
    if kind == "category":
        first["category_id"] = 77
    elif kind == "image":
        first["image_id"] = 777
    elif kind == "outside":
        for annotation in data["annotations"]:
            annotation["bbox"] = [500, 500, 20, 20]
    elif kind == "none":
        data["annotations"] = []
    elif kind == "duplicate":
        data["annotations"][1]["id"] = first["id"]
    elif kind == "missing file":
        data["images"][0]["file_name"] = "nothing.png"
    elif kind == "size":
        for image in data["images"]:
            image["width"] += 30
    elif kind == "nan":
        first["bbox"] = [float("nan"), 0, 5, 5]
    return data


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("category", "77"),
        ("image", "777"),
        ("outside", "outside|leaves"),
        ("none", "there are no annotations"),
        ("duplicate", "id"),
        ("missing file", r"nothing\.png"),
        ("size", "width|size"),
        ("nan", "nan|number"),
    ],
)
def test_annotations_are_checked_before_training(kind: str, message: str, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(broken(annotations(root), kind)))
    with pytest.raises(CocoDataError, match=message):
        check_coco(path, root / "val2017", num_classes=3)
    assert check_coco(root / "annotations" / "instances_val2017.json", root / "val2017", num_classes=3) == []


def test_number_of_classes_and_wrong_files(root: Path, tmp_path: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    with pytest.raises(CocoDataError, match=r"3 categories, the model 80 classes.*set MODEL\.X 3"):
        check_coco(path, root / "val2017", num_classes=80, num_classes_key="MODEL.X")
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(CocoDataError, match="a results file"):
        check_coco(tmp_path / "r.json", root)
    with pytest.raises(CocoDataError, match="no annotation file"):
        check_coco(tmp_path / "nothing.json", root)
    other = annotations(root)
    other["categories"][0]["name"] = "elephant"
    (tmp_path / "o.json").write_text(json.dumps(other))
    with pytest.raises(CocoDataError, match=r"different categories.*elephant"):
        check_same_categories(path, tmp_path / "o.json")


def test_subset_and_records(root: Path, tmp_path: Path) -> None:
    path = write_subset(root / "annotations" / "instances_train2017.json", tmp_path / "s.json", 2)
    dataset = load_coco(path, root / "train2017")
    assert len(dataset.records) == 2
    assert dataset.contiguous_to_json_id == [1, 2, 3]
    assert all(0 <= a["category_id"] < 3 for record in dataset.records for a in record["annotations"])


@pytest.mark.data
def test_the_real_subset_passes(data_root: Path) -> None:
    for split in ("train2017", "val2017"):
        coco = data_root / "coco"
        check_coco(coco / "annotations" / f"instances_{split}.json", coco / split, num_classes=80)
