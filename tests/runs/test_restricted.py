"""The one reader of what a user hands over: every format it knows, nothing that can run, no changed bit."""

from __future__ import annotations

import argparse
import codecs
import io
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.restricted import WeightsError, read_file, unpickle_arrays


class Runs:
    """Leaves a file behind when it is unpickled by anything that executes."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(300, generator=generator), "b": torch.arange(5), "c": torch.ones(2, 3).half()}


def arrays() -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in tensors().items()}


def _safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors(), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "zip.pth": lambda path: torch.save(tensors(), path),
    "zip.pth.tar": lambda path: torch.save(tensors(), path),
    "old.pt": lambda path: torch.save(tensors(), path, _use_new_zipfile_serialization=False),
    "old.pkl": lambda path: torch.save(tensors(), path, _use_new_zipfile_serialization=False),
    "arrays.pkl": lambda path: path.write_bytes(pickle.dumps(arrays())),
    "python2.pkl": lambda path: path.write_bytes(pickle.dumps(arrays(), protocol=2)),
    "without_mark.pkl": lambda path: path.write_bytes(pickle.dumps(arrays(), protocol=0)),
    "arrays.pth": lambda path: torch.save(arrays(), path),
    "w.safetensors": _safetensors,
    "other_name.bin": _safetensors,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("mmap", [False, True])
def test_every_format_is_told_from_its_content(name: str, mmap: bool, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    found = read_file(tmp_path / name, mmap=mmap)
    assert found.keys() == tensors().keys()
    assert all(torch.equal(torch.as_tensor(found[key]), value) for key, value in tensors().items())


def test_what_checkpoints_hold_beside_tensors(tmp_path: Path) -> None:
    content = {
        "args": argparse.Namespace(lr=0.1, root=Path("/data")),
        "best": np.float64(71.5),
        "step": np.int64(3),
        "history": np.arange(3.0, dtype=">f4"),
        "names": np.array(["cat", "dog"]),
        "flags": np.zeros(2, bool),
    }
    torch.save(content, tmp_path / "c.pt")
    found = read_file(tmp_path / "c.pt")
    assert (found["args"].lr, str(found["args"].root)) == (0.1, "/data")
    assert (found["best"], found["step"], list(found["names"])) == (71.5, 3, ["cat", "dog"])
    assert found["history"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pt", ".tar", ".safetensors", ".bin", ""])
def test_nothing_in_a_file_runs(suffix: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / f"evil{suffix}"
    evil = {"a": torch.ones(1), "hook": Runs(mark)}
    for write in (
        lambda: torch.save(evil, path),
        lambda: torch.save(evil, path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps(evil)),
        lambda: path.write_bytes(pickle.dumps({"conv1_w": np.ones(1), "hook": Runs(mark)}, protocol=2)),
    ):
        write()
        with pytest.raises(WeightsError, match=r"any program|not a whole safetensors|deserializing"):
            read_file(path)
        with pytest.raises(ValueError, match=f"evil{suffix}"):
            read_weights_only(path)
        assert not mark.exists()


def test_a_pickle_names_no_codec_to_import() -> None:
    class Encoded:
        def __reduce__(self) -> tuple[Any, ...]:
            return codecs.encode, ("text", "zlib_codec")

    with pytest.raises(WeightsError, match="zlib_codec"):
        unpickle_arrays(io.BytesIO(pickle.dumps(Encoded())))


def test_no_flipped_bit_is_taken_for_a_weight(tmp_path: Path) -> None:
    path, damaged = tmp_path / "w.pt", tmp_path / "damaged.pt"
    torch.save(tensors(), path)
    whole = path.read_bytes()
    draw, refused = random.Random(0), 0
    inside = whole.index(tensors()["a"].numpy().tobytes())
    positions = [draw.randrange(8 * len(whole)) for _ in range(300)]
    positions += [draw.randrange(8 * inside, 8 * (inside + 1200)) for _ in range(20)]
    for position in positions:
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        damaged.write_bytes(content)
        try:
            found = read_file(damaged)
        except WeightsError:
            refused += 1
            continue
        assert all(torch.equal(found[key], value) for key, value in tensors().items()), position
    assert refused > 150  # the rest hit padding
    for length in range(0, len(whole), 97):
        damaged.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"damaged|empty"):
            read_file(damaged)


def test_files_written_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors(), tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_file(tmp_path / "w.pt")["a"], tensors()["a"])


def test_what_is_no_weights_file_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"")
    np.savez(tmp_path / "bit.npz", kernel=np.ones(3))
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    torch.save(tensors(), tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as source,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    (tmp_path / "w.pth.gz").write_bytes(b"\x1f\x8b" + bytes(50))
    (tmp_path / "list.pkl").write_bytes(b"\x80\x04]")
    with tarfile.open(tmp_path / "w.pth.tar", "w") as tar:
        tar.add(tmp_path / "w.pt", "w.pt")
    torch.save({"a": [torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])]}, tmp_path / "nested.pth")
    for name, pattern in {
        "a.npy": "empty",
        "bit.npz": "NumPy archive",
        "plain.zip": "not made by torch.save; unpack",
        "small.pt": "compressed",
        "keras.h5": "HDF5",
        "w.pth.gz": "packed archive",
        "w.pth.tar": "packed archive",
        "nested.pth": r"nested tensors \(a",
        "list.pkl": "not a pickle of numpy arrays, or damaged",
    }.items():
        with pytest.raises(WeightsError, match=rf"{name}.*{pattern}"):
            read_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        read_file(tmp_path)
    (tmp_path / "best.pt").write_bytes(b"PK")
    with pytest.raises(
        FileNotFoundError, match=r"which is a folder; best\.pt, small\.pt, w\.pt in it may be"
    ):
        read_file(tmp_path)


def test_one_processs_shards_are_no_weights(tmp_path: Path) -> None:
    """Whether torch can read them, which hangs on what the program has imported, or not."""
    path = tmp_path / "shards.pt"
    write = f"""
import torch
from torch.distributed import HashStore, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from keepaug.runs.restricted import WeightsError, read_file
init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
shards = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)), [Shard(0)])
torch.save({{"model": {{"a": shards}}}}, {str(path)!r})
try:
    read_file({str(path)!r})
except WeightsError as error:
    print(error)
"""
    read = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True, check=True).stdout
    assert "shards.pt holds one process's shards (model.a); gather a full state dict" in read
    with pytest.raises(WeightsError, match=r"holds one process's shards .*; gather a full state dict"):
        read_file(path)


class Marked(torch.Tensor):
    """What a library's own kind of tensor looks like to torch."""


def test_a_librarys_own_tensors_are_no_weights(tmp_path: Path) -> None:
    """Also where that library has told torch that they may be read."""
    torch.save({"a": torch.ones(2).as_subclass(Marked)}, tmp_path / "w.pt")
    rebuild = torch._tensor._rebuild_from_type_v2
    for allowed, message in (([], "holds pickled objects"), ([Marked, rebuild], r"holds a Marked \(a\)")):
        with torch.serialization.safe_globals(allowed), pytest.raises(WeightsError, match=message):
            read_file(tmp_path / "w.pt")
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "w.pt")
    assert torch.equal(read_file(tmp_path / "w.pt")["a"], torch.ones(2))


def test_a_text_is_no_pickle(tmp_path: Path) -> None:
    for text in ("#!/bin/sh\n", '{"step": 1}\n', "1 2 3\n"):
        (tmp_path / "notes").write_text(text)
        with pytest.raises(WeightsError, match=r"notes is damaged or not made by torch\.save") as error:
            read_file(tmp_path / "notes")
        assert "pickled" not in str(error.value)
        assert "weights_only" not in str(error.value)  # no advice to load it anyway
    torch.save({"a": Runs(tmp_path / "mark")}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="holds pickled objects"):
        read_file(tmp_path / "evil.pt")
    assert not (tmp_path / "mark").exists()
