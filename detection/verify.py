"""Proof of a conversion: the same image through classifier and backbone, feature by feature."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from detection.architecture import Architecture, torchvision_key
from detection.checks import load_detectron2_file
from detection.reading import WeightsError
from detection.sidecar import Sidecar

TOLERANCE = 1e-4
STAGES = ("res2", "res3", "res4", "res5")


class VerificationError(ValueError):
    """The converted backbone does not compute what the classifier computes."""


@dataclass(frozen=True)
class Comparison:
    """Relative error of each stage's features: largest difference over largest value.

    Attributes:
        against: what was compared with the classifier.
        errors: by stage, res2 to res5.
    """

    against: str
    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())


def default_image(size: int = 224) -> Tensor:
    """(3, size, size) uint8: drawn clutter of every colour and direction, unsymmetric in all of them."""
    from keepaug.data.synthetic import draw_backgrounds

    drawn = draw_backgrounds(1, (size, size), generator=torch.Generator().manual_seed(7))[0]
    ramp = torch.linspace(0, 1, size)
    across, down = ramp.expand(size, size), ramp[:, None].expand(size, size)
    tint = torch.stack([across, down, 1 - across])
    return ((0.7 * drawn + 0.3 * tint).clamp(0, 1) * 255).to(torch.uint8)


def _read_image(path: str | Path) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    from keepaug.data.reading import read_image

    return pil_to_tensor(read_image(path).resize((224, 224)))


@torch.no_grad()
def _stage_features(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """res2 to res5 of torchvision's ResNet."""
    features = network.maxpool(network.relu(network.bn1(network.conv1(images))))  # type: ignore[operator]
    found = {}
    for name, stage in zip(STAGES, ("layer1", "layer2", "layer3", "layer4"), strict=True):
        features = getattr(network, stage)(features)
        found[name] = features
    return found


def _classifier_features(
    architecture: Architecture, state: Mapping[str, Tensor], image: Tensor, sidecar: Sidecar
) -> dict[str, Tensor]:
    """As the classifier was evaluated: pixels in [0, 1], its own mean and std, in its own colour order."""
    network = architecture.build().eval()
    missing, unexpected = network.load_state_dict(dict(state), strict=False)
    if unexpected or any(
        not key.startswith("fc.") and not key.endswith("num_batches_tracked") for key in missing
    ):
        raise WeightsError(
            f"torchvision's {architecture.name} does not take these weights: {missing[:3]} {unexpected[:3]}"
        )
    mean = torch.tensor(sidecar.pixel_mean).view(3, 1, 1) / 255
    std = torch.tensor(sidecar.pixel_std).view(3, 1, 1) / 255
    pixels = (image.float() / 255 - mean) / std
    if sidecar.color_order == "BGR":
        pixels = pixels.flip(0)
    return _stage_features(network, pixels[None])


def _detector_input(image: Tensor, sidecar: Sidecar) -> Tensor:
    """As a detector prepares it: 0-255 in INPUT.FORMAT, minus PIXEL_MEAN, over PIXEL_STD."""
    mean, std, pixels = list(sidecar.pixel_mean), list(sidecar.pixel_std), image.float()
    if sidecar.color_order == "BGR":
        mean, std, pixels = mean[::-1], std[::-1], pixels.flip(0)
    return ((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))[None]


def _own_features(path: Path, architecture: Architecture, pixels: Tensor) -> dict[str, Tensor]:
    """The written file in the torchvision engine's backbone."""
    network = architecture.build().eval()
    state = {torchvision_key(key): value for key, value in load_detectron2_file(path).items()}
    network.load_state_dict(state, strict=False)
    return _stage_features(network, pixels)


@torch.no_grad()
def _detectron2_features(path: Path, sidecar: Sidecar, pixels: Tensor) -> dict[str, Tensor]:
    """The written file in Detectron2's own ResNet, loaded by its own checkpointer."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    cfg = get_cfg()
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NUM_GROUPS = sidecar.depth, sidecar.num_groups
    resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1 = sidecar.width_per_group, sidecar.stride_in_1x1
    resnets.OUT_FEATURES = list(STAGES)
    if sidecar.depth < 50:
        resnets.RES2_OUT_CHANNELS = 64
    network = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(network).load(str(path))
    written, loaded = load_detectron2_file(path), network.state_dict()
    lost = [key for key, value in written.items() if key not in loaded or not torch.equal(loaded[key], value)]
    fresh = [key for key in loaded if key not in written and not key.endswith("num_batches_tracked")]
    if lost or fresh:
        raise VerificationError(
            f"Detectron2 did not load the file: {len(lost)} tensors differ ({', '.join(lost[:3])}), "
            f"{len(fresh)} were not in it ({', '.join(fresh[:3])})"
        )
    return dict(network(pixels))


def verify(
    written: str | Path,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    sidecar: Sidecar,
    *,
    image: str | Path | Tensor | None = None,
    detectron2: bool | None = None,
) -> list[Comparison]:
    """Compare features of the written file with the classifier's, through the detector's own preprocessing.

    The preprocessing is part of it: a wrong mean, std, colour order, stride or eps shows in the features.

    Args:
        written: the converted file.
        architecture: of the classifier.
        state: the classifier's backbone, torchvision's keys.
        sidecar: what will be written beside the file.
        image: a picture's path, or (3, H, W) uint8 RGB; None draws one.
        detectron2: also in Detectron2's own network; None: where it is installed.

    Returns:
        One comparison for each implementation.

    Raises:
        VerificationError: an error above `TOLERANCE`, or Detectron2 did not load every tensor.
    """
    if isinstance(image, str | Path):
        image = _read_image(image)
    pixels = default_image() if image is None else image
    wanted = _classifier_features(architecture, state, pixels, sidecar)
    prepared = _detector_input(pixels, sidecar)
    results = [_compare("torchvision engine", _own_features(Path(written), architecture, prepared), wanted)]
    if detectron2 is None:
        detectron2 = importlib.util.find_spec("detectron2") is not None
    if detectron2:
        results.append(_compare("Detectron2", _detectron2_features(Path(written), sidecar, prepared), wanted))
    for result in results:
        if not result.worst <= TOLERANCE:
            raise VerificationError(
                f"the backbone in {result.against} does not compute the classifier's features; relative "
                "errors "
                + ", ".join(f"{stage} {error:.1e}" for stage, error in result.errors.items())
                + f" (allowed {TOLERANCE:.0e})"
            )
    return results


def _compare(against: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Comparison:
    errors = {}
    for stage in STAGES:
        if found[stage].shape != wanted[stage].shape:
            raise VerificationError(
                f"{against}: {stage} is {tuple(found[stage].shape)}, the classifier's "
                f"{tuple(wanted[stage].shape)}"
            )
        scale = wanted[stage].abs().max().clamp(min=1e-12)
        errors[stage] = float((found[stage] - wanted[stage]).abs().max() / scale)
    return Comparison(against, errors)
