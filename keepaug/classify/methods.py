"""The methods: one entry of `METHODS` each. A method and its Keep version are built from the same settings.

A new one is an entry here (what builds it, whose settings it shares, its traits), its augmentation's own
file, and a test; the fields of `ClassifyConfig` say by `used_by` which methods and traits use them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import keepaug

if TYPE_CHECKING:  # the table is read without torch, before a run
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
    )
    from keepaug.baselines.common import Draw
    from keepaug.classify.config import ClassifyConfig
    from keepaug.data.images import BatchTransform
    from keepaug.keep import KeepPaste
    from keepaug.policies import AugMix, Repeated

Labels: TypeAlias = "Tensor | MixedLabels | ConsistentLabels | HiddenMix"


class Views(NamedTuple):
    """A batch between loading and the forward pass.

    Attributes:
        images: (N, 3, H, W) normalised, cropped and flipped.
        labels: (N,) int64.
        strong: the images after the method's policy, (N, 3, H, W), or (N, 2, 3, H, W) for two views, or None.
        saliency: (N, H, W) float32; None where the method needs none.
        drawn: which images are augmented and their regions' sizes, where drawn before the saliency.
    """

    images: Tensor
    labels: Tensor
    strong: Tensor | None = None
    saliency: Tensor | None = None
    drawn: Draw | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Keyword arguments of an augmentation that draws first."""
        return {} if self.drawn is None else {"drawn": self.drawn}


class Step(Protocol):
    """What a method does to a batch; its `augment` is the augmentation itself, for other programs to take."""

    def __call__(self, views: Views, generator: torch.Generator | None = None) -> tuple[Tensor, Labels]:
        """What the network is trained on, and its labels."""


@dataclass(frozen=True)
class Unchanged:
    """No augmentation beyond crop and flip, or one inside the network."""

    augment: None = None

    def __call__(self, views: Views, generator: torch.Generator | None = None) -> tuple[Tensor, Labels]:
        """The images as they are."""
        return views.images, views.labels


@dataclass(frozen=True)
class Cutting:
    """Cutout's kind: images change, labels stay."""

    augment: Cutout | RandomErasing | GridMask

    def __call__(self, views: Views, generator: torch.Generator | None = None) -> tuple[Tensor, Labels]:
        """Cut."""
        return self.augment(views.images, views.saliency, **views.given, generator=generator), views.labels

    def at(self, progress: float) -> Cutting:
        """The same at a progress of the training in [0, 1]; only GridMask changes."""
        return Cutting(self.augment.at(progress)) if isinstance(self.augment, keepaug.GridMask) else self


@dataclass(frozen=True)
class Mixing:
    """CutMix's kind: labels are mixed too."""

    augment: CutMix | Mixup | AttentiveCutMix | ManifoldMixup

    def __call__(self, views: Views, generator: torch.Generator | None = None) -> tuple[Tensor, Labels]:
        """Mix."""
        return self.augment(views.images, views.labels, views.saliency, **views.given, generator=generator)


@dataclass(frozen=True)
class Pasting:
    """An image-level policy (done by the loader), what is kept pasted back, then Cutout.

    Attributes:
        augment: None for the plain policy.
        cutout: applied last, as in AutoAugment's recipe; None for none.
    """

    augment: KeepPaste | None
    cutout: Cutout | None = None

    def __call__(self, views: Views, generator: torch.Generator | None = None) -> tuple[Tensor, Labels]:
        """Paste and cut.

        Raises:
            ValueError: there is no strong view.
        """
        if views.strong is None:
            raise ValueError("an image-level method needs the strongly augmented view")
        inputs = views.strong
        if self.augment is not None:
            inputs = self.augment(views.images, inputs, views.saliency, generator=generator)
        return (inputs if self.cutout is None else self.cutout(inputs, generator=generator)), views.labels


@dataclass(frozen=True)
class Consistent:
    """AugMix with its consistency loss: the image and two augmented views.

    Attributes:
        weight: of the Jensen-Shannon loss.
    """

    weight: float
    augment: None = None

    def __call__(self, views: Views, generator: torch.Generator | None = None) -> tuple[Tensor, Labels]:
        """All three views after one another.

        Raises:
            ValueError: there are not two strong views.
        """
        if views.strong is None or views.strong.ndim != 5:
            raise ValueError("AugMix's consistency loss needs two augmented views (N, 2, 3, H, W)")
        first, second = views.strong[:, 0], views.strong[:, 1]
        return keepaug.three_views(views.images, first, second, views.labels, weight=self.weight)


Policy: TypeAlias = "v2.Transform | AugMix | Repeated"


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        base: the plain method whose settings it shares; its own name if it is one.
        build: the step, from the settings.
        traits: "keep" (needs a saliency map, has tau), "saliency" (needs a map all the same), "policy" (needs
            the strong view), "paste" (pastes regions of `size` back), "network" (is an option of the network,
            which goes with other methods too); settings name them in `used_by`.
        policy: the image-level augmentation of the strong view, from the settings.
    """

    base: str
    build: Callable[[ClassifyConfig], Step]
    traits: frozenset[str] = frozenset()
    policy: Callable[[ClassifyConfig], Policy] | None = None

    @property
    def needs_saliency(self) -> bool:
        """Whether its step wants a map."""
        return bool(self.traits & {"keep", "saliency"})


def _pair(values: list[Any]) -> tuple[Any, Any]:
    return values[0], values[1]


def _cutout(config: ClassifyConfig) -> dict[str, Any]:
    return {"size": config.size, "placement": config.placement, "p": config.p}


def _erasing(config: ClassifyConfig) -> dict[str, Any]:
    return {"p": config.p, "area": _pair(config.area), "aspect": _pair(config.aspect), "fill": config.fill}


def _cutmix(config: ClassifyConfig) -> dict[str, Any]:
    return {"alpha": config.alpha, "p": config.p, "placement": config.placement, "per": config.per}


def _grid_mask(config: ClassifyConfig) -> GridMask:
    unit, ratio = _pair(config.grid_unit), config.grid_ratio
    return keepaug.GridMask(unit, ratio, config.grid_rotate, config.p, config.grid_ramp)


def _after(config: ClassifyConfig) -> Cutout | None:
    return keepaug.Cutout(config.cutout_after) if config.cutout_after else None


def _plain_policy(config: ClassifyConfig) -> Pasting:
    return Pasting(None, _after(config))


def _keep_policy(config: ClassifyConfig) -> Pasting:
    return Pasting(keepaug.KeepPaste(config.size, config.tau, config.paste_placement), _after(config))


def _moved(config: ClassifyConfig) -> dict[str, Any]:
    fill = {"black": None, "grey": [128.0] * 3, "mean": list(config.mean_colour)}
    return {"ranges": config.ranges, "fill": fill[config.policy_fill]}


def _rand_augment(config: ClassifyConfig) -> Policy:
    how = {"magnitude_max": config.magnitude_max, "operations": config.operations, **_moved(config)}
    return keepaug.rand_augment(config.num_ops, config.magnitude, **how)


def _auto_augment(config: ClassifyConfig) -> Policy:
    return keepaug.auto_augment(config.policy, **_moved(config))


def _aug_mix(config: ClassifyConfig) -> Policy:
    from keepaug.policies import Repeated

    policy = keepaug.aug_mix(config.severity, all_ops=config.all_ops)
    return Repeated(policy, 2) if config.consistency else policy


KEEP, POLICY = frozenset({"keep"}), frozenset({"policy"})
PASTE, NETWORK = frozenset({"keep", "policy", "paste"}), frozenset({"network"})

METHODS: dict[str, Method] = {
    "none": Method("none", lambda config: Unchanged()),
    "cutout": Method("cutout", lambda config: Cutting(keepaug.Cutout(**_cutout(config)))),
    "keep_cutout": Method(
        "cutout", lambda config: Cutting(keepaug.KeepCutout(**_cutout(config), tau=config.tau)), KEEP
    ),
    "cutmix": Method("cutmix", lambda config: Mixing(keepaug.CutMix(**_cutmix(config)))),
    "keep_cutmix": Method(
        "cutmix", lambda config: Mixing(keepaug.KeepCutMix(**_cutmix(config), tau=config.tau)), KEEP
    ),
    "random_erasing": Method(
        "random_erasing", lambda config: Cutting(keepaug.RandomErasing(**_erasing(config)))
    ),
    "keep_random_erasing": Method(
        "random_erasing",
        lambda config: Cutting(keepaug.KeepRandomErasing(**_erasing(config), tau=config.tau)),
        KEEP,
    ),
    "rand_augment": Method("rand_augment", _plain_policy, POLICY, _rand_augment),
    "keep_rand_augment": Method("rand_augment", _keep_policy, PASTE, _rand_augment),
    "auto_augment": Method("auto_augment", _plain_policy, POLICY, _auto_augment),
    "keep_auto_augment": Method("auto_augment", _keep_policy, PASTE, _auto_augment),
    "grid_mask": Method("grid_mask", lambda config: Cutting(_grid_mask(config))),
    "aug_mix": Method(
        "aug_mix",
        lambda config: Consistent(config.consistency) if config.consistency else _plain_policy(config),
        POLICY,
        _aug_mix,
    ),
    "attentive_cutmix": Method(
        "attentive_cutmix",
        lambda config: Mixing(keepaug.AttentiveCutMix(config.attention_grid, config.num_patches, config.p)),
        frozenset({"saliency"}),
    ),
    "mixup": Method("mixup", lambda config: Mixing(keepaug.Mixup(config.alpha, config.p, config.per))),
    "manifold_mixup": Method(
        "manifold_mixup",
        lambda config: Mixing(
            keepaug.ManifoldMixup(config.alpha, config.hidden_layers, config.p, config.per)
        ),
    ),
    "dropout": Method("dropout", lambda config: Unchanged(), NETWORK),
    "drop_path": Method("drop_path", lambda config: Unchanged(), NETWORK),
    "drop_block": Method("drop_block", lambda config: Unchanged(), NETWORK),
}


def build_policy(config: ClassifyConfig) -> Policy | None:
    """The strong view's image-level augmentation, or None; two views for AugMix's consistency loss."""
    policy = METHODS[config.method].policy
    return None if policy is None else policy(config)


def build_batch_policy(config: ClassifyConfig) -> BatchTransform | None:
    """The same for whole batches of images in memory."""
    if (policy := build_policy(config)) is None:
        return None
    if config.method == "aug_mix":
        from keepaug.data.images import one_by_one

        return one_by_one(policy)
    return keepaug.BatchPolicy(policy)


def compute_saliency(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    mode: str,
    *,
    only: Tensor | None = None,
    early_map: str = "logit",
    forward_early: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The map (N, H, W) in a mode of `keepaug.classify.config.SALIENCY`, "other" is the images' own here.

    `only` is as in `saliency_map`.

    Raises:
        ValueError: an early mode without an early head.
    """
    scale = 0.5 if mode.startswith("low_resolution") else 1.0
    if mode in ("early_head", "low_resolution_early"):
        from keepaug.models.early import EarlyHeadNetwork

        forward = model.forward_early if isinstance(model, EarlyHeadNetwork) else forward_early
        if forward is None:
            raise ValueError(
                f"saliency {mode} needs a network with an early head; got {type(model).__name__}"
            )
        return keepaug.saliency_map(
            model, images, labels, only=only, of=early_map, forward=forward_early or forward, scale=scale
        )
    return keepaug.saliency_map(model, images, labels, only=only, scale=scale)
