"""The methods as one step on a normalised batch; a method and its Keep version differ in selection alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from keepaug.baselines import (
    AttentiveCutMix,
    ConsistentLabels,
    CutMix,
    Cutout,
    GridMask,
    HiddenMix,
    ManifoldMixup,
    MixedLabels,
    Mixup,
    RandomErasing,
    three_views,
)
from keepaug.classify.config import IN_THE_NETWORK, ClassifyConfig
from keepaug.data.images import BatchTransform, one_by_one
from keepaug.keep import KeepCutMix, KeepCutout, KeepPaste, KeepRandomErasing
from keepaug.models.early import EarlyHeadNetwork
from keepaug.policies import BatchPolicy, Repeated, aug_mix, auto_augment, rand_augment
from keepaug.saliency import saliency_map

__all__ = [
    "Method",
    "build_batch_policy",
    "build_method",
    "build_policy",
    "compute_saliency",
    "needs_early_head",
]

Labels = Tensor | MixedLabels | ConsistentLabels | HiddenMix
Step = Callable[[Tensor, Tensor | None, Tensor, Tensor | None, torch.Generator | None], tuple[Tensor, Labels]]


@dataclass(frozen=True)
class Method:
    """What happens to a batch between loading and the forward pass.

    Attributes:
        step: `(images, strong, labels, saliency, generator) -> (inputs, labels)`, images (N, 3, H, W) normalised.
        needs_saliency: a map (N, H, W) must be passed.
        needs_strong: the strongly augmented view must be passed.
        at: where the method changes during the training, the step at a progress in [0, 1].
    """

    step: Step
    needs_saliency: bool
    needs_strong: bool
    at: Callable[[float], Step] | None = None


def needs_early_head(config: ClassifyConfig) -> bool:
    """Whether the network is trained with an early head."""
    looks = config.method.startswith("keep_") or (
        config.method == "attentive_cutmix" and config.attention == "saliency"
    )
    return looks and config.saliency in ("early_head", "low_resolution_early")


def build_policy(config: ClassifyConfig) -> v2.Transform | Repeated | None:
    """The image-level augmentation of the strong view, or None; a tuple of two views for AugMix's consistency loss."""
    plain = config.method.removeprefix("keep_")
    if plain == "rand_augment":
        return rand_augment(config.num_ops, config.magnitude, operations=config.operations)
    if plain == "auto_augment":
        return auto_augment(config.policy)
    if plain == "aug_mix":
        policy = aug_mix(config.severity, all_ops=config.all_ops)
        return Repeated(policy, 2) if config.consistency else policy
    return None


def build_batch_policy(config: ClassifyConfig) -> BatchTransform | None:
    """The same for whole batches of images in memory."""
    policy = build_policy(config)
    if policy is None:
        return None
    return one_by_one(policy) if config.method == "aug_mix" else BatchPolicy(policy)


def build_method(config: ClassifyConfig) -> Method:
    """The method with its settings.

    Raises:
        ValueError: a setting out of range.
    """
    keep, plain = config.method.startswith("keep_"), config.method.removeprefix("keep_")
    if plain == "none" or plain in IN_THE_NETWORK:
        return Method(lambda images, strong, labels, heat, generator: (images, labels), False, False)
    if plain in ("cutout", "random_erasing"):
        return Method(_cutting(_cutter(config, keep, plain)), keep, False)
    if plain == "grid_mask":
        unit = (config.grid_unit[0], config.grid_unit[1])
        grid = GridMask(unit, config.grid_ratio, config.grid_rotate, config.p, config.grid_ramp)
        return Method(_cutting(grid), False, False, at=lambda progress: _cutting(grid.at(progress)))
    if plain == "cutmix":
        settings = {"alpha": config.alpha, "p": config.p, "placement": config.placement, "per": config.per}
        mix: CutMix = KeepCutMix(**settings, tau=config.tau) if keep else CutMix(**settings)  # type: ignore[arg-type]
        return Method(_mixing(mix), keep, False)
    if plain == "mixup":
        return Method(_mixing(Mixup(config.alpha, config.p, config.per)), False, False)
    if plain == "manifold_mixup":
        hidden = ManifoldMixup(config.alpha, config.hidden_layers, config.p, config.per)
        return Method(_mixing(hidden), False, False)
    if plain == "attentive_cutmix":
        attentive = AttentiveCutMix(config.attention_grid, config.num_patches, config.p)
        return Method(_mixing(attentive), True, False)
    if plain == "aug_mix" and config.consistency:
        return Method(_consistent(config.consistency), False, True)
    return Method(_pasting(config, keep), keep, True)


def _cutter(config: ClassifyConfig, keep: bool, plain: str) -> Cutout | RandomErasing:
    if plain == "cutout":
        if keep:
            return KeepCutout(config.size, placement=config.placement, p=config.p, tau=config.tau)
        return Cutout(config.size, placement=config.placement, p=config.p)
    area, aspect = (config.area[0], config.area[1]), (config.aspect[0], config.aspect[1])
    if keep:
        return KeepRandomErasing(config.p, area, aspect, config.fill, tau=config.tau)
    return RandomErasing(config.p, area, aspect, config.fill)


def _mixing(mix: CutMix | Mixup | AttentiveCutMix | ManifoldMixup) -> Step:
    def step(
        images: Tensor,
        strong: Tensor | None,
        labels: Tensor,
        heat: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Labels]:
        return mix(images, labels, heat, generator=generator)

    return step


def _consistent(weight: float) -> Step:
    def step(
        images: Tensor,
        strong: Tensor | None,
        labels: Tensor,
        heat: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Labels]:
        if strong is None or strong.ndim != 5:
            raise ValueError("AugMix's consistency loss needs two augmented views (N, 2, 3, H, W)")
        return three_views(images, strong[:, 0], strong[:, 1], labels, weight=weight)

    return step


def _cutting(augment: Cutout | RandomErasing | GridMask) -> Step:
    def step(
        images: Tensor,
        strong: Tensor | None,
        labels: Tensor,
        heat: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Labels]:
        return augment(images, heat, generator=generator), labels

    return step


def _pasting(config: ClassifyConfig, keep: bool) -> Step:
    """Policy (done by the loader), then paste, then Cutout."""
    paste = KeepPaste(config.size, config.tau, config.paste_placement)
    cutout = Cutout(config.cutout_after) if config.cutout_after else None

    def step(
        images: Tensor,
        strong: Tensor | None,
        labels: Tensor,
        heat: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Labels]:
        if strong is None:
            raise ValueError(f"{config.method} needs the strongly augmented view")
        inputs = paste(images, strong, heat, generator=generator) if keep else strong
        return (inputs if cutout is None else cutout(inputs, generator=generator)), labels

    return step


def compute_saliency(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    mode: str,
    *,
    forward_early: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The map (N, H, W) in one of the modes `SALIENCY`.

    Raises:
        ValueError: an early mode without an early head.
    """
    scale = 0.5 if mode.startswith("low_resolution") else 1.0
    if mode in ("early_head", "low_resolution_early"):
        forward = model.forward_early if isinstance(model, EarlyHeadNetwork) else forward_early
        if forward is None:
            raise ValueError(
                f"saliency {mode} needs a network with an early head, got {type(model).__name__}"
            )
        return saliency_map(model, images, labels, forward=forward_early or forward, scale=scale)
    return saliency_map(model, images, labels, scale=scale)
