"""What must hold before weights are converted, and before a detector is trained with them."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detection.architecture import (
    Architecture,
    ArchitectureError,
    bare_key,
    caffe2_to_detectron2,
    infer,
    torchvision_key,
)
from detection.config import ConfigError
from detection.other_networks import contradiction
from detection.reading import WeightsError, as_tensors, count_by_group
from detection.sidecar import Sidecar, of_caffe2, read_sidecar
from detection.tool import checkpoints
from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.files import sha256_of
from keepaug.runs.restricted import read_file
from keepaug.runs.shapes import check_shape

_IGNORED = ("fc.", "classifier.", "last_linear.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class ConfigMismatchError(ConfigError):
    """The config contradicts what the weights were trained with; names the key to change."""


def _some(keys: Sequence[str], limit: int = 4) -> str:
    return f"{', '.join(keys[:limit])}{', ...' if len(keys) > limit else ''}"


def check_state(state: Mapping[str, Tensor]) -> tuple[Architecture, dict[str, Tensor], list[str]]:
    """Every check on a classifier's tensors.

    Args:
        state: torchvision's keys.

    Returns:
        The architecture, its backbone's tensors in float32 and nothing else, and notes.

    Raises:
        ArchitectureError: not a ResNet that Detectron2 has.
        WeightsError: missing or unknown keys, wrong shapes or dtypes, values that cannot be.
    """
    architecture = infer(state)
    dropped = [key for key in state if key.startswith(_IGNORED) or key.endswith("num_batches_tracked")]
    backbone = {key: value for key, value in state.items() if key not in set(dropped)}
    expected = architecture.expected_shapes().keys()
    missing, unknown = sorted(expected - backbone.keys()), sorted(backbone.keys() - expected)
    _check_keys(architecture, missing, unknown)
    _check_values(architecture, backbone)
    notes = [f"left out {count_by_group(dropped)}: a backbone has no place for them"] if dropped else []
    halves = {str(value.dtype) for value in backbone.values() if value.dtype != torch.float32}
    if halves:
        notes.append(f"converted {', '.join(sorted(halves))} to float32")
    if _is_untrained(backbone):
        notes.append(
            "WARNING: all BatchNorm statistics are 0 and 1: an untrained network, or statistics lost before "
            "saving"
        )
    ready = {key: value.to(torch.float32).contiguous() for key, value in backbone.items()}
    _check_finite(ready)
    return architecture, ready, notes


def check_name(architecture: Architecture, info: Mapping[str, Any], file_name: str) -> None:
    """Hold what the tensors' shapes tell against what the file calls itself.

    Args:
        architecture: told from the shapes.
        info: what the file says of itself.
        file_name: without folders; "" if it does not count.

    Raises:
        ArchitectureError: it names another network, or settings that make it one.
    """
    if why := contradiction(info, file_name, depth=architecture.depth, usual_name=architecture.name):
        raise ArchitectureError(why)


def _is_untrained(state: Mapping[str, Tensor]) -> bool:
    variances = all(bool((value == 1).all()) for key, value in state.items() if key.endswith("running_var"))
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    return variances and all(bool((value == 0).all()) for value in means)


def _check_keys(architecture: Architecture, missing: list[str], unknown: list[str]) -> None:
    statistics = [key for key in missing if key.endswith(("running_mean", "running_var"))]
    if statistics and len(statistics) == len(missing):
        raise WeightsError(
            f"{len(statistics)} BatchNorm statistics are missing ({_some(statistics)}): the file was saved "
            "without buffers (parameters only), or another norm layer was used; Detectron2 would fill them "
            "with 0 and 1 and say nothing"
        )
    if "bn1.weight" in missing and "conv1.bias" in unknown:
        raise WeightsError(
            f"conv1.bias, but no bn1.weight: the norms are folded into the convolutions ({architecture.name} "
            f"needs {len(missing)} tensors that the file lacks); convert the network before that"
        )
    if missing:
        raise WeightsError(
            f"{architecture.name} needs {len(missing)} tensors that the file lacks ({_some(missing)}): it is "
            "cut short, or saved from a part of the network"
        )
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors have no place in {architecture.name} ({_some(unknown)}): a modified "
            "network, or one with a head of an unknown name; Detectron2 would skip them with a warning. If "
            "they are no part of the ResNet, say its prefix (--prefix P, or --prefix '' where there is "
            "none), which leaves out everything beside it"
        )


def _check_values(architecture: Architecture, state: Mapping[str, Tensor]) -> None:
    odd = [key for key, value in state.items() if value.dtype not in _FLOATS or value.layout != torch.strided]
    if odd:
        kinds = sorted({f"{state[key].dtype}"[6:] for key in odd})
        layouts = sorted({f"{state[key].layout}"[6:] for key in odd} - {"strided"})
        raise WeightsError(
            f"{_some(odd)} are {', '.join([*layouts, *kinds])}: quantised weights or not plain tensors; "
            "export the floating-point network"
        )
    if empty := [key for key, value in state.items() if value.is_meta]:
        raise WeightsError(f"{_some(empty)} have no values (meta tensors); save the network after loading it")
    shapes = architecture.expected_shapes()
    if wrong := [key for key, value in state.items() if tuple(value.shape) != shapes[key]]:
        key = wrong[0]
        raise WeightsError(
            f"{len(wrong)} tensors have shapes that are not {architecture.name}'s: {key} is "
            f"{tuple(state[key].shape)}, expected {shapes[key]}; pruned or widened stages cannot be converted"
        )
    variances = {key: value for key, value in state.items() if key.endswith("running_var")}
    if negative := [key for key, value in variances.items() if bool((value < 0).any())]:
        raise WeightsError(
            f"BatchNorm variances are negative ({_some(negative)}): the file is damaged or keys were swapped"
        )
    if zero := [key for key, value in variances.items() if bool((value == 0).all())]:
        raise WeightsError(
            f"BatchNorm variances are all zero ({_some(zero)}): dead layers or lost statistics; the features "
            "would explode"
        )


def _check_finite(state: Mapping[str, Tensor]) -> None:
    if bad := [key for key, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise WeightsError(
            f"{len(bad)} tensors hold NaN or infinite values ({_some(bad)}): training diverged, or float16 "
            "overflowed; take an earlier checkpoint"
        )


def load_detectron2_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a Detectron2 file (backbone or detector, Caffe2's names too) under its keys.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: not readable, or no tensors.
    """
    return read_detectron2(path)[0]


def newest_checkpoint(output: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint of either engine that can be read, and its content; None where there is none.

    A damaged one is passed over with a warning.

    Raises:
        ValueError: there are checkpoints and none can be read.
    """
    problems = []
    for path in checkpoints(output):
        try:
            content = read_weights_only(path)
            check_shape(content, {str: Any}, path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{'; '.join(problems)}; going on from {path}", UserWarning, stacklevel=3)
        return path, content
    if problems:
        raise ValueError(
            f"no checkpoint can be read: {'; '.join(problems)}; start again in another OUTPUT_DIR"
        )
    return None


def read_for_detectron2(path: str | Path) -> dict[str, Any]:
    """What Detectron2's checkpointer makes of a file, without its loader, which would run what a pickle says.

    Args:
        path: backbone, detector, or a checkpoint of a run, whose optimizer and iteration stay in it.
    """
    content = read_file(path)
    tensors = _tensors(content, path)[0]
    rest = content if isinstance(content, Mapping) and "model" in content else {}
    bare = any(key.startswith(("stem.", "res2.")) for key in tensors)
    return {**rest, "model": tensors, "__author__": "keepaug", "matching_heuristics": bare}


def read_detectron2(path: str | Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors, and whether Caffe2 named them."""
    return _tensors(read_file(path, mmap=True), path)


def _tensors(content: Any, path: str | Path) -> tuple[dict[str, Tensor], bool]:
    for part in ("model", "blobs", "model_state"):  # Detectron2's, Detectron's, pycls'
        if isinstance(content, Mapping) and isinstance(content.get(part), Mapping):
            content = content[part]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} is no Detectron2 weights file: expected a dictionary with 'model'")
    found = as_tensors(content, path)
    renamed = caffe2_to_detectron2(found)
    return (found, False) if renamed is None else (renamed, True)


def check_weights_against_config(weights: str | Path, cfg: Any) -> list[str]:
    """Hold a backbone file against the config that is about to train with it.

    Args:
        weights: what MODEL.WEIGHTS names.
        cfg: `detection.config` tree.

    Returns:
        Notes for the log.

    Raises:
        ConfigMismatchError: names the key, its value and the value that fits the weights.
        WeightsError: raw classifier weights, or a file changed after its conversion.
    """
    path = Path(weights)
    state, caffe2 = read_detectron2(path)
    if any(re.search(r"(^|\.)(layer1\.0\.conv1|4\.0\.conv1)\.weight$", key) for key in state):
        raise WeightsError(
            f"MODEL.WEIGHTS {path} has a classifier's keys; Detectron2 would load none of them and only "
            f"warn: keepaug convert --weights {path} --output backbone.pth"
        )
    sidecar = read_sidecar(path)
    backbone = _backbone_of(state)
    if sidecar is None:
        return _check_without_sidecar(path, backbone, cfg, caffe2=caffe2)
    if sidecar.sha256 != sha256_of(path):
        raise WeightsError(
            f"{path} is not the file that its sidecar {path.name}.json describes (SHA-256 differs): one of "
            "them was replaced; convert again"
        )
    _compare(cfg, _wanted(sidecar), sidecar)
    return [f"backbone: {sidecar.architecture} from {sidecar.source}"]


def _backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bare backbone tensors with torchvision's keys, from a backbone or a detector file."""
    found = {}
    for key, value in state.items():
        with contextlib.suppress(KeyError):
            found[torchvision_key(bare_key(key))] = value
    return found


def _check_without_sidecar(
    path: Path, backbone: Mapping[str, Tensor], cfg: Any, *, caffe2: bool
) -> list[str]:
    """The depth shows in the tensors; the rest is known for Caffe2's and cannot be told for others."""
    try:
        found = infer(backbone)
    except ValueError as error:
        raise WeightsError(f"MODEL.WEIGHTS {path}: {error}") from error
    if caffe2:
        known = of_caffe2(found, source=path.name)
        _compare(cfg, _wanted(known), known)
        return [f"backbone: {found.name} from {path.name} under Caffe2's names, as in Detectron2's model zoo"]
    plain = Sidecar.of(found, sha256="", source=str(path))
    shapes = ("MODEL.RESNETS.DEPTH", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP")
    _compare(cfg, {key: _wanted(plain)[key] for key in shapes}, plain)
    return [
        f"{path} has no sidecar: mean, std, colour order and stride cannot be checked; they are INPUT.FORMAT "
        f"{cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, MODEL.PIXEL_STD "
        f"{list(cfg.MODEL.PIXEL_STD)}, MODEL.RESNETS.STRIDE_IN_1X1 {cfg.MODEL.RESNETS.STRIDE_IN_1X1}"
    ]


def _wanted(sidecar: Sidecar) -> dict[str, Any]:
    flip = sidecar.color_order == "BGR"
    return {
        "MODEL.RESNETS.DEPTH": sidecar.depth,
        "MODEL.RESNETS.NUM_GROUPS": sidecar.num_groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": sidecar.width_per_group,
        "MODEL.RESNETS.STRIDE_IN_1X1": sidecar.stride_in_1x1,
        "INPUT.FORMAT": sidecar.color_order,
        "MODEL.PIXEL_MEAN": list(reversed(sidecar.pixel_mean)) if flip else list(sidecar.pixel_mean),
        "MODEL.PIXEL_STD": list(reversed(sidecar.pixel_std)) if flip else list(sidecar.pixel_std),
    }


def _value(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


_REASONS = {
    "MODEL.RESNETS.DEPTH": "most tensors would not load, with warnings only",
    "MODEL.RESNETS.NUM_GROUPS": "the 3 x 3 convolutions would not load",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "the 3 x 3 convolutions would not load",
    "MODEL.RESNETS.STRIDE_IN_1X1": "the features would be shifted and AP falls by points",
    "INPUT.FORMAT": "red and blue would be swapped",
    "MODEL.PIXEL_MEAN": "the input would be shifted",
    "MODEL.PIXEL_STD": "the input would be scaled",
}


def _compare(cfg: Any, wanted: Mapping[str, Any], sidecar: Sidecar) -> None:
    wrong = {key: value for key, value in wanted.items() if not _fits(_value(cfg, key), value)}
    if not wrong:
        return
    lines = [
        f"{key} is {_value(cfg, key)}, but the backbone ({sidecar.architecture} from {sidecar.source}) wants "
        f"{value}: {_REASONS[key]}"
        for key, value in wrong.items()
    ]
    settings = " ".join(
        f"{key} {str(value).replace(' ', '') if isinstance(value, list) else value}"
        for key, value in wrong.items()
    )
    raise ConfigMismatchError(f"{'; '.join(lines)}; set {settings}")


def _fits(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, list):
        return bool(value == wanted)
    pairs = zip(value, wanted, strict=False)
    return len(value) == len(wanted) and all(abs(a - b) < 0.01 for a, b in pairs)
