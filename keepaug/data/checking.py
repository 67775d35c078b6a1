"""All that will be read is read once before the first epoch, in parallel; what was good is remembered."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL

from keepaug.data.files import ImageFiles
from keepaug.data.reading import ImageError, read_size
from keepaug.runs.cache import cache_file, keep_checked, locked, read_checked
from keepaug.runs.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")

_NAMED = 10  # files in an error
_WORTH = 500  # fewer files are not remembered: reading them again takes a second
_SAVED_EVERY = 50_000  # files, so that an interrupted check goes on where it stopped
_RULES = f"1 {PIL.__version__}"  # of what counts as good: raise the number when `read_image` refuses more
_KNOWN = np.dtype([("key", "<u8"), ("size", "<u4", 2)])


def read_all(
    read: Callable[[Item], Result], items: Sequence[Item], description: str, *, threads: int | None = None
) -> list[Result]:
    """`read` of every item, in threads, with a progress bar; the errors of all items are raised as one.

    Args:
        read: raises ValueError for what it cannot read.
        items: for example paths.
        description: of the progress bar.
        threads: by default one per core that this process may use.

    Raises:
        ImageError: how many failed, and the first ten errors.
    """
    results: list[Result] = []
    problems = []
    outcomes = _attempts(read, items, threads or min(32, own_cores()))
    for result, problem in progress(outcomes, description, total=len(items)):
        results += result
        problems += problem
    _raise(problems, len(items))
    return results


def check_images(
    paths: Sequence[str | Path],
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    description: str = "checking images",
    threads: int | None = None,
) -> np.ndarray:
    """Raise if `read_image` would refuse any of the files: each is decoded once, its sizes are compared.

    Files found good are remembered by name, size and time of change in `$KEEPAUG_CACHE` (default
    `~/.cache/keepaug`), so that the next start reads what is new alone. A cache that cannot be written or
    read costs the time and nothing else. Processes that check the same files wait for the first.

    Args:
        paths: image files.
        sizes: (height, width) that each upright image must have.
        description: of the progress bar.
        threads: see `read_all`.

    Returns:
        (N, 2) int64 height and width of the upright images.

    Raises:
        ImageError: how many files are unusable, and the first ten errors.
    """
    if isinstance(paths, ImageFiles):
        root = paths.root.absolute()
        names = [f"{root}/{name}" for name in paths.names()]
    else:
        names = [name if os.path.isabs(name) else os.path.abspath(name) for name in map(str, paths)]
    threads = threads or min(32, own_cores())
    if len(names) >= _WORTH:
        common = os.path.commonpath({os.path.dirname(name) for name in names})
        cache = cache_file("images", _RULES, common, suffix=".npy")
        with locked(cache):
            keys = _keys(names, paths)
            found, problems = _read_sizes(names, cache, keys, description, threads)
    else:
        found, problems = _read_sizes(names, None, np.zeros(0), description, threads)
    if sizes is not None:
        differ = (found != np.asarray(sizes).reshape(-1, 2)).any(axis=1) & found.any(axis=1)
        problems += [_size_problem(names[index], sizes[index]) for index in np.flatnonzero(differ).tolist()]
    _raise(problems, len(names))
    return found


def _read_sizes(
    names: Sequence[str], cache: Path | None, keys: np.ndarray, description: str, threads: int
) -> tuple[np.ndarray, list[str]]:
    """(N, 2) height and width, 0 of what cannot be read, and what is wrong with that."""
    found = np.zeros((len(names), 2), dtype=np.int64)
    new = np.arange(len(names))
    if cache:
        known = _load(cache)
        hit = np.isin(keys, known["key"])
        found[hit] = known["size"][np.searchsorted(known["key"], keys[hit])]
        new = np.flatnonzero(~hit)
    problems: list[str] = []
    read: list[int] = []
    outcomes = _attempts(read_size, [names[index] for index in new.tolist()], threads)
    for number, (size, problem) in enumerate(
        progress(outcomes, description, total=len(new), disable=not len(new)), start=1
    ):
        problems += problem
        if size:
            found[new[number - 1]] = size[0]
            read.append(int(new[number - 1]))
        if cache and (len(read) == _SAVED_EVERY or number == len(new)):
            known = _save(cache, known, keys[read], found[read])
            read = []
    return found, problems


def _attempts(
    read: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[tuple[list[Result], list[str]]]:
    """Of each item its result or its error."""

    def attempt(item: Item) -> tuple[list[Result], list[str]]:
        try:
            return [read(item)], []
        except ValueError as error:
            return [], [str(error)]

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), 1024):  # a pool keeps an object for everything it was given
            yield from pool.map(attempt, items[start : start + 1024])


def _raise(problems: Sequence[str], total: int) -> None:
    if problems:
        some = "; ".join(problems[:_NAMED])
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ImageError(f"{len(problems)} of {total} images cannot be used: {some}{more}")


def _size_problem(name: str, size: Sequence[int]) -> str:
    try:
        read_size(name, size=(size[0], size[1]))
    except ImageError as error:
        return str(error)
    return f"{name} changed while it was checked; start again"


def _keys(names: Sequence[str], paths: Sequence[str | Path]) -> np.ndarray:
    """(N,) uint64 of name, size and time of change; unique for a file that cannot be asked."""

    def ask(name: str) -> tuple[int, int]:
        try:
            status = os.stat(name)
        except OSError:
            return -1, 0
        return status.st_size, status.st_mtime_ns

    def key(name: str, size: int, time: int) -> bytes:
        if size < 0:
            return os.urandom(8)
        text = f"{name}\0{size}\0{time}".encode(errors="surrogateescape")
        return hashlib.blake2b(text, digest_size=8).digest()

    stats: Iterable[tuple[int, int]] = map(ask, names)
    if isinstance(paths, ImageFiles):
        stats = zip(paths.sizes.tolist(), paths.times.tolist(), strict=True)
    keys = (key(name, size, time) for name, (size, time) in zip(names, stats, strict=True))
    return np.frombuffer(b"".join(keys), dtype="<u8")


def _load(cache: Path) -> np.ndarray:
    """What is known, sorted by key; nothing where the cache is absent or damaged."""
    if (content := read_checked(cache)) is None:
        return np.zeros(0, dtype=_KNOWN)
    known = np.load(io.BytesIO(content), allow_pickle=False)
    return known if known.dtype == _KNOWN and known.ndim == 1 else np.zeros(0, dtype=_KNOWN)


def _save(cache: Path, known: np.ndarray, keys: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    fresh = np.zeros(len(keys), dtype=_KNOWN)
    fresh["key"], fresh["size"] = keys, sizes
    known = np.concatenate([known, fresh])
    known = known[np.unique(known["key"], return_index=True)[1]]
    content = io.BytesIO()
    np.save(content, known, allow_pickle=False)
    keep_checked(cache, content.getvalue())
    return known


def own_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
