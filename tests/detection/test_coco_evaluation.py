"""COCO data checks, and evaluation by two libraries."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from detection.coco import (
    CocoDataError,
    CocoDataset,
    CocoPaths,
    check_same_categories,
    find_coco,
    load_coco,
)
from detection.draw import draw_predictions
from detection.evaluation import ResultsError, evaluate, load_results, save_results
from keepaug.data.synthetic import write_detection


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection(tmp_path_factory.mktemp("coco") / "d", num_train=6, num_val=4, num_classes=3)


def annotations(root: Path) -> dict:
    return json.loads((root / "annotations" / "instances_val2017.json").read_text())


def paths(root: Path) -> tuple[Path, Path]:
    return root / "annotations" / "instances_val2017.json", root / "val2017"


def val(root: Path) -> CocoDataset:
    return load_coco(*paths(root))


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
    results = noisy_results(annotations(root))
    slow, fast = (evaluate(val(root), results, backend=backend) for backend in ("pycocotools", "faster"))
    assert 5 < slow.stats["AP"] < 95
    assert {slow.backend, fast.backend} == {"pycocotools", "faster-coco-eval"}
    for name, value in slow.stats.items():
        assert fast.stats[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name
    for name, value in slow.per_class.items():
        assert fast.per_class[name] == pytest.approx(value, abs=1e-9)


@pytest.mark.data
def test_both_evaluators_agree_on_real_coco(data_root: Path) -> None:
    results = noisy_results(annotations(data_root / "coco"))
    split = val(data_root / "coco")
    slow, *fast = (evaluate(split, results, backend=name) for name in ("pycocotools", "faster", "hotcoco"))
    assert 5 < slow.stats["AP"] < 95
    for name, value in slow.stats.items():
        for other in fast:
            assert other.stats[name] == pytest.approx(value, abs=1e-9), name


def fuzzed_set(seed: int) -> tuple[dict, list[dict]]:
    """Crowds, ties of scores, empty classes and images, areas at the limits, ids out of order."""
    draw = random.Random(seed)
    sizes = [5, 31.9, 32, 32.1, 95.9, 96, 96.1, 150]
    images = [
        {"id": id_, "file_name": f"{id_}.png", "width": 400, "height": 300}
        for id_ in draw.sample(range(99), 6)
    ]
    categories = [{"id": id_, "name": f"c{id_}"} for id_ in draw.sample(range(20), 4)]

    def boxes(number: int) -> list[dict]:
        found = []
        for _ in range(number):
            side, other = draw.choice(sizes), draw.choice(sizes)
            found.append({
                "image_id": draw.choice(images[:5])["id"], "category_id": draw.choice(categories[:3])["id"],
                "bbox": [draw.choice([0, 10.5, 200]), draw.choice([0, 7, 140.25]), side, other],
                "area": side * other,
            })  # fmt: skip
        return found

    truth = [{**box, "iscrowd": int(draw.random() < 0.2)} for box in boxes(40)]
    for annotation, id_ in zip(truth, draw.sample(range(100), 40), strict=True):
        annotation["id"] = id_
        annotation["area"] *= draw.choice([1, 1, 0.5])
    truth[0]["iscrowd"] = 0
    results = []
    for box in [*boxes(draw.choice([1, 30, 300])), *draw.sample(truth, 25)]:
        shift = [value + draw.choice([0, 0, 1, 4]) for value in box["bbox"]]
        results.append({**{key: box[key] for key in ("image_id", "category_id")}, "bbox": shift,
                        "score": draw.choice([0.1, 0.5, 0.5, 0.9, draw.random()])})  # fmt: skip
    return {"images": images, "annotations": truth, "categories": categories}, results


@pytest.mark.parametrize("backend", ["hotcoco", "faster"])
def test_a_faster_evaluator_equals_pycocotools_in_every_figure(backend: str, tmp_path: Path) -> None:
    values = set()
    for seed in range(40):
        data, results = fuzzed_set(seed)
        (tmp_path / "a.json").write_text(json.dumps(data))
        split = load_coco(tmp_path / "a.json", tmp_path)
        wanted, found = (evaluate(split, results, backend=name) for name in ("pycocotools", backend))
        assert found.stats == pytest.approx(wanted.stats, abs=1e-9, nan_ok=False), seed
        assert found.per_class == pytest.approx(wanted.per_class, abs=1e-9), seed
        values.add(wanted.stats["AP"])
    assert len(values) > 30


def test_perfect_and_empty_results(root: Path) -> None:
    data = annotations(root)
    path = val(root)
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
        evaluate(val(root), results)


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
        load_coco(path, root / "val2017", num_classes=3, images=True)
    assert load_coco(*paths(root), num_classes=3, images=True).notes == []


def test_number_of_classes_and_wrong_files(root: Path, tmp_path: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    with pytest.raises(CocoDataError, match=r"3 categories, the model 80 classes.*set MODEL\.X 3"):
        load_coco(path, root / "val2017", num_classes=80, num_classes_key="MODEL.X")
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(CocoDataError, match="a results file"):
        load_coco(tmp_path / "r.json", root)
    with pytest.raises(CocoDataError, match="no annotation file"):
        load_coco(tmp_path / "nothing.json", root)
    other = annotations(root)
    other["categories"][0]["name"] = "elephant"
    (tmp_path / "o.json").write_text(json.dumps(other))
    with pytest.raises(CocoDataError, match=r"different categories.*elephant"):
        check_same_categories(val(root), load_coco(tmp_path / "o.json", root))


def test_subset_and_records(root: Path) -> None:
    path = root / "annotations" / "instances_train2017.json"
    dataset = load_coco(path, root / "train2017", max_images=2)
    assert dataset.checksum != load_coco(path, root / "train2017").checksum
    assert len(dataset.records) == 2
    assert dataset.contiguous_to_json_id == [1, 2, 3]
    assert all(0 <= a["category_id"] < 3 for record in dataset.records for a in record["annotations"])


@pytest.mark.data
def test_the_real_subset_passes(data_root: Path) -> None:
    for split in ("train2017", "val2017"):
        coco = data_root / "coco"
        load_coco(coco / "annotations" / f"instances_{split}.json", coco / split, num_classes=80, images=True)


def picture_set(folder: Path, *, suffix: str = "png") -> dict:
    """Four 40 x 30 pictures with one box each, written below `folder`."""
    (folder / "images" / "sub").mkdir(parents=True)
    images, boxes = [], []
    for number in range(1, 5):
        Image.new("RGB", (40, 30), (50 * number, 40, 40)).save(folder / "images" / f"{number}.{suffix}")
        images.append({"id": number, "file_name": f"{number}.{suffix}", "width": 40, "height": 30})
        boxes.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 5,
                "bbox": [number, 2, 10, 8],
                "area": 80,
                "iscrowd": 0,
            }
        )
    return {"images": images, "annotations": boxes, "categories": [{"id": 5, "name": "a"}]}


def read(data: dict | bytes, folder: Path, **options) -> CocoDataset:
    (folder / "a.json").write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return load_coco(folder / "a.json", folder / "images", images=True, **options)


def truth_as_results(data: dict) -> list[dict]:
    wanted = ("image_id", "category_id", "bbox")
    return [{**{key: a[key] for key in wanted}, "score": 0.9} for a in data["annotations"]]


def change(data: dict, entries: str, key: str, value) -> dict:
    """`value(old, number)` in every entry, or the value itself; "delete" takes the key away."""
    for number, entry in enumerate(data[entries]):
        new = value(entry[key], number) if callable(value) else value
        if new == "delete":
            del entry[key]
        else:
            entry[key] = new
    return data


@pytest.mark.parametrize(
    "edits",
    [
        [("annotations", "id", lambda old, number: number)],
        [("annotations", "id", lambda old, number: -number)],
        [("annotations", "id", lambda old, number: f"u{number}")],
        [("annotations", "id", lambda old, number: number + 1.5)],
        [("annotations", "id", "delete")],
        *[[("annotations", "iscrowd", value)] for value in ("delete", None, "0", 0.0, False)],
        *[[("annotations", "area", value)] for value in ("delete", None, 80.0)],
        *[
            [("images", "id", value), ("annotations", "image_id", value)]
            for value in (
                lambda old, number: f"img{old}",
                lambda old, number: old + 2**60,
                lambda old, number: float(old),
                lambda old, number: number,
            )
        ],
        [("annotations", "image_id", lambda old, number: str(old))],
        [("categories", "id", "five"), ("annotations", "category_id", "five")],
        [("categories", "id", 2**60), ("annotations", "category_id", 2**60)],
        [("categories", "id", 0), ("annotations", "category_id", 0)],
        [("categories", "name", 7)],
        [("images", "width", 40.0)],
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["hotcoco", "faster", "pycocotools"])
def test_what_people_write_is_read_as_meant(edits: list, backend: str, tmp_path: Path) -> None:
    data = picture_set(tmp_path)
    for edit in edits:
        change(data, *edit)
    split = read(data, tmp_path)
    assert [record["image_id"] for record in split.records] == [1, 2, 3, 4]
    assert all(box["area"] == 80 and box["iscrowd"] == 0 for r in split.records for box in r["annotations"])
    assert all(isinstance(name, str) for name in split.thing_classes)
    results = truth_as_results(data)
    assert evaluate(split, results, backend=backend).stats["AP"] == pytest.approx(100)
    assert load_results(save_results(tmp_path / "r.json", results)) == results


@pytest.mark.parametrize(
    ("entries", "key", "value", "message"),
    [
        ("annotations", "iscrowd", 2, "iscrowd is neither 0 nor 1.*annotation 1: 2"),
        ("annotations", "iscrowd", "yes", "iscrowd is neither"),
        ("annotations", "iscrowd", [], "iscrowd is neither"),
        ("annotations", "area", "80", "an area is not a number from 0"),
        ("annotations", "area", -1, "an area is not a number"),
        ("annotations", "area", float("nan"), "an area is not a number"),
        ("annotations", "bbox", ["1", 2, 3, 4], "a bbox is not four finite numbers"),
        ("annotations", "bbox", None, "a bbox is not four"),
        ("annotations", "bbox", {"x": 1}, "a bbox is not four"),
        ("annotations", "bbox", [1, 2, 10**400, 4], "a bbox is not four"),
        ("annotations", "bbox", [1, 2, -3, 4], "negative size"),
        ("annotations", "image_id", None, "an image id is not among"),
        ("annotations", "image_id", [1], "an image id is not among"),
        ("annotations", "category_id", True, "a category id is not among"),
        ("images", "id", 1.5, "image id is neither a whole number nor a text"),
        ("images", "id", {}, "image id is neither"),
        ("images", "id", 1, "image id is used more than once"),
        ("images", "id", True, "image id is neither"),
        ("images", "width", True, "height or width is not a whole number"),
        ("images", "width", "40", "height or width is not a whole number"),
        ("images", "height", 0, "height or width is not"),
        ("images", "file_name", 7, "file_name is no text"),
        ("images", "file_name", None, "lacks file_name"),
        ("categories", "name", ["a"], "category name is no text"),
        ("annotations", "bbox", [0, 0, 0, 5], "no annotation is left"),
        ("annotations", "bbox", [90, 0, 5, 5], "4 of 4 boxes leave their images or lie outside"),
        ("annotations", "bbox", [20, 15, 39, 29],
        "4 of 4 boxes leave their images or lie outside: are they corners"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_field(
    entries: str, key: str, value, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CocoDataError, match=message):
        read(change(picture_set(tmp_path), entries, key, value), tmp_path)


@pytest.mark.parametrize("word", ["{}", "slide {}"])
def test_the_fields_that_the_page_names_are_enough(word: str, tmp_path: Path) -> None:
    """Of a file of one's own: ids from 0, or words."""
    data = picture_set(tmp_path)
    page = " ".join((Path(__file__).parents[2] / "docs" / "detection.md").read_text().split())
    assert "images `id`, `file_name`, `height` and `width`, annotations `image_id`, `category_id` and" in page
    for number, (image, annotation) in enumerate(zip(data["images"], data["annotations"], strict=True)):
        image["id"] = annotation["image_id"] = number if word == "{}" else word.format(number)
        annotation["category_id"] = 0
        for key in ("id", "area", "iscrowd"):
            del annotation[key]
    data["categories"][0]["id"] = 0
    split = read({key: data[key] for key in ("images", "annotations", "categories")}, tmp_path)
    assert [len(record["annotations"]) for record in split.records] == [1] * 4
    assert evaluate(split, truth_as_results(data)).stats["AP"] == pytest.approx(100)


@pytest.mark.parametrize(("key", "value"), [("width", None), ("height", 0), ("file_name", 7)])
def test_an_image_that_is_refused_is_not_said_to_be_missing(key: str, value, tmp_path: Path) -> None:
    data = picture_set(tmp_path)
    for image in data["images"]:
        image[key] = value
    with pytest.raises(CocoDataError) as caught:
        read(data, tmp_path)
    assert key in str(caught.value)
    assert "not among the images" not in str(caught.value)


def test_entries_of_other_types_and_text_encodings(tmp_path: Path) -> None:
    data = picture_set(tmp_path)
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert len(read(json.dumps(data).encode(encoding), tmp_path).records) == 4
    for entry in (None, 3, "x", [1]):
        for entries in ("images", "annotations", "categories"):
            with pytest.raises(CocoDataError, match=r"lacks|no dictionary"):
                read({**data, entries: [*data[entries], entry]}, tmp_path)
    for broken in (b"[" * 100_000, b"\xff\xfe\x00", b"{", b'{"images": ' + b"9" * 5000 + b"}"):
        with pytest.raises(CocoDataError, match="is not a JSON file"):
            read(broken, tmp_path)


@pytest.mark.parametrize("flat", [[0, 0, 0, 0], [5, 5, 0, 8], [5, 5, 10, 0]])
def test_odd_boxes_are_dropped_and_counted(flat: list[int], tmp_path: Path) -> None:
    data = picture_set(tmp_path)
    for number, box in enumerate((flat, [50, 0, 5, 5], [35, 2, 10, 8])):
        data["annotations"][number]["bbox"] = box
    split = read(data, tmp_path)
    assert [len(record["annotations"]) for record in split.records] == [0, 0, 1, 1]
    for note in ("no area and is dropped (1x)", "outside its image and is dropped (1x)", "is clipped (1x)"):
        assert any(note in line for line in split.notes), note
    with pytest.raises(CocoDataError, match="no area and is dropped"):
        read(data, tmp_path, strict_boxes=True)


LEAVES, CORNERS, BOX = [20, 15, 39, 29], [2, 3, 12, 11], [9, 9, 8, 8]


@pytest.mark.parametrize("boxes", [[LEAVES], [LEAVES, LEAVES, BOX, BOX], [LEAVES, CORNERS, CORNERS, CORNERS]])
def test_a_few_boxes_that_leave_are_clipped_unless_all_read_as_corners(boxes: list, tmp_path: Path) -> None:
    data = picture_set(tmp_path)
    data["annotations"] = [{**a, "bbox": box} for a, box in zip(data["annotations"], boxes, strict=False)]
    assert any("is clipped" in note for note in read(data, tmp_path).notes)


def test_two_boxes_that_leave_are_refused_where_all_read_as_corners(tmp_path: Path) -> None:
    data = picture_set(tmp_path)
    for annotation, box in zip(data["annotations"], (LEAVES, LEAVES, CORNERS, CORNERS), strict=True):
        annotation["bbox"] = box
    with pytest.raises(CocoDataError, match=r"2 of 4 boxes leave their images .* are they corners"):
        read(data, tmp_path)


def test_classes_and_images_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """10 comes after 9, number or text, and words come last; the file's order does not matter."""
    data = picture_set(tmp_path)
    ids = ["b", 10, "9", 2]
    data["categories"] = [{"id": id_, "name": f"class {id_}"} for id_ in ids]
    for id_, image, annotation in zip(ids, data["images"], data["annotations"], strict=True):
        image["id"] = annotation["image_id"] = annotation["category_id"] = id_
    split = read(data, tmp_path)
    assert split.thing_classes == ["class 2", "class 9", "class 10", "class b"]
    assert split.contiguous_to_json_id == split.json_image_ids == [2, "9", 10, "b"]
    assert [record["annotations"][0]["category_id"] for record in split.records] == [0, 1, 2, 3]


def test_files_are_found_by_the_end_of_their_names(tmp_path: Path) -> None:
    data = picture_set(tmp_path)
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / "sub" / "a b.png")
    (tmp_path / "images" / "sub" / ".a b.png").write_bytes(b"")
    for name in ("C:\\photos\\sub\\a b.png", "far/sub/a%20b.png", "a b.png", "/data/a%20b.png"):
        data["images"][0]["file_name"] = name
        split = read(data, tmp_path)
        assert split.records[0]["file_name"].endswith("images/sub/a b.png")
        assert any("by the end of its name" in note for note in split.notes)
    data["images"][0]["file_name"] = "other/2.png"
    with pytest.raises(CocoDataError, match=r"fall on one image file.*2\.png"):
        read(data, tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "sub" / "2.png")
    data["images"][0]["file_name"] = "sub/2.png"
    assert read(data, tmp_path).records[0]["file_name"].endswith("sub/2.png")
    data["images"][0]["file_name"] = "x/2.png"
    with pytest.raises(CocoDataError, match="several image files end in this name"):
        read(data, tmp_path)


def test_unreadable_images_are_named_before_training(tmp_path: Path) -> None:
    data = picture_set(tmp_path)
    whole = (tmp_path / "images" / "4.png").read_bytes()
    (tmp_path / "images" / "4.png").write_bytes(whole[:50])
    (tmp_path / "images" / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 4 images cannot be used: .*3\.png.*4\.png"):
        read(data, tmp_path)


def test_own_data_in_the_short_layout_is_found_unless_cocos_files_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text("{}")
    found = find_coco(tmp_path)
    assert found["coco_2017_train"] == CocoPaths(folder / "train.json", tmp_path / "train")
    assert found["coco_2017_val"] == CocoPaths(folder / "val.json", tmp_path / "val")
    (folder / "instances_val2017.json").write_text("{}")
    assert find_coco(tmp_path)["coco_2017_val"].image_root == tmp_path / "val2017"
