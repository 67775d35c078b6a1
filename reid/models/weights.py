"""Weights into a backbone or a whole network; whatever does not fit is an error that names the keys."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepaug.models.weights import identity_of
from keepaug.runs.checkpoint import first_non_finite, read_weights_only, restoring
from keepaug.runs.command import is_main
from keepaug.runs.config import ConfigError
from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.files import write_atomic
from keepaug.runs.shapes import check_shape
from reid.config import ReidConfig
from reid.models.network import ReidNetwork, build_reid_network

WEIGHTS = "weights.pt"
"""Name of the file with the last weights in a run folder."""
KIND = "reid"
_NECK = re.compile(r"(?:^|\.)(?:bottleneck|bnneck|neck)\.(?:0\.)?(weight|bias|running_mean|running_var)$")
TRAINED = {
    "kind": str,
    "arch": str,
    "identities": [(int, str)],
    "last_stride": int,
    "neck": str,
    "first_relu": bool,
    "height": int,
    "width": int,
    "mean": [float],
    "std": [float],
    "color_order?": str,
    "provenance?": {str: Any},
    "state_dict": {str: Tensor},
    str: Any,
}
"""What the weights and checkpoints of a run hold."""
_WRAPPERS = ("state_dict_ema", "state_dict", "model", "network")  # averaged weights are what a run evaluates


def build(config: ReidConfig, num_identities: int) -> ReidNetwork:
    """The network of the settings with random weights."""
    scale = (
        config.saliency_scale if config.method == "keep_random_erasing" else 1.0
    )  # the smallest images that it will see
    network = build_reid_network(
        config.arch,
        num_identities,
        last_stride=config.last_stride or 1,
        neck=config.neck or "bnneck",
        first_relu=config.first_relu,
        size=(round(config.height * scale), round(config.width * scale)),
    )
    return network


def start(network: ReidNetwork, config: ReidConfig) -> dict[str, Any] | None:
    """Fill the network from the settings' `weights`; what file that was, or None for random weights."""
    if not config.weights:
        return None
    return load_backbone(
        network,
        config.weights,
        mean=config.mean,
        std=config.std,
        last_stride=config.last_stride,
        first_relu=config.first_relu,
    )


def load_backbone(
    network: ReidNetwork,
    path: str | Path,
    *,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    last_stride: int | None = None,
    first_relu: bool | None = None,
) -> dict[str, Any]:
    """Put trained weights into the backbone; what is no part of it, heads above all, is left out.

    Takes torchvision's and torchreid's state dicts (its `model.pth.tar-N` too), the `weights.pt` of a
    classifier's run, what `keepaug convert --reverse` writes, and the weights of a re-identification run,
    whatever its identities were: its BNNeck comes along. Prefixes of keys (`module.`) are found.

    Args:
        network: the network whose backbone is filled.
        path: the file; only tensors, numbers and strings are read.
        mean: of the normalization in use; a file that names another is refused.
        std: likewise.
        last_stride: in use; a re-identification run's file that names another is refused.
        first_relu: likewise.

    Returns:
        Name, checksum and provenance of the file, see `keepaug.models.weights.identity_of`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: keys or shapes that do not fit, or are not finite, another normalization, several
            networks.
    """
    content = _read(path)
    for key, given in (("mean", mean), ("std", std)):
        wanted = content.get(key)
        if given is not None and wanted is not None and not _close(wanted, given):
            raise ConfigError(
                f"{path} was trained with {key} {_short(wanted)}, the config says {_short(given)}: set {key}"
            )
    for key, value in (("last_stride", last_stride), ("first_relu", first_relu)):
        if content.get("kind") == KIND and value is not None and content.get(key) not in (value, None):
            raise ConfigError(
                f"{path} was trained with {key}={content[key]}, the config says {key}={value}: the features "
                f"would be others; set {key}={str(content[key]).lower()} (and recipe=custom, if the recipe "
                "means another)"
            )
    if content.get("color_order", "RGB") != "RGB":
        raise ConfigError(f"{path} wants {content['color_order']} images; ReID reads RGB")
    found = _tensors(content, path)
    _load(network.backbone, _backbone_of(network.backbone, found, path), path, content.get("arch"))
    neck = {key.removeprefix("neck."): value for key, value in found.items() if key.startswith("neck.")}
    own = network.neck.state_dict()
    if content.get("kind") == KIND and {k: v.shape for k, v in neck.items()} == {
        k: v.shape for k, v in own.items()
    }:
        network.neck.load_state_dict(neck)
    provenance = content.get("provenance")
    return identity_of(path, provenance if isinstance(provenance, Mapping) else {})


def _backbone_of(backbone: nn.Module, found: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors below the one prefix that completes the backbone, under the backbone's names."""
    own = backbone.state_dict()
    inner = "network." if all(key.startswith("network.") for key in own) else ""
    names = [key.removeprefix(inner) for key in own if not key.endswith("num_batches_tracked")]
    parts = {name.partition(".")[0] for name in names}
    prefixes = sorted({key[: -len(names[0])] for key in found if f".{key}".endswith(f".{names[0]}")}, key=len)
    complete = [prefix for prefix in prefixes if all(prefix + name in found for name in names)]
    different = [
        prefix
        for prefix in complete[1:]
        if any(not torch.equal(found[prefix + name], found[complete[0] + name]) for name in names)
    ]
    if different:
        raise ConfigError(
            f"{path} holds several networks that differ, below "
            f"{', '.join(repr(one) for one in (complete[0], *different))}: "
            "save the one that is meant in a file of its own"
        )
    prefix = (complete or prefixes or [""])[0]
    below = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    # Of the backbone's own layers nothing may be left over, as of a ResNet-50 for a ResNet-18.
    taken = {
        f"{inner}{key}": value
        for key, value in below.items()
        if f"{inner}{key}" in own
        or (key.partition(".")[0] in parts and not key.startswith(("fc.", "classifier.")))
    }
    rest = sorted({key.partition(".")[0] for key in found} - {"fc", "classifier", "neck", "module"})
    others = [key for key in rest if not any(name.startswith(f"{key}.") for name in (*names, prefix))]
    if others and is_main():
        print(f"note: {path}: left out {', '.join(others)}, no part of the backbone", flush=True)
    return taken


def save_trained(network: ReidNetwork, path: str | Path, about: Mapping[str, Any]) -> Path:
    """Write the network with what is needed to build it again.

    Args:
        network: of the run.
        path: of the file.
        about: from `describe_network`.

    Raises:
        NonFiniteLossError: a weight is not finite; nothing is written.
    """
    tensors = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    if bad := first_non_finite(tensors):
        raise NonFiniteLossError(f"{bad} is not finite: the weights are not written to {path}")
    content = {**about, "state_dict": tensors}
    return write_atomic(path, lambda file: torch.save(content, file))


def describe_network(
    config: ReidConfig, identities: list[int | str], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What is needed to build the network again and to name it, for weights and checkpoints."""
    return {
        "kind": KIND,
        "arch": config.arch,
        "last_stride": config.last_stride,
        "neck": config.neck,
        "first_relu": config.first_relu,
        "identities": identities,
        "height": config.height,
        "width": config.width,
        "mean": list(config.mean),
        "std": list(config.std),
        "color_order": "RGB",
        "recipe": config.recipe,
        "provenance": dict(provenance),
    }


def load_trained(path: str | Path) -> dict[str, Any]:
    """What `save_trained` wrote, or a run's checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind.
    """
    content = _read(path)
    if content.get("kind") != KIND:
        raise ValueError(
            f"{path} holds no trained ReID network of a run (keys: "
            f"{', '.join(map(str, list(content)[:5]))}): take its weights.pt or best.pt; other networks are "
            "scored by --eval-only"
        )
    check_shape(content, TRAINED, path)
    return content


def load_network(path: str | Path, config: ReidConfig | None = None) -> tuple[ReidNetwork, dict[str, Any]]:
    """A trained network in evaluation mode on the CPU, and what its file says of it.

    Args:
        path: the weights or a checkpoint of a run.
        config: resolved settings, by which a network of another program is built: its backbone, and Bag of
            Tricks' neck where the file has one. None: such a file is refused.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, or weights that do not fit what it says.
    """
    if config is not None and _read(path).get("kind") != KIND:
        return _load_foreign(path, config)
    content = load_trained(path)
    with restoring(path, "network"):
        network = build_reid_network(
            content["arch"],
            len(content["identities"]),
            last_stride=content["last_stride"],
            neck=content["neck"],
            first_relu=content["first_relu"],
            size=(content["height"], content["width"]),
        )
    try:
        network.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights do not fit {content['arch']}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return network.eval(), content


def _load_foreign(path: str | Path, config: ReidConfig) -> tuple[ReidNetwork, dict[str, Any]]:
    tensors = _tensors(_read(path), path)
    found = {match[1]: one for key, one in tensors.items() if (match := _NECK.search(key))}
    told = ("arch", "last_stride", "first_relu", "height", "width", "mean", "std")
    about: dict[str, Any] = {key: getattr(config, key) for key in told}
    about["neck"] = "bnneck" if len(found) == 4 else "none"
    network = build_reid_network(
        config.arch,
        2,  # its identities are not asked for
        last_stride=config.last_stride or 1,
        neck=about["neck"],
        first_relu=config.first_relu,
        size=(config.height, config.width),
    )
    load_backbone(network, path, mean=config.mean, std=config.std)
    if about["neck"] == "bnneck":
        network.neck.load_state_dict(found, strict=False)
    if is_main():
        settings = ", ".join(f"{key}={value}" for key, value in about.items())
        print(f"note: {path} does not say how it was trained; taken as {settings}", flush=True)
    return network.eval(), about


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    content = read_weights_only(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    return dict(content)


def _tensors(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    inner: Any = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    found = {str(key).removeprefix("module."): one for key, one in inner.items() if isinstance(one, Tensor)}
    if not found:
        raise ValueError(f"{path} holds no tensors (keys: {', '.join(map(str, list(content)[:5]))})")
    return found


def _load(module: nn.Module, found: dict[str, Tensor], path: str | Path, arch: Any) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    unknown = [key for key in found if key not in own]
    shapes = [
        f"{key} is {tuple(found[key].shape)} in the file and {tuple(own[key].shape)} here"
        for key in own
        if key in found and found[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} key(s) {what}: {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit this backbone: {'; '.join(problems)}. Is arch the file's architecture"
            + (f", {arch}?" if arch else "?")
        )
    broken = [
        key
        for key, value in found.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise ValueError(f"{path} has values that are not finite in {', '.join(broken[:3])}")
    module.load_state_dict(found, strict=False)


def _close(first: Any, second: list[float]) -> bool:
    return len(first) == len(second) and all(
        math.isclose(a, b, abs_tol=1e-3) for a, b in zip(first, second, strict=True)
    )


def _short(values: Any) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
