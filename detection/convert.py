"""A classifier's ResNet to a Detectron2 backbone, and back; nothing is skipped silently or half written."""

from __future__ import annotations

import contextlib
import hashlib
import math
import pickle
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from detection.architecture import Architecture, detectron2_key, infer
from detection.checks import _backbone_of, check_name, check_state, load_detectron2_file, read_detectron2
from detection.reading import WeightsError, read_classifier
from detection.sidecar import (
    IMAGENET_MEAN_255,
    IMAGENET_STD_255,
    Sidecar,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from detection.verify import Comparison, verify
from keepaug.runs.files import sha256_of, write_atomic

FORMATS = ("pth", "pkl")
AUTHOR = "keepaug"


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        output: the written file.
        sidecar: what was written beside it.
        num_tensors: how many it holds.
        notes: what was unwrapped, stripped, left out.
        comparisons: of features, with verification.
    """

    output: Path
    sidecar: Sidecar
    num_tensors: int
    notes: list[str]
    comparisons: list[Comparison]

    def report(self) -> str:
        """For people."""
        side = self.sidecar
        lines = [
            f"{side.source} -> {self.output}",
            f"  architecture   {side.architecture}, {self.num_tensors} tensors",
            f"  config         MODEL.RESNETS.DEPTH {side.depth} MODEL.RESNETS.NUM_GROUPS {side.num_groups} "
            f"MODEL.RESNETS.WIDTH_PER_GROUP {side.width_per_group} MODEL.RESNETS.STRIDE_IN_1X1 "
            f"{side.stride_in_1x1}",
            f"                 INPUT.FORMAT {side.color_order} (mean and std below are in the order R, G, B)",
            f"                 MODEL.PIXEL_MEAN {_rounded(side.pixel_mean)} MODEL.PIXEL_STD "
            f"{_rounded(side.pixel_std)}",
            f"  SHA-256        {side.sha256}",
        ]
        lines += [f"  note           {note}" for note in self.notes]
        for result in self.comparisons:
            errors = ", ".join(f"{stage} {error:.1e}" for stage, error in result.errors.items())
            lines.append(f"  verified       in {result.against}: relative feature errors {errors}")
        if not self.comparisons:
            lines.append("  not verified   --verify compares the features")
        return "\n".join(lines)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def convert(
    weights: str | Path,
    output: str | Path,
    *,
    format: str | None = None,
    key: str | None = None,
    prefix: str | None = None,
    arch: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    color_order: str | None = None,
    verify_features: bool = False,
    image: str | Path | None = None,
    dry_run: bool = False,
) -> Conversion:
    """Convert, check, write the file and its sidecar.

    Args:
        weights: a classifier in a checkpoint of torchvision, timm, Hugging Face, MoCo, SwAV, DINO,
            mmpretrain, ours and others: see `read_classifier`.
        output: where to write.
        format: "pth" (tensors; loads under weights_only) or "pkl" (numpy arrays); None: by `output`'s suffix.
        key: which part of the file, where it has several sets of weights.
        prefix: of the keys, where one part has several.
        arch: what the network is, where the file calls it something else that the tensors fit as well.
        mean: of its normalisation, R, G, B in [0, 1]; None: as the file says, otherwise ImageNet's.
        std: the same.
        color_order: "RGB" or "BGR"; None: as the file says, otherwise RGB.
        verify_features: compare features before anything is written.
        image: the picture for it.
        dry_run: do all of it in a folder that is removed.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: no such file.
        ValueError: (WeightsError, ArchitectureError) anything unknown, missing, not finite, of another kind.
        VerificationError: the features differ. In all cases nothing is written.
    """
    weights, output = Path(weights), Path(output)
    kind = _format(output, format)
    if output.resolve() == weights.resolve():
        raise WeightsError(f"--output {output} is the input itself; choose another name")
    loaded = read_classifier(weights, key=key, prefix=prefix)
    architecture, state, notes = check_state(loaded.state)
    check_name(
        architecture, loaded.info if arch is None else {"arch": arch}, weights.name if arch is None else ""
    )
    settings = input_settings(loaded.info, mean, std, color_order)
    _check_losses(loaded.info)
    notes = loaded.notes + notes
    for name, given in (("mean", mean), ("std", std)):
        if given is None and loaded.info.get(name) is None:
            notes.append(f"the file says no {name}: ImageNet's is taken; --{name} says another")
    made = loaded.info.get("provenance")
    origin: dict[str, Any] = {"source": weights.name, "source_sha256": sha256_of(weights), "notes": notes}
    tensors = {detectron2_key(name): value for name, value in state.items()}
    with contextlib.ExitStack() as ended:
        folder = ended.enter_context(tempfile.TemporaryDirectory()) if dry_run else output.parent
        partial = Path(folder) / f".{output.stem}.partial.{kind}"
        ended.callback(sidecar_path(partial).unlink, missing_ok=True)
        ended.callback(partial.unlink, missing_ok=True)
        write_atomic(partial, lambda file: _serialise(tensors, kind, file))
        sidecar = Sidecar.of(
            architecture,
            sha256=sha256_of(partial),
            provenance=made if made and isinstance(made, dict) else loaded.info,
            **origin,
            **settings,
        )
        comparisons = verify(partial, architecture, state, sidecar, image=image) if verify_features else []
        written = _fingerprints(tensors)
        # The file is read back without the source beside it in memory.
        for part in (tensors, state, loaded.state, loaded.rest):
            part.clear()
        if _fingerprints(load_detectron2_file(partial)) != written:
            raise OSError(f"{partial} does not read back as it was written; check the disk")
        described = write_sidecar(partial, sidecar)
        if not dry_run:
            sidecar_path(output).unlink(missing_ok=True)  # never an old sidecar beside new weights
            partial.replace(output)
            described.replace(sidecar_path(output))
    return Conversion(output, sidecar, len(written), notes, comparisons)


def _format(output: Path, format: str | None) -> str:
    kind = format or output.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise WeightsError(f"--output {output}: name it .pth or .pkl or give --format {' or '.join(FORMATS)}")
    if output.is_dir():
        raise WeightsError(f"--output {output} is a folder; name a file in it")
    if output.suffix != f".{kind}":
        raise WeightsError(f"--output {output} must end in .{kind}: Detectron2 reads a file by its suffix")
    return kind


def input_settings(
    info: Mapping[str, Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    color_order: str | None,
) -> dict[str, Any]:
    """Mean, std (0-255, in the order R, G, B) and colour order: given, as the file says, or ImageNet's.

    Raises:
        WeightsError: not three finite numbers for pixels in [0, 1], a std of 0, an unknown order.
    """

    def scaled(given: Sequence[float] | None, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        values = given if given is not None else info.get(name)
        if values is None:
            return default
        while isinstance(values, list | tuple) and len(values) == 1:
            values = values[0]  # a tensor of the shape (1, 3, 1, 1)
        if isinstance(values, list | tuple):
            values = [_only_number(value) for value in values]
        if not isinstance(values, list) or len(values) != 3 or None in values:
            raise WeightsError(f"{name} must be 3 finite numbers (R, G, B), got {values!r}; give --{name}")
        if max(values) > 2 or min(values) < 0:
            raise WeightsError(f"{name} must be for pixels in [0, 1], got {list(values)}; divide by 255")
        if name == "std" and min(values) == 0:
            raise WeightsError(f"std must be above 0, got {values}: images are divided by it; give --std")
        return tuple(round(value * 255, 4) for value in values)

    order = color_order or info.get("color_order", "RGB")
    if order not in ("RGB", "BGR"):
        raise WeightsError(f"color_order must be RGB or BGR, got {order!r}")
    return {
        "pixel_mean": scaled(mean, "mean", IMAGENET_MEAN_255),
        "pixel_std": scaled(std, "std", IMAGENET_STD_255),
        "color_order": order,
    }


def _only_number(value: Any) -> float | None:
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]  # of a tensor of the shape (3, 1, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _check_losses(info: Mapping[str, Any]) -> None:
    """A loss that is not finite means a training that diverged; a best one may begin at infinity."""
    for name, value in info.items():
        if value in ("inf", "-inf", "nan") and "loss" in name and not re.search("best|min|low", name):
            raise WeightsError(f"the file says {name}={value}: training diverged; take an earlier checkpoint")


def _serialise(tensors: Mapping[str, Tensor], kind: str, file: BinaryIO) -> None:
    # Without both marks Detectron2 takes the file for Caffe2's and loses the BatchNorm statistics.
    if kind == "pth":
        torch.save({"model": dict(tensors), "__author__": AUTHOR, "matching_heuristics": True}, file)
    else:
        arrays = {key: value.numpy() for key, value in tensors.items()}
        pickle.dump({"model": arrays, "__author__": AUTHOR, "matching_heuristics": True}, file)


def _fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, str]]:
    return {key: (one.shape, hashlib.sha256(one.numpy().data).hexdigest()) for key, one in tensors.items()}


def reverse(
    weights: str | Path, output: str | Path, *, dry_run: bool = False
) -> tuple[Architecture, list[str]]:
    """The backbone of a Detectron2 file (backbone or detector) as torchvision's state dict.

    Args:
        weights: .pth or .pkl of Detectron2.
        output: .pth, `torch.save`d dictionary with "state_dict", "arch", "mean", "std", "color_order".
        dry_run: check everything, and write nothing.

    Returns:
        The architecture, and notes.

    Raises:
        ValueError: no backbone in the file, or one that is not a torchvision ResNet.
    """
    weights, output = Path(weights), Path(output)
    state, caffe2 = read_detectron2(weights)
    if not (backbone := _backbone_of(state)):
        raise WeightsError(
            f"{weights} has no ResNet of Detectron2 (keys like res2.0.conv1.weight); {list(state)[:3]}"
        )
    infer(backbone)  # its message tells what the file is
    architecture, checked, notes = check_state(backbone)
    if left := len(state) - len(backbone):
        notes.append(f"left out {left} tensors of the detector (FPN, RPN, heads)")
    sidecar = read_sidecar(weights)
    if architecture.depth >= 50 and (caffe2 or (sidecar is not None and sidecar.stride_in_1x1)):
        raise WeightsError(
            f"{weights}: its strides are in the 1 x 1 convolutions (MODEL.RESNETS.STRIDE_IN_1X1 True); "
            f"torchvision's {architecture.name} has them in the 3 x 3 and would compute other features"
        )
    content: dict[str, Any] = {"state_dict": checked, "arch": architecture.name}
    if sidecar is not None:
        content |= {
            "mean": [value / 255 for value in sidecar.pixel_mean],
            "std": [value / 255 for value in sidecar.pixel_std],
            "color_order": sidecar.color_order,
            "provenance": sidecar.provenance,
        }
    else:
        notes.append("no sidecar: mean, std and colour order are not known and not written")
    if not dry_run:
        write_atomic(output, lambda file: torch.save(content, file))
    return architecture, notes
