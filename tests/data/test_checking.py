"""All files are checked before the first epoch, and good ones only once."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepaug.data import checking
from keepaug.data.checking import check_images, read_all
from keepaug.data.reading import ImageError


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("KEEPAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checking, "_WORTH", 10)
    monkeypatch.setattr(checking, "_SAVED_EVERY", 7)
    paths = []
    for number in range(30):
        path = tmp_path / "images" / f"{number % 3}" / f"{number}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 40), (number, 0, 0)).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were decoded."""
    names: list[str] = []
    lock = threading.Lock()

    def watched(path: str, **options: object) -> tuple[int, int]:
        with lock:
            names.append(Path(path).name)
        return original(path, **options)

    original = checking.read_size
    monkeypatch.setattr(checking, "read_size", watched)
    return names


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_good_file_is_decoded_once_a_changed_one_again(images: list[Path], read: list[str]) -> None:
    sizes = check_images(images)
    assert sizes.tolist() == [[40, 20 + number] for number in range(30)]
    assert sorted(read) == sorted(path.name for path in images)
    read.clear()
    assert np.array_equal(check_images(images[::-1]), sizes[::-1])
    assert np.array_equal(check_images([os.path.relpath(path) for path in images]), sizes)
    assert read == []
    status = images[4].stat()
    Image.new("RGB", (24, 40), (5, 0, 0)).save(images[4])
    os.utime(images[4], ns=(0, status.st_mtime_ns + 1))
    halve(images[5])
    images[6].unlink()
    with pytest.raises(ImageError, match=r"2 of 30 images .*5\.png .*cut short.*6\.jpg does not exist"):
        check_images(images)
    assert sorted(read) == ["4.jpg", "5.png", "6.jpg"]
    read.clear()
    with pytest.raises(ImageError, match="2 of 30"):
        check_images(images)
    assert sorted(read) == ["5.png", "6.jpg"]  # what is wrong is never remembered


def test_errors_of_all_files_together_ten_named(images: list[Path]) -> None:
    for path in images[3:17]:
        halve(path)
    sizes = [(40, 20 + number) for number in range(30)]
    sizes[0], sizes[1] = (20, 40), (9, 9)
    with pytest.raises(ImageError, match=r"16 of 30 images cannot be used: .*; and 6 more$") as caught:
        check_images(images, sizes=sizes)
    assert len(re.findall(r"cut short", str(caught.value))) == 10
    with pytest.raises(
        ImageError,
        match=r"2 of 3 images .*0\.jpg is 40 x 20.*swapped.*EXIF.*; .*1\.png is 40 x 21.*say 9 x 9",
    ):
        check_images(images[:3], sizes=sizes[:3])
    check_images(images[:3], sizes=[(40, 20), (40, 21), (40, 22)])


def test_an_interrupted_check_goes_on(
    images: list[Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = checking.read_size

    def stopping(path: str) -> tuple[int, int]:
        if Path(path).name == "20.jpg":
            raise KeyboardInterrupt
        return watched(path)

    monkeypatch.setattr(checking, "read_size", stopping)
    with pytest.raises(KeyboardInterrupt):
        check_images(images, threads=1)
    monkeypatch.setattr(checking, "read_size", watched)
    read.clear()
    check_images(images)
    assert set(read) == {path.name for path in images[14:]}


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "foreign", "a size", "zeros"])
def test_a_damaged_cache_costs_time_only(images: list[Path], read: list[str], damage: str) -> None:
    check_images(images)
    (cache,) = Path(os.environ["KEEPAUG_CACHE"]).rglob("*.npy")
    if damage == "foreign":
        np.save(cache, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        whole = cache.read_bytes()
        changed = {
            "garbage": b"x" * 99,
            "empty": b"",
            "cut": whole[:200],
            "a size": whole[:140] + b"x" + whole[141:],
            "zeros": whole[:140] + bytes(len(whole) - 140),
        }
        cache.write_bytes(changed[damage])
    read.clear()
    check_images(images)
    assert len(read) == 30
    check_images(images)
    assert len(read) == 30


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/null is no folder there either")
def test_without_a_cache_folder_everything_is_checked(
    images: list[Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPAUG_CACHE", "/dev/null/cache")
    for number in (30, 60):
        check_images(images)
        assert len(read) == number


def test_read_all_keeps_the_order_and_gathers_errors() -> None:
    assert read_all(lambda n: n * n, range(3000), "squares", threads=3) == [n * n for n in range(3000)]

    def odd(number: int) -> int:
        if number % 2 == 0:
            raise ImageError(f"{number}.png is even")
        return number

    with pytest.raises(ImageError, match=r"^2 of 4 images cannot be used: 0\.png is even; 2\.png is even$"):
        read_all(odd, range(4), "numbers")
