"""Lists of very many image files: what lies in a folder, remembered while the folder does not change."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from keepaug.runs.cache import cache_file
from keepaug.runs.files import write_bytes_atomic

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".jp2", ".avif", ".tga"
)  # fmt: skip
_WORTH = 100_000  # fewer files are listed anew at each start, which takes a second
_SETTLED = 2e9  # nanoseconds after which a folder's time tells a later change apart
_ARRAYS = ("names", "sizes", "times", "folders", "folder_times")


def is_hidden(name: str) -> bool:
    """Whether systems put such a name beside the data: .DS_Store, ._a.jpg (AppleDouble), __MACOSX ..."""
    return name.startswith(".") or name == "__MACOSX"


class ImageFiles(Sequence[Path]):
    """Paths of a folder's images in a few arrays, because processes share those and not a million objects.

    Attributes:
        root: the folder.
        packed: uint8, the names relative to `root` with slashes, a zero byte after each.
        sizes: (N,) int64 bytes; -1 of a link to nothing.
        times: (N,) int64 time of change in nanoseconds.
    """

    def __init__(self, root: Path, packed: np.ndarray, sizes: np.ndarray, times: np.ndarray) -> None:
        self.root, self.packed, self.sizes, self.times = root, packed, sizes, times
        self._ends = np.flatnonzero(packed == 0)
        if not len(self._ends) == len(sizes) == len(times):
            raise ValueError(f"{len(self._ends)} names, {len(sizes)} sizes and {len(times)} times")

    @staticmethod
    def of(root: Path, names: Sequence[str], sizes: Sequence[int], times: Sequence[int]) -> ImageFiles:
        """From lists."""
        return ImageFiles(root, _packed(names), np.array(sizes, np.int64), np.array(times, np.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> ImageFiles: ...
    def __getitem__(self, index: int | slice) -> Path | ImageFiles:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        index = range(len(self))[index]
        start = self._ends[index - 1] + 1 if index else 0
        return self.root / os.fsdecode(self.packed[start : self._ends[index]].tobytes())

    def __iter__(self) -> Iterator[Path]:
        return (self.root / name for name in self.names())

    def names(self) -> list[str]:
        """Paths relative to `root`, with slashes."""
        return _unpacked(self.packed)

    def take(self, indices: Sequence[int]) -> ImageFiles:
        """The files at these places, in this order."""
        names, places = self.names(), np.asarray(indices, dtype=np.int64)
        packed = _packed([names[place] for place in places.tolist()])
        return ImageFiles(self.root, packed, self.sizes[places], self.times[places])


def find_images(root: str | Path) -> tuple[ImageFiles, list[str]]:
    """Everything below `root` that is named like an image, sorted, and the names of the folders in it.

    Hidden files and folders are left out (`is_hidden`). The list of a folder with 100,000 images or more is
    remembered in `$KEEPAUG_CACHE` (default `~/.cache/keepaug`) and used as long as no folder in it has
    another time of change: files added, removed or renamed are noticed, one overwritten in place is not.

    Args:
        root: an existing folder.
    """
    root = Path(root)
    cache = cache_file("folders", str(root.absolute()), suffix=".npz")
    if (known := _load(cache, root)) is not None:
        return known
    now = time.time_ns()
    files: list[tuple[str, int, int]] = []
    folders: list[tuple[str, int]] = []
    _walk(str(root), "", files, folders)
    files.sort(key=lambda file: file[0].replace("/", "\0"))  # part by part, as paths are sorted
    names, sizes, times = (list(part) for part in zip(*files, strict=True)) if files else ([], [], [])
    listed = ImageFiles.of(root, names, sizes, times)
    if len(files) >= _WORTH and max(changed for _, changed in folders) < now - _SETTLED:
        content = io.BytesIO()
        np.savez(
            content,
            names=listed.packed,
            sizes=listed.sizes,
            times=listed.times,
            folders=_packed([name for name, _ in folders]),
            folder_times=np.asarray([changed for _, changed in folders], dtype=np.int64),
        )
        with contextlib.suppress(OSError):  # read-only or full: the next start lists again
            write_bytes_atomic(cache, content.getvalue())
    return listed, [name for name, _ in folders if name]


def _walk(
    folder: str, prefix: str, files: list[tuple[str, int, int]], folders: list[tuple[str, int]]
) -> None:
    folders.append((prefix.rstrip("/"), os.stat(folder).st_mtime_ns))
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_hidden(name):
                continue
            # Class folders may be links; links further down could lead in a circle.
            if entry.is_dir(follow_symlinks=not prefix):
                _walk(entry.path, f"{prefix}{name}/", files, folders)
            elif name.lower().endswith(EXTENSIONS):
                try:
                    status = entry.stat()
                except OSError:
                    files.append((prefix + name, -1, 0))
                else:
                    files.append((prefix + name, status.st_size, status.st_mtime_ns))


def _packed(names: Sequence[str]) -> np.ndarray:
    return np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in names), dtype=np.uint8)


def _unpacked(packed: np.ndarray) -> list[str]:
    return os.fsdecode(packed.tobytes()).split("\0")[:-1]


def _load(cache: Path, root: Path) -> tuple[ImageFiles, list[str]] | None:
    """What is known, unless the cache is absent or damaged, or a folder has changed."""
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as content:
            names, sizes, times, folders, folder_times = (content[key] for key in _ARRAYS)
        listed = _unpacked(folders)
        changed = [os.stat(root / name).st_mtime_ns for name in listed]
        if changed != folder_times.tolist():
            return None
        files = ImageFiles(root, names, sizes, times)
    except Exception:  # a damaged archive raises half a dozen types
        return None
    return files, [name for name in listed if name]
