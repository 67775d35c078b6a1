"""The JSON beside a converted backbone: what the weights are and how they want their images."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from detection.architecture import Architecture
from keepaug.runs.files import sha256_of, write_json_atomic

SCHEMA = 1
IMAGENET_MEAN_255 = (123.675, 116.28, 103.53)
IMAGENET_STD_255 = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Sidecar:
    """What training must know about a backbone.

    Attributes:
        sha256: of the weights file.
        architecture: its usual name.
        depth: MODEL.RESNETS.DEPTH.
        num_groups: MODEL.RESNETS.NUM_GROUPS.
        width_per_group: MODEL.RESNETS.WIDTH_PER_GROUP.
        stride_in_1x1: MODEL.RESNETS.STRIDE_IN_1X1; False for everything of torchvision's kind.
        color_order: INPUT.FORMAT.
        pixel_mean: three numbers on the 0-255 scale, in the order R, G, B.
        pixel_std: the same.
        source: the classifier's file, without folders.
        source_sha256: of that file.
        provenance: unabridged, of the run that made the classifier (`keepaug.runs.result.describe_run`); for
            the file of another program what it says of itself.
        notes: what was unwrapped and left out.
    """

    sha256: str
    architecture: str
    depth: int
    num_groups: int
    width_per_group: int
    source: str
    stride_in_1x1: bool = False
    color_order: str = "RGB"
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN_255
    pixel_std: tuple[float, ...] = IMAGENET_STD_255
    source_sha256: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    @classmethod
    def of(cls, architecture: Architecture, *, sha256: str, source: str, **more: Any) -> Sidecar:
        """For an architecture."""
        return cls(
            sha256,
            architecture.name,
            architecture.depth,
            architecture.num_groups,
            architecture.width_per_group,
            source,
            **more,
        )


def of_caffe2(architecture: Architecture, *, source: str) -> Sidecar:
    """What Detectron2's zoo says of its backbones under Caffe2's names (MSRA's ResNets, FAIR's ResNeXts)."""
    plain = architecture.num_groups == 1
    return Sidecar.of(
        architecture,
        sha256="",
        source=source,
        stride_in_1x1=plain,
        color_order="BGR",
        pixel_std=(1.0, 1.0, 1.0) if plain else IMAGENET_STD_255,
    )


def started_from(weights: str | Path) -> dict[str, Any] | None:
    """What a detector is built on, as `describe_run` takes it; None for random weights.

    Args:
        weights: MODEL.WEIGHTS.

    Returns:
        "file" and "sha256" of the classifier where a sidecar tells them, otherwise of `weights` itself, and
        "provenance" of the run that made it, {} for a file of another program.

    Raises:
        ValueError: a damaged sidecar.
    """
    if not weights:
        return None
    if (sidecar := read_sidecar(weights)) is None:
        return {"file": Path(weights).name, "sha256": sha256_of(weights), "provenance": {}}
    # Files of earlier versions say a method alone.
    ours = "kind" in sidecar.provenance or "method" in sidecar.provenance
    return {
        "file": sidecar.source,
        "sha256": sidecar.source_sha256 or sidecar.provenance.get("source_sha256", ""),
        "provenance": sidecar.provenance if ours else {},
    }


def sidecar_path(weights: str | Path) -> Path:
    """`WEIGHTS.json`."""
    return Path(f"{weights}.json")


def write_sidecar(weights: str | Path, sidecar: Sidecar) -> Path:
    """Write it beside the weights."""
    return write_json_atomic(sidecar_path(weights), asdict(sidecar))


def read_sidecar(weights: str | Path) -> Sidecar | None:
    """The sidecar of a weights file, or None.

    Raises:
        ValueError: damaged, or of another schema.
    """
    path = sidecar_path(weights)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        known = {item.name for item in fields(Sidecar)}
        sidecar = Sidecar(**{key: value for key, value in content.items() if key in known})
        _check(sidecar)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no sidecar of keepaug convert ({error}); convert again") from error
    return sidecar


def _check(sidecar: Sidecar) -> None:
    """Of a file that anybody may have edited.

    Raises:
        ValueError: a field of another type than declared, or a value that cannot be.
    """
    kinds: tuple[tuple[type, tuple[str, ...]], ...] = (
        (str, ("sha256", "architecture", "source", "color_order", "source_sha256")),
        (int, ("depth", "num_groups", "width_per_group")),
        (bool, ("stride_in_1x1",)),
        (dict, ("provenance",)),
        (list, ("notes", "pixel_mean", "pixel_std")),
    )
    for kind, names in kinds:
        for name in names:
            if type(value := getattr(sidecar, name)) is not kind and not (
                kind is list and isinstance(value, tuple)
            ):
                raise ValueError(f"{name} is {value!r}, expected {kind.__name__}")
    for name in ("pixel_mean", "pixel_std"):
        values = getattr(sidecar, name)
        if len(values) != 3 or not all(
            type(value) in (int, float) and math.isfinite(value) for value in values
        ):
            raise ValueError(f"{name} is {values!r}, expected three finite numbers")
    if sidecar.color_order not in ("RGB", "BGR") or min(sidecar.pixel_std) <= 0:
        raise ValueError(f"color_order {sidecar.color_order!r}, pixel_std {sidecar.pixel_std}")
