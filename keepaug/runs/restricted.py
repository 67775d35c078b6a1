"""Reading what a user hands over: tensors, arrays, numbers and strings; nothing in a file can run.

Every file of weights and every checkpoint goes through here: torch's zip and older format, safetensors,
pickles of numpy arrays.
"""

from __future__ import annotations

import argparse
import codecs
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # torch.save's before its zip


class WeightsError(ValueError):
    """A weights file that cannot be used: says what is in it and what to do."""


def read_file(path: str | Path, *, mmap: bool = False) -> Any:
    """The content of a .pth, .pt, .tar, .safetensors or .pkl file on the CPU; nothing in it can run.

    What is told from the first bytes: torch's zip (its checksums are verified, which torch does not do),
    torch's older format, and what is no weights file at all. Neither the older format nor safetensors nor a
    pickle holds checksums.

    Args:
        path: the file.
        mmap: map the tensors of torch's zip instead of reading them, where the file will outlive them.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: empty, damaged, not weights at all, or with pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        inside = sorted(one.name for one in path.glob("*.pt")) if path.is_dir() else []
        hint = f", which is a folder; {', '.join(inside)} in it may be meant" if inside else ""
        raise FileNotFoundError(f"no weights file {path}{hint}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise WeightsError(f"{path} is empty (0 bytes); download or save it again")
    if what := _no_weights(head):
        raise WeightsError(f"{path} is {what}")
    if head.startswith(b"PK"):
        _check_zip(path)
        return _read_torch(path, mmap=mmap)
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return _read_safetensors(path)
    pickled = head.startswith(b"\x80") or path.suffix == ".pkl"  # Python 2's have no mark
    if pickled and _TORCH_MAGIC not in head[:20]:
        with path.open("rb") as file:
            try:
                return unpickle_arrays(file)
            except ValueError as error:
                raise WeightsError(f"{path}: {error}") from error
    return _read_torch(path, mmap=False)


def _no_weights(head: bytes) -> str | None:
    """What a file is that is often taken for weights."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file: git lfs pull"
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights: the download gave an error page or a log-in form"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras); export its tensors under torchvision's names"
    if (
        head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"7z\xbc\xaf", b"Rar!"))
        or head[257:262] == b"ustar"
    ):
        return "a packed archive: unpack it first (PyTorch's .pth.tar is none, whatever its name says)"
    return None


def _check_zip(path: Path) -> None:
    """Verify the checksums of a torch file: a flipped bit is otherwise another weight."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename for record in records]
            if any(name.endswith(".npy") for name in names):
                raise WeightsError(
                    f"{path} is a NumPy archive (as BiT's and JAX's weights are), not made by torch.save"
                )
            if any("/code/" in name for name in names):
                raise WeightsError(
                    f"{path} is a TorchScript program, not weights; in the program that made it, torch.save "
                    "the network's state_dict()"
                )
            if not any(name.endswith("/data.pkl") for name in names):
                raise WeightsError(f"{path} is a zip archive, but not made by torch.save; unpack it first")
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise WeightsError(
                    f"{path} has compressed records, which torch.save never makes; unpack it first"
                )
            # torch.serialization.set_crc32_options(False) leaves them all out.
            if any(record.CRC for record in records) and (bad := archive.testzip()):
                raise WeightsError(
                    f"{path} is damaged ({bad} differs from its checksum); copy or download it again"
                )
    except WeightsError:
        raise
    except Exception as error:  # zipfile raises half a dozen types for a damaged one
        raise WeightsError(f"{path} is damaged or cut short ({error}); copy or download it again") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("reading .safetensors needs safetensors: pip install 'keepaug[convert]'") from error
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); download it again") from error


def _read_torch(path: Path, *, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error)
        with path.open("rb") as file:
            pickled = file.read(1) in (b"\x80", b"P")  # or text, a picture, anything
        if pickled and ("GLOBAL" in reason or "Unsupported" in reason or "weights_only" in reason):
            lines = reason.splitlines()
            line = next((part for part in lines if "GLOBAL" in part), lines[0]).strip()
            if "DTensor" in line or "ShardedTensor" in line:
                raise _shards(path, line[:200]) from error
            raise WeightsError(
                f"{path} holds pickled objects, not only tensors ({line[:200]}); unpickling them could run "
                "any program: load it where you trust it and torch.save(model.state_dict(), ...)"
            ) from error
        line = next((part for part in reason.splitlines() if "nsupported" in part), reason.splitlines()[0])
        raise WeightsError(f"{path} is damaged or not made by torch.save ({line.strip()[:200]})") from error
    except Exception as error:  # a damaged file raises half a dozen types
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged or cut short ({reason}); copy or download it again") from error
    try:
        for name, tensor in tensors_of(content):
            if tensor.is_nested:
                raise WeightsError(
                    f"{path} holds nested tensors ({name}), which no network has; save plain ones"
                )
            kind = type(tensor)  # torch reads others where the module that has them has been imported
            if kind.__name__ == "DTensor":
                raise _shards(path, name)
            if kind not in (Tensor, torch.nn.Parameter):
                raise WeightsError(f"{path} holds a {kind.__name__} ({name}); save plain tensors")
    except RecursionError as error:
        raise WeightsError(f"{path} holds lists or dictionaries nested without end") from error
    return content


def _shards(path: Path, found: str) -> WeightsError:
    return WeightsError(
        f"{path} holds one process's shards ({found}); gather a full state dict "
        "(torch.distributed.checkpoint.state_dict, full_state_dict=True) and save that"
    )


def tensors_of(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dictionaries and lists, with their places as names."""
    if isinstance(content, Tensor):
        yield name or "its content", content
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, Mapping):
        items = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    for key, value in items:
        yield from tensors_of(value, f"{name}.{key}".lstrip("."))


def _harmless() -> list[Any]:
    """What checkpoints hold beside tensors: arguments, paths, numpy's numbers and arrays."""
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGSUmM"}
    paths = [
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, kind in (
            ("PosixPath", pathlib.PurePosixPath),
            ("PurePosixPath", pathlib.PurePosixPath),
            ("WindowsPath", pathlib.PureWindowsPath),
            ("PureWindowsPath", pathlib.PureWindowsPath),
        )
    ]
    arrays = [(value, ".".join(name)) for name, value in _ARRAYS.items()]
    return [argparse.Namespace, *dtypes, *paths, *arrays]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """As pickles made for Python 2 write bytes; no other codec, whose name would be a module to import."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the pickle encodes text as {encoding!r}, expected latin1")
    return codecs.encode(text, "latin1")


def _numpy_internals() -> dict[tuple[str, str], Any]:
    core = np.core if not hasattr(np, "_core") else np._core
    return {
        (f"numpy.{name}.{module}", function): getattr(getattr(core, module), function)
        for name in ("core", "_core")
        for module, function in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    }


_ARRAYS: dict[tuple[str, str], Any] = {
    **_numpy_internals(),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_PICKLED = {**_ARRAYS, ("collections", "OrderedDict"): OrderedDict, ("_codecs", "encode"): _encode}


class _ArrayUnpickler(pickle.Unpickler):
    """Numpy arrays and plain containers alone: a pickle may otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED:
            raise WeightsError(
                f"the pickle wants to load {module}.{name}; only numpy arrays are read, because a pickle can "
                "run any program"
            )
        return _PICKLED[module, name]


def unpickle_arrays(file: BinaryIO) -> Any:
    """A pickle of numpy arrays, numbers, strings, lists and dictionaries; Python 2's too.

    Raises:
        WeightsError: anything else in it, or a damaged file.
    """
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle raises a dozen types
        raise WeightsError(
            f"not a pickle of numpy arrays, or damaged ({type(error).__name__}: {error})"
        ) from error
