"""Atomic writing: a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["sha256_of", "write_atomic", "write_bytes_atomic", "write_json_atomic", "write_text_atomic"]


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
            write(file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # mkstemp's 0600 would surprise colleagues
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


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
