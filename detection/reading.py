"""A classifier's ResNet in a checkpoint of whatever project: found, unwrapped, under torchvision's keys."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detection.architecture import ArchitectureError, is_complete
from detection.other_networks import named_architectures, other_network, part_of_another
from keepaug.runs.restricted import WeightsError, read_file

# Wrappers that may stand anywhere in a key.
_INSIDE = re.compile(r"(?<![^.])(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
# Two networks in one file of which the first is the one that is meant: MoCo, MoCo v3, BYOL.
_PAIRS = (
    ("encoder_q", "encoder_k"),
    ("base_encoder", "momentum_encoder"),
    ("online_encoder", "target_encoder"),
    ("online_network", "target_network"),
    ("online_net", "target_net"),
)
_WRAPPERS = ("module", "model", "network", "backbone", "encoder")
_NORMALISATION = ("mean", "std")
_TRUNK = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
# What may stand beside a trunk without being a part of it. Anything else could be, and is an error.
_HEAD = re.compile(
    r"fc|classif|linear|logit|head|proj|predict|prototype|queue|neck|mlp|aux|loss|criterion|teacher|student"
    r"|momentum|target|online|cent(er|re)|embed|decoder|temperature|normali[sz]|^mean$|^std$|^mu$|^sigma$"
    r"|n_averaged|num_updates|^updates$|^step$|initted|decay|counter|metric|acc|global_pool|avgpool"
    r"|last_layer|rot|jigsaw|memory|bank|bottleneck|logvar|ema",
    re.IGNORECASE,
)


class _Layout(NamedTuple):
    """How a project names torchvision's modules: two keys that tell it, and what all become."""

    stem: str
    block: str
    rules: tuple[tuple[str, Callable[[re.Match[str]], str]], ...]


def _hugging_face(match: re.Match[str]) -> str:
    at = f"layer{int(match[1]) + 1}.{match[2]}."
    kind = ("conv", "bn")[match[5] == "normalization"]
    return f"{at}{kind}{int(match[4]) + 1}." if match[4] else f"{at}downsample.{('conv', 'bn').index(kind)}."


_LAYOUTS = (
    _Layout("conv1.weight", "layer1.0.conv1.weight", ()),
    # torch.nn.Sequential of a ResNet's children: lightly, mmselfsup, many theses
    _Layout(
        "0.weight",
        "4.0.conv1.weight",
        (
            (r"^([01])\.", lambda match: ("conv1.", "bn1.")[int(match[1])]),
            (r"^([4-7])\.", lambda match: f"layer{int(match[1]) - 3}."),
        ),
    ),
    _Layout(
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
        (
            (
                r"^embedder\.embedder\.(convolution|normalization)\.",
                lambda match: ("conv1.", "bn1.")[match[1] == "normalization"],
            ),
            (
                r"^encoder\.stages\.(\d)\.layers\.(\d+)\.(layer\.(\d)|shortcut)\."
                r"(convolution|normalization)\.",
                _hugging_face,
            ),
        ),
    ),
)


@dataclass
class Loaded:
    """A classifier's tensors.

    Attributes:
        state: torchvision's keys; beside the trunk only what its name ties to it (`fc.`), or is unknown.
        info: everything that the file says of itself, without tensors: mean, std, arch, settings, epoch ...
        notes: where the tensors were found and what was left out, for the report.
        rest: tensors of the same part of the file outside the trunk, under the file's names: heads.
    """

    state: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rest: dict[str, Tensor] = field(default_factory=dict)


class _Candidate(NamedTuple):
    """A ResNet in a file."""

    part: str  # path of the dictionary that holds it: "state_dict", "teacher.model"; "" is the file itself
    prefix: str
    layout: _Layout

    def __str__(self) -> str:
        named = ([f"--key {self.part}"] if self.part else []) + (
            [f"--prefix {self.prefix}"] if self.prefix else []
        )
        return " ".join(named) or "--prefix ''"


def read_classifier(path: str | Path, *, key: str | None = None, prefix: str | None = None) -> Loaded:
    """A classifier's tensors under torchvision's keys.

    Looks through every dictionary of the file for prefixes P under which `P + conv1.weight` and
    `P + layer1.0.conv1.weight` stand, takes the ResNet below the one that there is, and notes what it leaves
    out. Of two in files of MoCo and BYOL it takes the query's or online encoder; else several are an error.

    Args:
        path: the file.
        key: which part of the file, where it has several (for example state_dict_ema).
        prefix: of the keys, where one part has several networks (for example backbone.), or where tensors
            beside the ResNet are not known as a head: given, they are left out.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: cannot be read; no tensors; several networks and no `key` or `prefix`.
        ArchitectureError: another network.
    """
    try:
        return _read(Path(path), key, prefix)
    except RecursionError as error:
        raise WeightsError(f"{path} holds lists or dictionaries nested without end") from error


def _read(path: Path, key: str | None, prefix: str | None) -> Loaded:
    content = read_file(path, mmap=True)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of tensors: "
            "torch.save(model.state_dict(), ...)"
        )
    if not (parts := dict(_parts(content))):
        some = ", ".join(map(str, list(content)[:8]))
        raise WeightsError(
            f"{path} holds no tensors under names; its keys are {some}: expected a state_dict, or one under "
            "state_dict, model ..."
        )
    if key is not None:
        if not (chosen := {name: part for name, part in parts.items() if f"{name}.".startswith(f"{key}.")}):
            raise WeightsError(
                f"--key {key}: {path} has no tensors there; it has "
                f"{', '.join(filter(None, parts)) or 'no parts'}"
            )
    else:
        chosen = parts
    if key is None and content.keys() >= {"state_dict_ema", "classes", "provenance"}:
        chosen = {"state_dict_ema": parts["state_dict_ema"]}  # our own file: what its run evaluated
    found = _choose(path, chosen, prefix)
    part, state = max(chosen.items(), key=lambda item: len(item[1]))
    whole = found is not None and is_complete(_trunk(parts[found.part], found))
    if what := (part_of_another(state) or (None if whole else other_network(state))):
        names = dict(named_architectures(_described(content, path, parts)))
        called = (
            f" (the file calls itself {', '.join(map(repr, dict.fromkeys(names.values())))})" if names else ""
        )
        raise ArchitectureError(f"{what}{called}")
    if found is None:
        about = [f"taken from {part!r}"] if part else []
        return Loaded(_without_common_prefix(state), _described(content, path, parts), about)
    return _take(found, parts, prefix is not None, _described(content, path, parts))


def _parts(content: Mapping[Any, Any], where: str = "") -> Iterable[tuple[str, dict[str, Tensor]]]:
    """Every dictionary in the file that holds tensors, by its path."""
    own = {}
    for key, value in content.items():
        name = key.decode("latin1") if isinstance(key, bytes) else str(key)
        if isinstance(value, Mapping):
            yield from _parts(value, f"{where}.{name}" if where else name)
        elif (tensor := _as_tensor(value)) is not None:
            own[_INSIDE.sub("", name)] = tensor
    if any(value.ndim > 0 for value in own.values()):
        yield where, own


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))
    return None


def as_tensors(content: Mapping[Any, Any], where: str | Path) -> dict[str, Tensor]:
    """A flat dictionary of tensors or numpy arrays under string keys.

    Raises:
        WeightsError: something else in it.
    """
    found = {}
    for key, value in content.items():
        if (tensor := _as_tensor(value)) is None:
            hint = (
                "; if it is a classifier's checkpoint, convert it first" if isinstance(value, Mapping) else ""
            )
            raise WeightsError(
                f"{where} holds a {type(value).__name__} under {str(key)[:80]!r}, expected arrays alone{hint}"
            )
        found[key.decode("latin1") if isinstance(key, bytes) else str(key)] = tensor
    return found


def _choose(path: Path, parts: Mapping[str, dict[str, Tensor]], prefix: str | None) -> _Candidate | None:
    """The one ResNet of the file, or None where there is none.

    Raises:
        WeightsError: there are several.
    """
    everything = [
        _Candidate(part, key.removesuffix(layout.stem), layout)
        for part, state in parts.items()
        for layout in _LAYOUTS
        for key in state
        if (key == layout.stem or key.endswith(f".{layout.stem}"))
        and f"{key.removesuffix(layout.stem)}{layout.block}" in state
    ]
    candidates = [one for one in everything if prefix is None or one.prefix.rstrip(".") == prefix.rstrip(".")]
    if prefix is not None and not candidates:
        known = ", ".join(map(str, everything)) or "none"
        raise WeightsError(f"--prefix {prefix}: {path} has no ResNet there; it has {known}")
    if not (whole := [one for one in candidates if is_complete(_trunk(parts[one.part], one))]):
        return max(candidates, key=lambda one: len(_trunk(parts[one.part], one)), default=None)
    different = _distinct(_without_momentum(whole), parts)
    if len(different) > 1:
        raise WeightsError(
            f"{path} holds several sets of weights, which differ: choose one with --key or --prefix ("
            f"{'; '.join(map(str, different))})"
        )
    return different[0]


def _without_momentum(candidates: list[_Candidate]) -> list[_Candidate]:
    def is_copy(one: _Candidate) -> bool:
        return any(
            one.prefix != (other := re.sub(rf"(?<![a-z_]){slow}(?![a-z_])", fast, one.prefix))
            and any(other == rival.prefix and one.part == rival.part for rival in candidates)
            for fast, slow in _PAIRS
        )

    return [one for one in candidates if not is_copy(one)]


def _distinct(candidates: list[_Candidate], parts: Mapping[str, dict[str, Tensor]]) -> list[_Candidate]:
    """One of those with equal tensors in one part: a network under two names is one network."""
    kept: list[_Candidate] = []
    for one in sorted(candidates, key=lambda one: len(one.prefix)):
        mine = _trunk(parts[one.part], one)
        if not any(
            one.part == other.part and _equal(mine, _trunk(parts[other.part], other)) for other in kept
        ):
            kept.append(one)
    return [one for one in candidates if one in kept]


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        value.shape == second[key].shape
        and value.dtype == second[key].dtype
        and torch.equal(value, second[key])
        for key, value in first.items()
    )


def _renamed(key: str, layout: _Layout) -> str:
    for pattern, replacement in layout.rules:
        key, count = re.subn(pattern, replacement, key)
        if count:
            break
    return key


def _below(state: Mapping[str, Tensor], one: _Candidate) -> dict[str, Tensor]:
    """Everything below the candidate's prefix, under torchvision's names."""
    return {
        _renamed(key.removeprefix(one.prefix), one.layout): value
        for key, value in state.items()
        if key.startswith(one.prefix)
    }


def _trunk(state: Mapping[str, Tensor], one: _Candidate) -> dict[str, Tensor]:
    return {key: value for key, value in _below(state, one).items() if key.partition(".")[0] in _TRUNK}


def _take(
    one: _Candidate, parts: Mapping[str, dict[str, Tensor]], by_hand: bool, info: dict[str, Any]
) -> Loaded:
    notes = [f"taken from {one.part!r}"] if one.part else []
    if one.prefix:
        notes.append(f"took the prefix {one.prefix!r} off")
    below = _below(parts[one.part], one)

    def beside(key: str) -> bool:
        top = key.partition(".")[0]
        return top not in (*_TRUNK, "fc") and (by_hand or _HEAD.search(top) is not None)

    kept = {key: value for key, value in below.items() if not beside(key)}
    rest = {key: value for key, value in parts[one.part].items() if not key.startswith(one.prefix)}
    rest |= {f"{one.prefix}{key}": value for key, value in below.items() if beside(key)}
    if rest:
        notes.append(f"left out {count_by_group(rest, one.prefix)}: no part of the ResNet")
    others = {name: len(own.keys() - set(_NORMALISATION)) for name, own in parts.items() if name != one.part}
    if others := {name: number for name, number in others.items() if number}:
        tops = Counter[str]()
        for name, number in others.items():
            tops[name.partition(".")[0]] += number
        some = list(tops.items())[:6]
        notes.append(
            "left out the file's "
            + ", ".join(f"{name or 'own tensors'} ({number} tensors)" for name, number in some)
            + (", ..." if len(tops) > 6 else "")
        )
    return Loaded(kept, _with_normaliser(info, rest), notes, rest)


def count_by_group(keys: Iterable[str], prefix: str = "") -> str:
    """Which modules tensors belong to, and how many each: `fc (2), num_batches_tracked (20)`.

    Args:
        keys: of the tensors.
        prefix: of the ResNet; modules beside it are told by their names below what they share with it.
    """
    path = prefix.split(".")[:-1]
    groups = Counter[str]()
    for key in keys:
        names = key.split(".")
        shared = 0
        while shared < min(len(path), len(names) - 1) and names[shared] == path[shared]:
            shared += 1
        groups[
            "num_batches_tracked" if names[-1] == "num_batches_tracked" else ".".join(names[: shared + 1])
        ] += 1
    some = sorted(groups.items(), key=lambda item: (item[0] == "num_batches_tracked", item[0]))
    return ", ".join(f"{name} ({number})" for name, number in some[:8]) + (", ..." if len(some) > 8 else "")


def _without_common_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For messages about what is no ResNet: the wrappers' prefixes off."""
    keys = dict(state)
    while keys and (top := next(iter(keys)).partition(".")[0]) in _WRAPPERS:
        if not all(key.startswith(f"{top}.") for key in keys):
            break
        keys = {key.removeprefix(f"{top}."): value for key, value in keys.items()}
    return keys


def _described(content: Mapping[Any, Any], path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What a file, and timm's and Hugging Face's config.json beside it, says of itself."""
    weights = {name for name, part in parts.items() if any(value.numel() > _SMALL for value in part.values())}
    info = plain_values(
        {
            key: value
            for key, value in content.items()
            if str(key) not in weights
            and not str(key).startswith("optim")
            and not (isinstance(value, Tensor) and "." in str(key))
        }
    )
    beside = path.with_name("config.json")
    if path.name in ("model.safetensors", "pytorch_model.bin") and beside.is_file():
        try:
            described = json.loads(beside.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"{beside} beside {path.name} cannot be read ({error})") from error
        if isinstance(described, dict):
            info = {**described, **info}
    for holder in ("pretrained_cfg", "args", "hyper_parameters", "config"):
        if isinstance(inner := info.get(holder), dict):
            info |= {
                key: inner[key]
                for key in _NORMALISATION
                if info.get(key) is None and inner.get(key) is not None
            }
    return dict(info)


def _with_normaliser(info: dict[str, Any], rest: Mapping[str, Tensor]) -> dict[str, Any]:
    """Mean and std of a layer that normalises inside the network, where the file says none."""
    found: dict[str, Any] = {}
    for key, value in rest.items():
        name = re.fullmatch(r"(?:.*\.)?(?:new_)?(?:(mean|mu)|(std|sigma))", key)
        if name and value.numel() == 3 and value.is_floating_point():
            found.setdefault("mean" if name[1] else "std", value.flatten().tolist())
    return {**found, **info} if len(found) == 2 else info


_SMALL = 16


class _Nothing:
    """In place of what is no plain value."""


def plain_values(value: Any) -> Any:
    """What a checkpoint holds as JSON has it; tensors only where they are short.

    Infinite numbers and NaN become the strings "inf", "-inf" and "nan".

    Args:
        value: what `read_file` gave.
    """
    found = _plain(value)
    return None if found is _Nothing else found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Tensor) and (value.is_nested or value.is_meta or value.layout != torch.strided):
        return _Nothing
    if isinstance(value, Tensor | np.ndarray | np.generic):
        array = (
            value.detach().float().numpy()
            if isinstance(value, Tensor) and value.is_floating_point()
            else np.asarray(value)
        )
        return _plain(array.tolist()) if array.size <= _SMALL and array.dtype.kind in "fiubU" else _Nothing
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, argparse.Namespace):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        pairs = {str(key): _plain(item) for key, item in value.items()}
        return {key: item for key, item in pairs.items() if item is not _Nothing}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item) for item in value]
        return [item for item in items if item is not _Nothing]
    return _Nothing
