"""Reading weights of unknown origin: safely, unwrapped, with torchvision's keys."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Loaded", "WeightsError", "read_arrays", "read_classifier", "read_file"]

CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "network")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "backbone.", "encoder.", "resnet.")
_STUDENTS = ("encoder_q.", "base_encoder.", "online_encoder.", "student.")
_TEACHERS = ("encoder_k.", "momentum_encoder.", "target_encoder.", "teacher.", "queue", "predictor.")


class WeightsError(ValueError):
    """A weights file that cannot be used: says what is in it and what to do."""


@dataclass
class Loaded:
    """A classifier's tensors.

    Attributes:
        state: torchvision's keys.
        info: what the file says about itself: mean, std, color_order, arch, method, epoch ...
        notes: what was taken off or left out, for the report.
    """

    state: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_file(path: str | Path) -> Any:
    """The content of a .pth, .pt, .tar, .safetensors or .pkl file; nothing in it can run.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: empty, truncated, not weights at all, or with pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty (0 bytes); download or save it again")
    with path.open("rb") as file:
        head = file.read(200)
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the file: git lfs pull")
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(
            f"{path} is a web page, not weights: the download gave an error page or a log-in form"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".pkl":
        return read_arrays(path)
    return _read_torch(path, head)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("reading .safetensors needs safetensors: pip install 'keepaug[convert]'") from error
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); download it again") from error


def _read_torch(path: Path, head: bytes) -> Any:
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise WeightsError(
                    f"{path} is a TorchScript program, not weights; in the program that made it, torch.save the "
                    "network's state_dict()"
                )
    harmless = [argparse.Namespace, np.dtype, np.ndarray, *_numpy_scalars()]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK"))
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "GLOBAL" in reason or "Unsupported" in reason or "weights_only" in reason:
            line = next(
                (part for part in reason.splitlines() if "GLOBAL" in part), reason.splitlines()[0]
            ).strip()
            raise WeightsError(
                f"{path} holds pickled objects, not only tensors ({line[:200]}); unpickling them could run any program: "
                "load it where you trust it and torch.save(model.state_dict(), ...)"
            ) from error
        raise WeightsError(
            f"{path} is damaged or not made by torch.save ({reason.splitlines()[0][:200]})"
        ) from error
    except Exception as error:  # a truncated file raises half a dozen types
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged or cut short ({reason}); copy or download it again") from error


def _numpy_scalars() -> list[Any]:
    """Checkpoints hold accuracies as numpy numbers."""
    scalar = np.core.multiarray.scalar if not hasattr(np, "_core") else np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [scalar, *kinds]


class _ArrayUnpickler(pickle.Unpickler):
    """Numpy arrays and plain containers alone."""

    _allowed = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise WeightsError(
                f"the pickle wants to load {module}.{name}; only numpy arrays are read, because a pickle can run any program"
            )
        return super().find_class(module, name)


def read_arrays(path: str | Path) -> Any:
    """A .pkl of numpy arrays (Detectron2's model zoo format).

    Raises:
        WeightsError: anything else in it, or a damaged file.
    """
    try:
        with Path(path).open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is not a pickle of numpy arrays ({error})") from error


def read_classifier(path: str | Path, *, key: str | None = None) -> Loaded:
    """A classifier's tensors under torchvision's keys.

    Unwraps `state_dict`, `model`, `state_dict_ema` ...; strips `module.`, `encoder_q.`, `backbone.` ...; takes the query
    encoder out of MoCo-style files.

    Args:
        path: the file.
        key: which part of the file, where it has several (for example state_dict_ema).

    Raises:
        FileNotFoundError: no such file.
        WeightsError: see `read_file`; several parts and no `key`; no tensors.
    """
    content = read_file(path)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of tensors: torch.save(model.state_dict(), ...)"
        )
    loaded = _unwrap(content, Path(path), key)
    _strip(loaded)
    for name in [name for name, value in loaded.state.items() if not isinstance(value, Tensor)]:
        raise WeightsError(f"{path}: {name} is a {type(loaded.state[name]).__name__}, expected a tensor")
    return loaded


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())


def _unwrap(content: Mapping[str, Any], path: Path, key: str | None) -> Loaded:
    parts = [name for name in (*CONTAINERS, *AVERAGED) if _is_state(content.get(name))]
    if key is not None:
        if not _is_state(content.get(key)):
            raise WeightsError(
                f"--key {key}: {path} has no tensors there; it has {', '.join(parts) or 'no parts'}"
            )
        chosen = key
    elif not parts:
        if not _is_state(content):
            raise WeightsError(
                f"{path} holds no tensors; its keys are {', '.join(map(str, list(content)[:8]))}: expected a state_dict, or "
                f"one under {', '.join(CONTAINERS)}"
            )
        return Loaded(dict(content))
    elif len(parts) > 1:
        raise WeightsError(
            f"{path} holds several sets of weights ({', '.join(parts)}), which differ: choose one with --key"
        )
    else:
        chosen = parts[0]
    info = {
        name: value
        for name, value in content.items()
        if isinstance(value, str | int | float | list | tuple | bool) and name != chosen
    }
    return Loaded(dict(content[chosen]), info, [f"taken from {chosen!r}"])


def _strip(loaded: Loaded) -> None:
    """Wrappers' prefixes off, until torchvision's keys are left."""
    state: dict[str, Tensor] = OrderedDict(loaded.state)
    while True:
        if student := next((p for p in _STUDENTS if any(key.startswith(p) for key in state)), None):
            left = [key for key in state if not key.startswith(student)]
            if all(key.startswith(_TEACHERS) for key in left):
                state = {key.removeprefix(student): v for key, v in state.items() if key.startswith(student)}
                loaded.notes.append(
                    f"took {student}*, left out {len(left)} tensors of the other encoder and the queue"
                )
                continue
        prefix = next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None)
        if prefix is None and state and any(key.startswith("network.") for key in state):
            rest = [key for key in state if not key.startswith("network.")]
            if all(key.startswith("head.") for key in rest):  # our early head
                state = {key: value for key, value in state.items() if key.startswith("network.")}
                loaded.notes.append("left out the early head")
                continue
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        loaded.notes.append(f"took the prefix {prefix!r} off")
    loaded.state = dict(state)
