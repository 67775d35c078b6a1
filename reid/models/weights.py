"""ImageNet weights into a backbone, trained weights into a network; whatever does not fit is an error that names the keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.config import ConfigError
from keepaug.runs.files import write_atomic
from reid.config import ReidConfig
from reid.models.network import ReidNetwork, build_reid_network

__all__ = ["WEIGHTS", "build", "describe_network", "load_backbone", "load_trained", "save_trained"]

WEIGHTS = "weights.pt"
"""Name of the file with the last weights in a run folder."""
KIND = "reid"
_WRAPPERS = ("state_dict", "model", "network")
_HEADS = ("fc.", "classifier.")


def build(config: ReidConfig, num_identities: int) -> ReidNetwork:
    """The network of the settings, with ImageNet weights if there are any."""
    scale = config.saliency_scale if config.erasing == "keep" else 1.0  # the smallest images that it will see
    network = build_reid_network(
        config.arch,
        num_identities,
        last_stride=config.last_stride or 1,
        neck=config.neck or "bnneck",
        first_relu=config.first_relu,
        size=(round(config.height * scale), round(config.width * scale)),
    )
    if config.weights:
        load_backbone(network, config.weights, mean=config.mean, std=config.std)
    return network


def load_backbone(
    network: ReidNetwork,
    path: str | Path,
    *,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> None:
    """Put a classifier's weights into the backbone; its own classification layer is dropped.

    Takes torchvision's and torchreid's state dicts, the `weights.pt` of tools/train_classifier.py, and what
    `tools/convert_backbone.py --reverse` writes; `module.` prefixes are removed.

    Args:
        network: the network whose backbone is filled.
        path: the file; only tensors, numbers and strings are read.
        mean: of the normalization in use; a file that names another is refused.
        std: likewise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: keys or shapes that do not fit, values that are not finite, another normalization.
    """
    content = _read(path)
    for key, given in (("mean", mean), ("std", std)):
        wanted = content.get(key)
        if given is not None and wanted is not None and not _close(wanted, given):
            raise ConfigError(
                f"{path} was trained with {key} {_short(wanted)}, the config says {_short(given)}: set {key}"
            )
    if content.get("color_order", "RGB") != "RGB":
        raise ConfigError(f"{path} wants {content['color_order']} images; ReID reads RGB")
    own = network.backbone.state_dict()
    prefix = "network." if all(key.startswith("network.") for key in own) else ""
    found = {f"{prefix}{key}": value for key, value in _tensors(content, path).items()}
    heads = tuple(f"{prefix}{head}" for head in _HEADS)  # OSNet has an fc of its own, before its classifier
    found = {key: value for key, value in found.items() if key in own or not key.startswith(heads)}
    _load(network.backbone, found, path)


def save_trained(network: ReidNetwork, path: str | Path, config: ReidConfig, identities: list[int]) -> Path:
    """Write the network with what is needed to build it again."""
    tensors = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    content = {**describe_network(config, identities), "state_dict": tensors}
    return write_atomic(path, lambda file: torch.save(content, file))


def describe_network(config: ReidConfig, identities: list[int]) -> dict[str, Any]:
    """What is needed to build the network again, for weights and checkpoints."""
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
            f"{path} holds no trained ReID network (keys: {', '.join(map(str, list(content)[:5]))}); --eval-only takes the "
            "weights.pt or best.pt of a ReID run, weights=FILE takes ImageNet weights"
        )
    return content


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    content = read_weights_only(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    return dict(content)


def _tensors(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    if content.get("kind") == KIND:
        raise ValueError(
            f"{path} is a trained ReID network; weights=FILE takes ImageNet weights, --eval-only takes this file"
        )
    inner: Any = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    found = {
        str(key).removeprefix("module."): value for key, value in inner.items() if isinstance(value, Tensor)
    }
    if not found:
        raise ValueError(f"{path} holds no tensors (keys: {', '.join(map(str, list(content)[:5]))})")
    return found


def _load(module: torch.nn.Module, found: dict[str, Tensor], path: str | Path) -> None:
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
            f"{path} does not fit this backbone: {'; '.join(problems)}. Is arch the file's architecture?"
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
