"""Atomic checkpoints: the new one is complete before it replaces the old one, and the old one is kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.files import keep_as, write_atomic
from keepaug.runs.restricted import read_file

__all__ = [
    "FILE_NAME",
    "PREVIOUS_NAME",
    "first_non_finite",
    "has_checkpoint",
    "load_checkpoint",
    "read_weights_only",
    "save_checkpoint",
]

FILE_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint.previous.pt"
# In the order of reading. Earlier versions could be interrupted between two renames, which left ".new".
_NAMES = (FILE_NAME, f"{FILE_NAME}.new", PREVIOUS_NAME)


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a run has left a checkpoint in the folder, whole or not: the one answer to "is there a run
    here?".
    """
    return any((Path(folder) / name).is_file() for name in _NAMES)


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> Path:
    """Write `checkpoint.pt`; the one before stays as `checkpoint.previous.pt`.

    Interrupted at any instant it leaves a whole `checkpoint.pt`, the old or the new one.

    Args:
        folder: the run folder.
        state: tensors, numbers, strings, and lists and dictionaries of them: what `weights_only` loading
            allows.

    Raises:
        NonFiniteLossError: a tensor in the state is not finite; nothing is written.
    """
    folder = Path(folder)
    path = folder / FILE_NAME
    if bad := first_non_finite(state):
        kept = (
            f"the last good checkpoint is {path}" if has_checkpoint(folder) else "there is no checkpoint yet"
        )
        raise NonFiniteLossError(
            f"{bad} is no longer finite, so it is not saved; {kept}. Lower the learning rate, clip the "
            f"gradients, or "
            "train in float32"
        )
    if path.is_file():
        keep_as(path, folder / PREVIOUS_NAME)
    return write_atomic(path, lambda file: torch.save(state, file))


def first_non_finite(state: Any, name: str = "") -> str | None:
    """The name of the first tensor in nested dictionaries and lists that holds NaN or infinity, or None."""
    if isinstance(state, Tensor):
        finite = not (state.is_floating_point() or state.is_complex()) or bool(torch.isfinite(state).all())
        return None if finite else name
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(state, Mapping):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    return next(
        (bad for key, value in items if (bad := first_non_finite(value, f"{name}.{key}".lstrip(".")))), None
    )


def load_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run folder on the CPU, or None where there is none.

    A damaged newest one is passed over with a warning.

    Raises:
        ValueError: there are checkpoints and none can be read.
    """
    folder = Path(folder)
    problems = []
    for name in _NAMES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            state = read_weights_only(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{'; '.join(problems)}; going on from {path}", UserWarning, stacklevel=2)
        return dict(state)
    if problems:
        raise ValueError(f"no checkpoint can be read: {'; '.join(problems)}; start again in another folder")
    return None


def read_weights_only(path: str | Path) -> Any:
    """What `restricted.read_file` reads, any failure a ValueError that names the file."""
    try:
        return read_file(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).removeprefix(f'{path} ')})") from error
