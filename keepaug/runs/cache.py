"""Files that only save time: deleted, damaged or unwritable, they cost the time and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from keepaug.runs.files import write_bytes_atomic


def cache_file(kind: str, *parts: str, suffix: str) -> Path:
    """The file in `$KEEPAUG_CACHE` (default `~/.cache/keepaug`) for what `parts` determine; maybe none yet.

    Args:
        kind: folder in the cache.
        parts: everything that the content depends on and that the content itself does not say.
        suffix: of the file.
    """
    folder = Path(os.environ.get("KEEPAUG_CACHE") or Path.home() / ".cache" / "keepaug").expanduser()
    name = hashlib.blake2b("\0".join(parts).encode(errors="surrogateescape"), digest_size=12).hexdigest()
    return folder / kind / f"{name}{suffix}"


def keep_checked(path: Path, content: bytes) -> None:
    """Write a cache that `read_checked` tells from a damaged one; on a full or read-only disk nothing."""
    with contextlib.suppress(OSError):
        write_bytes_atomic(path, content + hashlib.sha256(content).digest())


def read_checked(path: Path) -> bytes | None:
    """What `keep_checked` wrote; None where it is absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[:-32] if hashlib.sha256(content[:-32]).digest() == content[-32:] else None


@contextlib.contextmanager
def locked(path: Path, *, timeout: float = 3600) -> Iterator[None]:
    """One process at a time fills `path`; without a lock where none can be, or after `timeout` seconds."""
    lock = FileLock(f"{path}.lock", timeout=timeout)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, Timeout, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock)
        yield
