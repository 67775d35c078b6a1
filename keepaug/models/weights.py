"""A network is one file: weights, all that `build_network` was given, the expected input, its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepaug.models.early import EarlyHeadNetwork
from keepaug.models.networks import build_network
from keepaug.runs.checkpoint import first_non_finite, read_weights_only, restoring
from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.files import sha256_of, write_atomic
from keepaug.runs.shapes import PLAIN, check_shape, read_json

_STATE = {str: Tensor}
CLASSIFIER = {
    "state_dict": _STATE,
    "arch": str,
    "num_classes?": int,
    "options?": {str: Any},
    "classes": [str],
    "mean": [float],
    "std": [float],
    "color_order?": str,
    "provenance?": ({str: Any}, None),
    "state_dict_ema?": (_STATE, None),
    "early_head?": (_STATE, None),
    "early_after?": str,
    "stem?": str,
    str: Any,
}
"""What weights.pt holds."""


def misfit_of(error: RuntimeError) -> str:
    """What `load_state_dict` found not to fit, in a line: torch names every key."""
    line = str(error).splitlines()[-1].strip()
    return line if len(line) <= 160 else f"{line[:160].rpartition(',')[0]} and more"


class ForeignFileError(ValueError):
    """A file that can be read and is not the weights.pt of a run."""


@dataclass(frozen=True)
class NetworkSpec:
    """All that `build_network` was given.

    Attributes:
        arch: name of the architecture.
        num_classes: size of the output.
        options: keyword arguments: `stem`, `shortcut`, `dropout` and so on.
    """

    arch: str
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network with random weights; see `build_network` for what it raises."""
        return build_network(self.arch, self.num_classes, **self.options)


@dataclass(frozen=True)
class Classifier:
    """A trained network and all that is known of it.

    Attributes:
        network: in evaluation mode, without gradients, on the CPU.
        spec: how it was built.
        classes: names, in the order of the outputs.
        mean: of the normalisation, RGB in [0, 1].
        std: of the normalisation.
        provenance: of the run that made it, see `keepaug.runs.result.describe_run`; {} in earlier files.
        early_head: weights of the early head it was trained with, if any.
        early_after: where that sits.
    """

    network: nn.Module
    spec: NetworkSpec
    classes: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    provenance: dict[str, Any]
    early_head: dict[str, Tensor] | None = None
    early_after: str = "stage"

    def with_early_head(self) -> EarlyHeadNetwork:
        """The network with the early head it was trained with.

        Raises:
            ValueError: it was trained without one.
        """
        if self.early_head is None:
            raise ValueError(
                "the network was trained without an early head: train it with saliency=early_head or "
                "low_resolution_early"
            )
        network = EarlyHeadNetwork(self.network, after=self.early_after)
        network.head.load_state_dict(self.early_head)
        return network.eval().requires_grad_(False)  # type: ignore[no-any-return]


def save_classifier(
    path: str | Path,
    network: nn.Module,
    spec: NetworkSpec,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    provenance: Mapping[str, Any],
    averaged: Mapping[str, Tensor] | None = None,
    early: EarlyHeadNetwork | None = None,
) -> Path:
    """Write `weights.pt`: torchvision's keys and all that is needed to use and to name the network.

    Args:
        path: of the file.
        network: its last weights.
        spec: how it was built.
        classes: names, in the order of the outputs.
        mean: of the normalisation, RGB in [0, 1].
        std: of the normalisation.
        provenance: of the run.
        averaged: the averaged weights, which are then the ones that the run evaluated.
        early: the network with its early head.

    Raises:
        NonFiniteLossError: a weight is not finite; nothing is written.
    """
    content: dict[str, Any] = {
        "state_dict": _on_cpu(network.state_dict()),
        "arch": spec.arch,
        "num_classes": spec.num_classes,
        "options": dict(spec.options),
        "classes": list(classes),
        "mean": list(mean),
        "std": list(std),
        "color_order": "RGB",
        "provenance": dict(provenance),
    }
    if averaged is not None:
        content["state_dict_ema"] = _on_cpu(averaged)
    if early is not None:
        content |= {"early_head": _on_cpu(early.head.state_dict()), "early_after": early.after}
    if bad := first_non_finite(content):
        raise NonFiniteLossError(f"{bad} is not finite: the weights are not written to {path}")
    return write_atomic(path, lambda file: torch.save(content, file))


def load_classifier(
    path: str | Path, *, averaged: bool = True, options: Mapping[str, Any] | None = None
) -> Classifier:
    """A network as it was trained; by default with the weights that its run evaluated.

    Args:
        path: `weights.pt` of a classifier's or a semi-supervised run.
        averaged: take the averaged weights where there are any; False takes the last ones.
        options: of `build_network`, for a file of an earlier version that does not say them.

    Raises:
        FileNotFoundError: no such file.
        ForeignFileError: not such a file.
        ValueError: a damaged one, or one of an earlier version that does not say how its network was built.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected the weights.pt of a run")
    content = read_weights_only(path)
    if not isinstance(content, dict):
        raise ForeignFileError(f"{path} holds a {type(content).__name__}, expected the weights.pt of a run")
    if missing := {"arch", "state_dict", "classes", "mean", "std"} - content.keys():
        raise ForeignFileError(
            f"{path} is no weights.pt of a run: it lacks {', '.join(sorted(missing))}; a file of another "
            "program goes through torchvision:NAME or timm:NAME, or keepaug convert"
        )
    check_shape(content, CLASSIFIER, path)
    if options is None:
        options = content.get("options")
    if options is None:
        options = _options_of_earlier_file(content, path)
    spec = NetworkSpec(content["arch"], len(content["classes"]), dict(options))
    with restoring(path, "network"):
        network = spec.build()
    state = content.get("state_dict_ema") if averaged else None
    try:
        network.load_state_dict(state or content["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit {spec}: {misfit_of(error)}") from error
    return Classifier(
        network.eval().requires_grad_(False),
        spec,
        list(content["classes"]),
        _three(content["mean"], "mean", path),
        _three(content["std"], "std", path),
        dict(content.get("provenance") or {}),
        content.get("early_head"),
        content.get("early_after", "stage"),
    )


def identity_of(path: str | Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a run that starts from the file says of it: name, checksum, and the run that made it.

    Raises:
        ValueError: the file says of that run what no result could.
    """
    path = Path(path).expanduser()
    check_shape({"provenance": provenance}, {"provenance": {str: PLAIN}}, path)
    return {"file": path.name, "sha256": sha256_of(path), "provenance": dict(provenance)}


def _options_of_earlier_file(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Files written before `options` were: only the stem is said; semi-supervised ones have raw shortcuts."""
    options = {"stem": content.get("stem", "imagenet")}
    if not str(content["arch"]).startswith("wrn"):
        return options
    beside = path.parent / "result.json"
    kind = read_json(beside, {"kind?": str, str: Any}).get("kind") if beside.is_file() else None
    if kind is None and content.get("method") in ("rand_augment", "keep_rand_augment"):
        raise ValueError(
            f"{path} does not say which shortcut its {content['arch']} has, and no result.json lies beside "
            f"it: give "
            'options={"shortcut": "raw"} for a semi-supervised run, {"shortcut": "activated"} for a '
            "classifier"
        )
    raw = kind == "ssl_uda" or content.get("method") == "supervised"
    return options | {"shortcut": "raw" if raw else "activated"}


def _three(values: Any, what: str, path: Path) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{path}: {what} must be three numbers, got {values!r}")
    first, second, third = (float(value) for value in values)
    return first, second, third


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in state.items()}
