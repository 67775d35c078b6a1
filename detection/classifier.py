"""A checkpoint of any project as a network with logits: what the converter reads, and the layer after it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from detection.architecture import Architecture
from detection.checks import check_name, check_state
from detection.convert import input_settings
from detection.reading import Loaded, WeightsError, read_classifier

_LAST = re.compile(
    r"(?:^|\.)(?:fc|head|heads|cls|classifier|linear|last_linear|main_linear|logits)(?:\.(?:fc|\d))*\.weight$"
)


@dataclass(frozen=True)
class OpenedClassifier:
    """A classifier of torchvision's kind.

    Attributes:
        network: in evaluation mode, for RGB images.
        architecture: told from the tensors.
        mean: of the normalisation, RGB in [0, 1].
        std: of the normalisation.
    """

    network: nn.Module
    architecture: Architecture
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_classifier(
    path: str | Path, *, key: str | None = None, prefix: str | None = None, arch: str | None = None
) -> OpenedClassifier:
    """A network with the weights of a file; the arguments are `detection.convert.convert`'s.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what the converter refuses; no layer that gives logits, or several.
    """
    path = Path(path)
    loaded = read_classifier(path, key=key, prefix=prefix)
    architecture, trunk, _ = check_state(loaded.state)
    check_name(
        architecture, loaded.info if arch is None else {"arch": arch}, path.name if arch is None else ""
    )
    weight, bias = _last_layer(path, loaded, 512 if architecture.block == "basic" else 2048)
    network = architecture.build(num_classes=len(weight))
    network.load_state_dict({**network.state_dict(), **trunk, "fc.weight": weight})
    network.fc.bias.data = bias if bias is not None else weight.new_zeros(len(weight))
    settings = input_settings(loaded.info, None, None, None)
    if settings["color_order"] == "BGR":
        network.conv1.weight.data = network.conv1.weight.data.flip(1)
    mean, std = (tuple(value / 255 for value in settings[f"pixel_{name}"]) for name in ("mean", "std"))
    return OpenedClassifier(network.eval().requires_grad_(False), architecture, mean, std)


def _last_layer(path: Path, loaded: Loaded, width: int) -> tuple[Tensor, Tensor | None]:
    everything = {**loaded.rest, **loaded.state}
    found = [
        key
        for key, value in everything.items()
        if _LAST.search(key) and value.ndim == 2 and value.shape[1] == width and value.is_floating_point()
    ]
    found = ["fc.weight"] if "fc.weight" in found else found
    if len(found) != 1:
        what = (
            f"several layers that may give logits ({', '.join(found)})"
            if found
            else "no classifier (fc.weight)"
        )
        raise WeightsError(f"{path} has {what}; saliency needs a logit")
    bias = everything.get(found[0].removesuffix("weight") + "bias")
    return everything[found[0]].float(), None if bias is None else bias.float()
