"""Image folders: hidden files, flat validation images with the lists in use, and lists of folders that are
remembered.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from keepaug.__main__ import main
from keepaug.data import files as files_module
from keepaug.data.checking import check_images
from keepaug.data.files import ImageFiles, find_images
from keepaug.data.folder import list_images, open_folder
from keepaug.data.identity import CIFAR10, data_name, describe_files
from keepaug.data.reading import ImageError
from keepaug.runs.errors import ConfigError

CLASSES = ("n01440764", "n02100735", "n02119789")
BY_ID = ("n02119789", "n02100735", "n01440764")  # ILSVRC2012_ID 1, 2, 3: not the alphabet
TRUTH = [2, 0, 1, 1, 2, 0, 0]  # of the validation images, by name


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2)).save(path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    for name in CLASSES:
        touch(root / "train" / name / f"{name}_1.JPEG")
    for number in range(len(TRUTH)):
        touch(root / "val" / f"ILSVRC2012_val_{number + 1:08d}.JPEG")
    return root


def text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def names() -> list[str]:
    return [f"ILSVRC2012_val_{number + 1:08d}" for number in range(len(TRUTH))]


def numbers() -> list[str]:
    return [str(BY_ID.index(CLASSES[label]) + 1) for label in TRUTH]


def meta(path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    rows = np.zeros(4, dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")])
    for place, name in enumerate((*BY_ID, "n00001740")):
        rows[place] = (place + 1, name, "some words", place == 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"synsets": rows})


def devkit(root: Path) -> None:
    text(root / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", numbers())
    meta(root / "ILSVRC2012_devkit_t12/data/meta.mat")


def listed(root: Path) -> None:
    text(root / "ILSVRC2012_validation_ground_truth.txt", numbers())
    text(root / "synsets.txt", list(BY_ID))


def numbered(root: Path) -> None:
    text(root / "ILSVRC2012_validation_ground_truth.txt", numbers())
    text(root / "map_clsloc.txt", [f"{name} {BY_ID.index(name) + 1} some_words" for name in CLASSES])


def synset_labels(root: Path) -> None:
    text(root / "val" / "imagenet_2012_validation_synset_labels.txt", [CLASSES[label] for label in TRUTH])


def kaggle(root: Path) -> None:
    rows = [f"{name},{CLASSES[label]} 1 2 3 4" for name, label in zip(names(), TRUTH, strict=True)]
    text(root.parent / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows[::-1]])


def caffe(root: Path) -> None:
    text(root / "val.txt", [f"{name}.JPEG {label}" for name, label in zip(names(), TRUTH, strict=True)])


def tiny(root: Path) -> None:
    (root / "val").rename(root / "images")
    (root / "val").mkdir()
    (root / "images").rename(root / "val" / "images")
    rows = [f"{name}.JPEG\t{CLASSES[label]}\t0\t0\t9\t9" for name, label in zip(names(), TRUTH, strict=True)]
    text(root / "val" / "val_annotations.txt", rows)


def torchvision_meta(root: Path) -> None:
    torch.save(
        ({name: ("words",) for name in CLASSES}, [CLASSES[label] for label in TRUTH]), root / "meta.bin"
    )


FORMS = (devkit, listed, numbered, synset_labels, kaggle, caffe, tiny, torchvision_meta)


@pytest.mark.parametrize("split", ["val", "valid"])
@pytest.mark.parametrize("form", FORMS)
def test_flat_validation_images_with_each_list(flat: Path, form, split: str) -> None:
    form(flat)
    (flat / "val").rename(flat / split)
    touch(flat / split / "._ILSVRC2012_val_00000001.JPEG")
    (train, train_labels), (val, labels), classes = open_folder(flat)
    assert classes == list(CLASSES)
    assert train_labels.tolist() == [0, 1, 2]
    assert [path.stem for path in val] == names()
    assert labels.tolist() == TRUTH
    assert len(train) == 3


def test_flat_validation_images_without_a_fitting_list(flat: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"7 images and no class folders.*ILSVRC2012_validation_ground_truth"
    ):
        open_folder(flat)
    truth = flat / "ILSVRC2012_validation_ground_truth.txt"
    text(truth, numbers())
    with pytest.raises(FileNotFoundError, match=r"order of its own: put the development kit's meta\.mat"):
        open_folder(flat)
    text(flat / "synsets.txt", list(CLASSES))
    with pytest.raises(ValueError, match=r"synsets\.txt lists the classes alphabetically.*would be wrong"):
        open_folder(flat)
    text(flat / "synsets.txt", list(BY_ID))
    text(truth, numbers()[1:])
    with pytest.raises(ValueError, match="6 labels for the 7 images"):
        open_folder(flat)
    text(truth, ["9", *numbers()[1:]])
    with pytest.raises(ValueError, match=r"stand for no class, for example \[9\]; expected 1 to 3"):
        open_folder(flat)
    text(flat / "synsets.txt", ["n02119789", "n02100735", "n09999999"])
    text(truth, numbers())
    with pytest.raises(ValueError, match=r"1 class\(es\) without training images, for example n09999999"):
        open_folder(flat)
    text(flat / "val.txt", [f"{name}.JPEG 1" for name in names()[2:]])
    with pytest.raises(ValueError, match=r"no line for 2 of 7 images, for example ILSVRC2012_val_00000001"):
        open_folder(flat)
    text(flat / "val.txt", [f"{name}.JPEG {label + 1}" for name, label in zip(names(), TRUTH, strict=True)])
    with pytest.raises(ValueError, match=r"\[3\]; expected 0 to 2"):
        open_folder(flat)

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    (flat / "val.txt").unlink()
    truth.unlink()
    (flat / "meta.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"meta\.bin cannot be read"):
        open_folder(flat)


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            touch(tmp_path / split / name / "1.jpg")
            (tmp_path / split / name / "._1.jpg").write_bytes(b"\x00\x05\x16\x07")
            (tmp_path / split / name / "notes.txt").write_text("")
        (tmp_path / split / ".DS_Store").write_bytes(b"")
        (tmp_path / split / "._a").write_bytes(b"")
        for hidden in ("__MACOSX", ".ipynb_checkpoints"):
            touch(tmp_path / split / hidden / "1.jpg")
            touch(tmp_path / split / "a" / hidden / "2.jpg")
    (train, labels), (val, _), classes = open_folder(tmp_path)
    assert classes == ["a", "b"]
    assert labels.tolist() == [0, 1]
    assert train.names() == val.names() == ["a/1.jpg", "b/1.jpg"]
    touch(tmp_path / "train" / "stray.jpg")
    with pytest.raises(ValueError, match=r"1 image\(s\) beside its class folders, for example stray\.jpg"):
        open_folder(tmp_path)


def test_one_folder_too_high_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "birds" / "train" / "a" / "1.jpg")
    touch(tmp_path / "__MACOSX" / "train" / "a" / "1.jpg")
    with pytest.raises(FileNotFoundError, match=r"is .*/birds meant\?"):
        open_folder(tmp_path)


def test_files_are_a_sequence_of_paths_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b/1.jpg", "a/z.jpg", "a/é ü.png", "a-b/1.jpg", "a/sub/0.jpg", "a/sub-1.jpg", "a/10.jpg"):
        touch(tmp_path / name)
    files, labels, classes = list_images(tmp_path)
    expected = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert list(files) == [files[place] for place in range(len(files))] == expected
    assert classes == ["a", "a-b", "b"]
    assert [classes[label] for label in labels] == [path.relative_to(tmp_path).parts[0] for path in expected]
    assert files[-1] == expected[-1]
    assert list(files[1:5:2]) == expected[1:5:2]
    with pytest.raises(IndexError):
        files[len(files)]
    assert files.sizes.tolist() == [path.stat().st_size for path in expected]
    assert describe_files("x", tmp_path.parent, {"a": files}) == describe_files(
        "x", tmp_path.parent, {"a": expected}
    )
    assert np.array_equal(check_images(files), check_images(expected))


def test_a_relative_root_stays_relative(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synset_labels(flat)
    monkeypatch.chdir(flat.parent)
    (train, _), (val, _), _ = open_folder("imagenet")
    assert str(train[0]).startswith("imagenet/train/n01440764/")
    check_images(val)
    here = describe_files("x", "imagenet", {"train": train})
    (train, _), _, _ = open_folder(flat)
    assert here == describe_files("x", flat, {"train": train})


def test_a_link_to_nothing_is_listed_and_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").symlink_to(tmp_path / "nowhere.jpg")
    files, _ = find_images(tmp_path)
    with pytest.raises(ImageError, match=r"1\.jpg does not exist"):
        check_images(files)


def test_a_large_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_WORTH", 3)
    monkeypatch.setenv("KEEPAUG_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    for name in ("a/1.jpg", "a/2.jpg", "b/c/3.jpg", "b/4.jpg"):
        touch(root / name)
    walked = []
    walk = files_module._walk
    monkeypatch.setattr(files_module, "_walk", lambda *given: walked.append(given[0]) or walk(*given))

    def find() -> tuple[list[str], int]:
        walked.clear()
        files, folders = find_images(root)
        assert isinstance(files, ImageFiles)
        assert sorted(folders) == ["a", "b", "b/c"]
        return files.names(), len(walked)

    first = ["a/1.jpg", "a/2.jpg", "b/4.jpg", "b/c/3.jpg"]
    assert find() == find() == (first, 4)  # changed a moment ago: not yet remembered
    for folder in (root, root / "a", root / "b", root / "b" / "c"):
        os.utime(folder, ns=(10**18, 10**18))
    assert find() == (first, 4)
    assert find() == (first, 0)
    touch(root / "b" / "c" / "5.jpg")
    assert find() == ([*first, "b/c/5.jpg"], 4)
    os.utime(root / "b" / "c", ns=(10**18, 2 * 10**18 - 10**18 + 5))
    assert find()[1] == 4
    assert find()[1] == 0
    (cache,) = (tmp_path / "cache").rglob("*.npz")
    for damage in (b"", b"PK", cache.read_bytes()[:-40]):
        cache.write_bytes(damage)
        assert find() == ([*first, "b/c/5.jpg"], 4)
    monkeypatch.setenv("KEEPAUG_CACHE", "/dev/null/cache")
    assert find() == find() == ([*first, "b/c/5.jpg"], 4)


def test_only_public_data_bear_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ["circle", "square", "star"]
    thousand = [str(number) for number in range(1000)]
    for name in ("cifar10", "imagenet"):
        assert data_name(tmp_path / name, shapes) == f"{name}-like"
        with pytest.raises(
            ConfigError, match=rf"{name}: it has 3 classes \(circle, square, star\).*image_folder"
        ):
            data_name(tmp_path / name, shapes, name)
    assert data_name(tmp_path / "photos", shapes) == "photos"
    assert data_name(tmp_path / "cifar10", CIFAR10) == data_name("x", CIFAR10, "cifar10") == "cifar10"
    assert data_name(tmp_path / "imagenet", thousand) == data_name("x", thousand, "imagenet") == "imagenet"
    with pytest.raises(
        ConfigError, match=r"not cifar10: it has 10 classes \(0, 1, 2 \.\.\.\), that has 10 \(airplane"
    ):
        data_name("x", thousand[:10], "cifar10")
    assert data_name(tmp_path / "coco", shapes) == "coco-like"  # coco.json of three classes
    monkeypatch.chdir(tmp_path)
    assert data_name(".", shapes) == tmp_path.name
    (tmp_path / "dataset.json").write_text('{"name": "synthetic-classification", "synthetic": true}')
    assert data_name(".", shapes, "cifar10") == "cifar10"  # its results are marked as drawn


@pytest.mark.parametrize(
    "command",
    ["train-uda num_labels=3 split=balanced", "train-classifier dataset=cifar10",
     "train-classifier dataset=imagenet"],
)  # fmt: skip
def test_an_own_folder_is_not_recorded_as_public_data(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    for split in ("train", "val"):
        for name in ("circle", "square", "star"):
            touch(root / split / name / "1.png")
    run = tmp_path / "run"
    given = [*command.split(), f"root={root}", "--output", str(run)]
    for more in ([], ["--dry-run"], ["--shrink"]):
        assert main([*given, *more]) == 2
        assert f"{root} is not " in (error := capsys.readouterr().err)
        assert "own images are dataset=image_folder" in error
    assert not (run / "result.json").exists()
