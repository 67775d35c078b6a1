"""Atomic checkpoints: the new one is complete before it replaces the old one, and the old one is kept."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.files import keep_as, write_atomic
from keepaug.runs.restricted import read_file, tensors_of
from keepaug.runs.shapes import check_shape

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
            "gradients, or train in float32"
        )
    if path.is_file():
        keep_as(path, folder / PREVIOUS_NAME)
    return write_atomic(path, lambda file: torch.save(state, file))


def first_non_finite(state: Any) -> str | None:
    """The name of the first tensor in nested dictionaries and lists that holds NaN or infinity, or None."""
    return next((name for name, tensor in tensors_of(state) if not _is_finite(tensor)), None)


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


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
            check_shape(state, {str: Any}, path)
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
        content = read_file(path)
        odd = next((f"{name} is {kind}" for name, one in tensors_of(content) if (kind := _odd(one))), None)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).removeprefix(f'{path} ')})") from error
    if odd:
        raise ValueError(f"{path} cannot be read ({odd}; expected plain tensors with values)")
    return content


def _odd(tensor: Tensor) -> str | None:
    """What makes a tensor, which torch saves, one that neither a network nor an optimizer takes."""
    kinds = {
        "without values (meta)": tensor.is_meta,
        "quantised": tensor.is_quantized,
        str(tensor.layout): tensor.layout != torch.strided,
        str(tensor.dtype): "float8" in str(tensor.dtype) or tensor.is_complex(),
    }
    return next((kind for kind, has in kinds.items() if has), None)


@contextlib.contextmanager
def checked(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Raise unless an optimizer can take a step after it was given a state within: it takes any.

    Raises:
        TypeError: a setting of a group that is missing or of another kind than before, or a state that is
            not of its parameter.
    """
    before = [dict(group) for group in optimizer.param_groups]
    yield
    for group, own in zip(optimizer.param_groups, before, strict=True):
        for key, value in own.items():  # torch itself adds what earlier versions lack
            if key not in group:
                raise TypeError(f"{key} is missing, expected something like {value!r:.60}")
            numbers = all(type(one) in (int, float) for one in (value, group[key]))
            if not numbers and type(group[key]) is not type(value):
                raise TypeError(f"{key} is {group[key]!r:.60}, expected something like {value!r:.60}")
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if key == "step":
                fits = type(value) in (int, float) or (isinstance(value, Tensor) and value.ndim == 0)
            else:
                fits = value.shape == parameter.shape if isinstance(value, Tensor) else value is None
            if not fits:
                raise TypeError(
                    f"{key} is {value!r:.60}, expected numbers of the shape {tuple(parameter.shape)}"
                )


@contextlib.contextmanager
def restoring(path: str | Path, what: str) -> Iterator[None]:
    """Whatever a network or an optimizer raises when it is given a part of a file means another file's part.

    Raises:
        ValueError: names the file and the part.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{path}: its {what} does not fit ({reason:.300}); it is damaged, or another run's"
        ) from error
