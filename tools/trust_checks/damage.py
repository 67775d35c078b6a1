"""Damaged files: of every kind, in every place, seeded."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

_DEEP = "@deep@"
# What no field should be, and some that are only unusual.
_ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**300, "", "x", "1", "nan", "../../x",
    "\x00", "a" * 70_000, "<script>alert(1)</script>", "\ud7ff\u202e", [], {}, [[]], {"a": 1}, [None],
    [1, 2, 3, 4, 5], _DEEP,
)  # fmt: skip


class Payload:
    """Pickled, it is a program: it makes the file that tells of it."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.mark),)


def damaged(codec: str, content: bytes, chance: random.Random, mark: Path) -> tuple[bytes, str]:
    """Other content, and what was done.

    Args:
        codec: "json", "jsonl", "yaml", "torch", "pickle", "csv", "text", "image", "npz".
        content: of the whole file.
        chance: decides.
        mark: a file that exists if anything in the content was executed.
    """
    if codec in _TREES and chance.random() < 0.7:
        return _tree(codec, content, chance, mark)
    if codec in ("csv", "text") and chance.random() < 0.7:
        return _cells(content, chance)
    return _bytes(content, chance)


def _bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    size = max(1, len(content))
    at = chance.randrange(size)
    ways: list[tuple[str, Callable[[], bytes]]] = [
        ("empty", lambda: b""),
        (f"cut at {at}", lambda: content[:at]),
        (f"bit of byte {at}", lambda: content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]),
        (f"without byte {at}", lambda: content[:at] + content[at + 1 :]),
        (f"zeros from {at}", lambda: content[:at] + bytes(size - at)),
        (f"noise at {at}", lambda: content[:at] + chance.randbytes(64) + content[at + 64 :]),
        ("noise alone", lambda: chance.randbytes(300)),
        ("twice", lambda: content * 2),
        ("a web page", lambda: b"<!DOCTYPE html><html>404</html>"),
        ("UTF-16", lambda: content.decode("latin1").encode("utf-16")),
        ("a byte of no UTF-8", lambda: content[:at] + b"\xff" + content[at:]),
        ("a zero byte", lambda: content[:at] + b"\x00" + content[at:]),
    ]
    name, make = chance.choice(ways)
    return make(), name


def _tree(codec: str, content: bytes, chance: random.Random, mark: Path) -> tuple[bytes, str]:
    load, dump = _TREES[codec]
    tree = copy.deepcopy(load(content))
    places = list(_places(tree))
    # All levels alike, else thousands of leaves would hide the structure above them.
    depth = chance.choice(sorted({len(place) for place in places}))
    place = chance.choice([one for one in places if len(one) == depth])
    odd: Any = chance.choice(_ODD)
    if codec in ("torch", "pickle") and chance.random() < 0.5:
        odd = _odd_tensor(chance, mark)
    name = ".".join(map(str, place)) or "the whole"
    if not place:
        return dump(odd, mark), f"{name} is {_short(odd)}"
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    way = chance.random()
    if way < 0.15:
        del parent[place[-1]]
        return dump(tree, mark), f"{name} left out"
    if way < 0.25 and isinstance(parent, dict):
        parent[chance.choice(["", "x", 3, f"{place[-1]}s"])] = parent.pop(place[-1])
        return dump(tree, mark), f"{name} under another name"
    parent[place[-1]] = odd
    return dump(tree, mark), f"{name} is {_short(odd)}"


def _places(tree: Any, before: tuple[Any, ...] = ()) -> Any:
    yield before
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _places(value, (*before, key))


def _short(value: Any) -> str:
    return f"{type(value).__name__} {str(value) if isinstance(value, str) else repr(value)}"[:60]


def _odd_tensor(chance: random.Random, mark: Path) -> Any:
    ways: list[Callable[[], Any]] = [
        lambda: torch.ones(2, 2),
        lambda: torch.ones(2, 2).to(torch.float8_e4m3fn),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.ones(2, 2).to_sparse(),
        lambda: torch.ones(2, 2, dtype=torch.complex64),
        lambda: torch.tensor([]),
        lambda: torch.tensor(True),
        lambda: torch.full((3,), float("nan")),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.ones(2, device="meta"),
        lambda: Payload(str(mark)),
    ]
    return chance.choice(ways)()


def _cells(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    lines = content.decode("latin1").splitlines(keepends=True)
    at = chance.randrange(len(lines))
    separator = "," if "," in lines[at] else " "
    cells = lines[at].rstrip("\n").split(separator)
    column = chance.randrange(len(cells))
    odd = str(
        chance.choice(["", "x", "-1", "9" * 400, "1e999", "a" * 140_000, '"', "\x00", "../../etc", "é,"])
    )
    cells[column] = odd
    lines[at] = separator.join(cells) + "\n"
    if chance.random() < 0.15:
        del lines[at]
    return "".join(lines).encode("latin1"), f"line {at + 1}, column {column + 1} is {odd[:20]!r}"


def _dump_json(tree: Any, mark: Path) -> bytes:
    deep = "[" * 100_000 + "]" * 100_000
    return json.dumps(tree, default=str).replace(f'"{_DEEP}"', deep).encode("utf-8", "surrogatepass")


def _dump_lines(tree: Any, mark: Path) -> bytes:
    lines = tree if isinstance(tree, list) else [tree]
    return b"".join(_dump_json(line, mark) + b"\n" for line in lines)


def _dump_yaml(tree: Any, mark: Path) -> bytes:
    deep = random.Random(len(str(tree))).choice(
        [
            "[" * 3000 + "]" * 3000,
            "&a [*a]",
            f"!!python/object/apply:pathlib.Path.touch [{mark}]",
            "{? [a]: b}",
        ]
    )
    return yaml.safe_dump(tree, sort_keys=False).replace(f"'{_DEEP}'", deep).encode()


def _deepened(tree: Any) -> Any:
    if isinstance(tree, str) and tree == _DEEP:
        deep: list[Any] = []
        for _ in range(400):
            deep = [deep]
        return deep
    if isinstance(tree, dict):
        return {key: _deepened(value) for key, value in tree.items()}
    return [_deepened(value) for value in tree] if type(tree) is list else tree


def _dump_torch(tree: Any, mark: Path) -> bytes:
    file = io.BytesIO()
    torch.save(_deepened(tree), file)
    return file.getvalue()


def _load_torch(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _load_lines(content: bytes) -> Any:
    return [json.loads(line) for line in content.decode().splitlines()]


_TREES: dict[str, tuple[Callable[[bytes], Any], Callable[[Any, Path], bytes]]] = {
    "json": (json.loads, _dump_json),
    "jsonl": (_load_lines, _dump_lines),
    "yaml": (yaml.safe_load, _dump_yaml),
    "torch": (_load_torch, _dump_torch),
    "pickle": (
        lambda content: pickle.loads(content, encoding="latin1"),
        lambda tree, mark: pickle.dumps(tree),
    ),
}


def same_kind(codec: str, before: bytes, after: bytes) -> bool:
    """Whether the damaged file says something of the same structure: other values, perhaps, but of the same
    types, so that nobody could know that they are not meant. Left-out keys count where defaults exist.
    """
    if codec in ("csv", "text", "image"):
        return True  # any text is a name, any picture a picture
    if codec == "jsonl" or codec not in _TREES:
        return before == after  # a run knows its own lines
    load = _TREES[codec][0]
    try:
        return _alike(load(before), load(after), quoted=codec == "yaml")
    except Exception:
        return False


def _alike(one: Any, other: Any, *, quoted: bool = False) -> bool:
    """Whether two trees have the same types in the same places.

    Args:
        one: as it was.
        other: as it is.
        quoted: numbers may stand in quotes.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        shared = one.keys() & other.keys()
        return shared == other.keys() and all(_alike(one[key], other[key], quoted=quoted) for key in shared)
    if isinstance(one, list) and isinstance(other, list):
        return all(_alike(*pair, quoted=quoted) for pair in zip(one, other, strict=False))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and one.layout == other.layout
    numbers = (int, float)
    if quoted and type(one) in numbers and isinstance(other, str):
        other = yaml.safe_load(other)
    both = type(one) in numbers and type(other) in numbers
    return both or type(one) is type(other)
