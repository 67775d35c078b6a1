"""Layouts as published, and every fault of a dataset found with counts and examples."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from reid_helpers import name, tiny_config, write_image, write_market

from keepaug.runs.config import ConfigError
from keepaug.runs.distributed import setup
from reid.data.checks import check_data
from reid.data.layouts import OFFICIAL_SIZES, ReidData, name_of, open_data
from reid.data.manager import open_manager
from reid.torchreid_api import torchreid_module


@pytest.fixture
def market(tmp_path: Path) -> Path:
    return write_market(tmp_path / "m")


def test_market_is_sorted_and_keeps_distractors_but_not_junk(market: Path) -> None:
    write_image(market / "bounding_box_test" / name(0, 5, 1), 0, 5, 1)
    write_image(market / "bounding_box_test" / name(-1, 2, 1), -1, 2, 1)
    write_image(market / "bounding_box_train" / name(-1, 2, 2), -1, 2, 2)
    data = open_data("market1501", market)
    assert [len(data.train), len(data.query), len(data.gallery)] == [18, 4, 9]
    assert data.left_out == {"train": 1, "gallery": 1}
    assert [record.path for record in data.train] == sorted(record.path for record in data.train)
    distractor = next(record for record in data.gallery if record.identity == 0)
    assert distractor.camera == 5
    assert {record.identity for record in data.query} == {7, 8, 9, 10}
    (market / "Market-1501-v15.09.15").mkdir()
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        shutil.move(market / folder, market / "Market-1501-v15.09.15" / folder)
    assert len(open_data("market1501", market).train) == 18


def test_identities_cameras_and_formats_that_torchreids_loader_refuses(market: Path) -> None:
    write_image(market / "bounding_box_train" / name(1600, 7, 0, "jpg"), 1600, 7, 0)
    record = next(one for one in open_data("market1501", market).train if one.identity == 1600)
    assert record.camera == 7
    loader = torchreid_module("data.datasets.image.market1501").Market1501
    with pytest.raises(AssertionError):
        loader.process_dir(None, str(market / "bounding_box_train"), relabel=True)
    assert loader.process_dir(None, str(market / "query")) == []  # png files: it sees none, and says nothing


def test_torchreids_loader_takes_files_as_the_disk_lists_them(
    market: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = torchreid_module("data.datasets.image.market1501")
    files = [market / "query" / name(identity, 1, 0, "jpg") for identity in (3, 1, 2)]
    for path in files:
        write_image(path, 3, 1, 0)
    monkeypatch.setattr(module.glob, "glob", lambda pattern: [str(path) for path in files])
    theirs = [path for path, _, _ in module.Market1501.process_dir(None, str(market / "query"))]
    assert theirs == [str(path) for path in files]  # unsorted
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(files))
    monkeypatch.setattr(Path, "is_dir", lambda folder: True)
    assert [record.path for record in open_data("market1501", market).query] == sorted(files)


def test_file_names_that_do_not_fit(market: Path) -> None:
    for number in range(5):
        write_image(market / "query" / f"person{number}.png", 1, 1, 0)
    with pytest.raises(ValueError, match=r"5 file name\(s\) .*person0.png; person1.png; person2.png \.\.\."):
        open_data("market1501", market)
    shutil.rmtree(market / "bounding_box_train")
    expected = r"expected the folders bounding_box_train.*found bounding_box_test"
    with pytest.raises(FileNotFoundError, match=expected):
        open_data("market1501", market)


def test_dukemtmc(tmp_path: Path) -> None:
    for folder, camera in (("bounding_box_train", 8), ("query", 2), ("bounding_box_test", 4)):
        write_image(tmp_path / "DukeMTMC-reID" / folder / f"0005_c{camera}_f0046182.jpg", 5, camera, 0)
    data = open_data("dukemtmc", tmp_path)
    assert [(one.identity, one.camera) for one in (*data.train, *data.query, *data.gallery)] == [
        (5, 8),
        (5, 2),
        (5, 4),
    ]


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17(tmp_path: Path, folders: tuple[str, str]) -> None:
    base = tmp_path / "MSMT17_V1"
    for listed, folder, lines in (
        ("train", folders[0], ["0000/0000_000_01_0303morning_0008_0.jpg 0"]),
        ("val", folders[0], ["0000/0000_001_14_0303morning_0008_0.jpg 0"]),
        ("query", folders[1], ["0000/0000_002_05_0303noon_0008_0.jpg 0"]),
        (
            "gallery",
            folders[1],
            ["0001/0001_000_06_0303noon_0008_0.jpg 1", "0000/0000_003_15_0303noon_0008_0.jpg 0"],
        ),
    ):
        for line in lines:
            write_image(base / folder / line.split()[0], 1, 1, 0)
        (base / f"list_{listed}.txt").write_text("\n".join(lines) + "\n")
    data = open_data("msmt17", tmp_path)
    assert [record.camera for record in data.train] == [1, 14]  # the lists train and val
    assert [(record.identity, record.camera) for record in data.gallery] == [
        (0, 15),
        (1, 6),
    ]  # 0 is a person here
    check_data(data, allow_duplicates=True)
    (base / "list_query.txt").write_text("0000/odd.jpg 0\n")
    with pytest.raises(ValueError, match=r"1 line\(s\).*odd.jpg"):
        open_data("msmt17", tmp_path)


def test_csv(tmp_path: Path) -> None:
    rows = ["path,identity,camera,split"]
    for number, (identity, camera, split) in enumerate(
        [
            ("ann", "door", "train"),
            ("bob", "door", "train"),
            ("cat", "door", "query"),
            ("cat", "hall", "gallery"),
            ("-1", "", "gallery"),
        ]
    ):
        write_image(tmp_path / "images" / f"{number}.png", number, 1, number)
        rows.append(f"images/{number}.png,{identity},{camera},{split}")
    file = tmp_path / "animals.csv"
    file.write_text("\n".join(rows) + "\n")
    data = open_data("csv", file)
    assert [record.identity for record in data.train] == [0, 1]
    assert data.query[0].identity == data.gallery[0].identity == 2
    assert data.query[0].camera != data.gallery[0].camera
    assert data.left_out == {"gallery": 1}
    assert name_of(data) == "animals"
    check_data(data)
    file.write_text("\n".join([*rows, "images/9.png,dan,,test"]) + "\n")
    with pytest.raises(ValueError, match=r"1 row\(s\).*line 7.*dan"):
        open_data("csv", file)
    file.write_text("file,identity\n")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) path, camera, split"):
        open_data("csv", file)


def test_only_official_data_gets_the_official_name(market: Path) -> None:
    data = open_data("market1501", market)
    assert name_of(data) == "m"
    assert name_of(data, "nyala") == "nyala"
    with pytest.raises(ConfigError, match="data_name=market1501 is the name of the official data"):
        name_of(data, "market1501")
    sizes = OFFICIAL_SIZES["market1501"]
    lists = [data.train[:1] * number for number in sizes]
    assert name_of(ReidData("market1501", market, *lists)) == "market1501"
    for folder in ("market1501", "Market-1501-v15.09.15"):
        assert name_of(ReidData("market1501", Path(folder), [], [], [])) == "market1501-like"


def test_empty_split(market: Path) -> None:
    for path in (market / "bounding_box_test").iterdir():
        path.unlink()
    write_image(market / "bounding_box_test" / name(-1, 1, 0), -1, 1, 0)
    with pytest.raises(
        ValueError, match=r"no images for gallery \(images: train 18, query 4, gallery 0; .*1 in gallery"
    ):
        check_data(open_data("market1501", market))


def test_query_identities_absent_from_the_gallery(market: Path) -> None:
    for identity in (8, 9):
        for camera in (2, 3):
            (market / "bounding_box_test" / name(identity, camera, 0)).unlink()
    data = open_data("market1501", market)
    with pytest.raises(
        ValueError, match=r"2 of 4 query identities do not appear .*identities 8, 9; 2 of 4 queries.*0008_c1"
    ):
        check_data(data)
    check_data(data, allow_unmatched=True)


def test_no_match_from_another_camera(market: Path) -> None:
    for camera in (2, 3):
        (market / "bounding_box_test" / name(7, camera, 0)).unlink()
    write_image(market / "bounding_box_test" / name(7, 1, 1), 7, 1, 1)
    data = open_data("market1501", market)
    with pytest.raises(
        ValueError, match=r"1 of 4 queries have no match from another camera.*0007_c1.*\{1: 1, 2: 3, 3: 3\}"
    ):
        check_data(data)
    check_data(data, cameras=False)


def test_missing_cameras(market: Path) -> None:
    data = open_data("market1501", market)
    data.gallery = [record._replace(camera=None) for record in data.gallery]
    with pytest.raises(ValueError, match=r"camera is missing for 8 of 12 .*cameras=none"):
        check_data(data)
    check_data(data, cameras=False)


def test_missing_files_and_duplicates(market: Path) -> None:
    copy = market / "bounding_box_test" / name(7, 4, 9)
    shutil.copy(market / "query" / name(7, 1, 0), copy)
    with pytest.raises(
        ValueError, match=r"1 image\(s\) exist more than once .*query/0007_c1.* = gallery/0007_c4"
    ):
        check_data(open_data("market1501", market))
    check_data(open_data("market1501", market), allow_duplicates=True)
    data = open_data("market1501", market)
    copy.unlink()
    with pytest.raises(ValueError, match=r"1 of 31 listed image files do not exist.*0007_c4"):
        check_data(data)
    data = open_data("market1501", market)
    data.query = [*data.query, data.query[0]]
    with pytest.raises(ValueError, match=r"1 file\(s\) are listed more than once"):
        check_data(data)


@pytest.mark.parametrize("loading", ["memory", "files"])
def test_unreadable_images_are_counted(market: Path, loading: str) -> None:
    for number in (0, 1):
        (market / "bounding_box_train" / name(1, 1 + number, number)).write_bytes(b"no image %d" % number)
    with pytest.raises(
        ValueError, match=r"2 of 18 images cannot be used: .*0001_c1s1_000000_00.png cannot be read"
    ):
        open_manager(tiny_config(market, f"loading={loading}"), setup("cpu"))


@pytest.mark.data
def test_real_animals(data_root: Path) -> None:
    data = open_data("market1501", data_root / "market1501")
    assert [len(data.train), len(data.query), len(data.gallery)] == [1099, 108, 613]
    check_data(data)
