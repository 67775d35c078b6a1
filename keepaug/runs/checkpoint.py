"""Atomic checkpoints: the new one is complete before it replaces the old one, and the old one is kept."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from keepaug.runs.files import write_atomic

__all__ = ["FILE_NAME", "PREVIOUS_NAME", "load_checkpoint", "read_weights_only", "save_checkpoint"]

FILE_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint.previous.pt"


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> Path:
    """Write `checkpoint.pt`; the one before stays as `checkpoint.previous.pt`.

    Args:
        folder: the run folder.
        state: tensors, numbers, strings, and lists and dictionaries of them: what `weights_only` loading allows.
    """
    folder = Path(folder)
    path, previous = folder / FILE_NAME, folder / PREVIOUS_NAME
    # The order matters: at every instant one of the two names holds a whole checkpoint.
    fresh = write_atomic(folder / f"{FILE_NAME}.new", lambda file: torch.save(state, file))
    if path.is_file():
        path.replace(previous)
    fresh.replace(path)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run folder on the CPU, or None where there is none.

    A damaged newest one is passed over with a warning.

    Raises:
        ValueError: there are checkpoints and none can be read.
    """
    folder = Path(folder)
    problems = []
    for name in (FILE_NAME, f"{FILE_NAME}.new", PREVIOUS_NAME):
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
    """`torch.load(weights_only=True)` on the CPU, any failure a ValueError that names the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path} cannot be read ({reason[0] if reason else type(error).__name__})"
        ) from error
