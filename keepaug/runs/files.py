"""Atomic writing: a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in its place.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            _write(write, file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # mkstemp's 0600 would surprise colleagues
        Path(name).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


class _Watched:
    """A file that remembers why it could not be written: `torch.save` says of a full disk
    "inline_container.cc".
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _write(write: Callable[[BinaryIO], object], file: BinaryIO) -> None:
    watched = _Watched(file)
    try:
        write(cast(BinaryIO, watched))
    except Exception as error:
        if watched.error is not None and error is not watched.error:
            raise watched.error from error
        raise


def remove_unfinished(folder: str | Path) -> None:
    """Delete what a killed process was writing, in the folder and those directly in it that are no runs of
    their own; only where no other process writes.
    """
    for pattern in (".*.partial", "*/.*.partial"):
        for path in Path(folder).glob(pattern):
            if path.parent == Path(folder) or not (path.parent / ".lock").exists():
                path.unlink(missing_ok=True)


def keep_as(path: Path, other: Path) -> None:
    """Let `other` be the file that `path` is now, while `path` stays: a hard link, or a copy where there are
    none.
    """
    waiting = other.with_name(f".{other.name}.{os.getpid()}.partial")
    waiting.unlink(missing_ok=True)
    try:
        try:
            os.link(path, waiting)
        except OSError:
            shutil.copyfile(path, waiting)
        waiting.replace(other)
    finally:
        waiting.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes_atomic(path: str | Path, content: bytes) -> Path:
    """Write bytes atomically."""
    return write_atomic(path, lambda file: file.write(content))


def write_text_atomic(path: str | Path, content: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes_atomic(path, content.encode())


def write_json_atomic(path: str | Path, content: Any) -> Path:
    """Write JSON atomically; NaN and infinity, which are not JSON, are errors.

    Raises:
        ValueError: NaN or infinity in the content.
        TypeError: something JSON cannot express.
    """
    return write_text_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
