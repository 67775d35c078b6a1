"""What can be audited, with which settings, and what is measured, without torch; see `keepaug.choices`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

BOUND = 0.95
"""Least fidelity of a recommended setting."""


def paste_side(side: int) -> int:
    """The paper's: 16 of CIFAR-10's 32 pixels, 40 of ImageNet's 224."""
    return max(1, round(side / 2 if side <= 64 else side * 40 / 224))


SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "cutout": lambda side: {"size": side // 2, "placement": "matched"},
    "random_erasing": lambda side: {"p": 0.5, "area_low": 0.02, "area_high": 0.4},
    "cutmix": lambda side: {"alpha": 1.0, "placement": "matched"},
    "mixup": lambda side: {"alpha": 1.0},
    "grid_mask": lambda side: {
        "unit_low": round(side * 3 / 7),
        "unit_high": side,
        "ratio": 0.4 if side <= 64 else 0.6,
    },
    "rand_augment": lambda side: {"num_ops": 2, "magnitude": 9, "paste": paste_side(side)},
    "auto_augment": lambda side: {
        "policy": "cifar10" if side <= 64 else "imagenet",
        "paste": paste_side(side),
    },
    "aug_mix": lambda side: {"severity": 3, "paste": paste_side(side)},
}
"""Each augmentation's settings with their defaults, for images of a side in pixels."""
NO_KEEP = ("mixup", "grid_mask")
MEASURES: dict[str, str] = {
    "importance_lost": "share of the saliency's mass that is no longer visible",
    "half_lost": "share of images that lose at least half of that mass",
    "destroyed": "share of known objects at least half hidden",
    "fidelity": "accuracy on augmented over accuracy on clean images (affinity)",
    "flipped": "share of images whose predicted class changes",
    "logit_drop": "fall of the label's logit",
    "diversity": "loss on augmented over loss on clean images",
    "feature_spread": "how far an image's features move, in distances between two images",
    "colour_change": "mean change of the shown pixels, of 1",
    "area_hidden": "share of pixels no longer visible",
    "cost": "milliseconds per image, saliency included",
}
PERCENT = ("importance_lost", "half_lost", "destroyed", "fidelity", "flipped", "colour_change", "area_hidden")


def check_limits(limits: Mapping[str, float]) -> None:
    """Refuse limits that nothing can exceed for the worse.

    Raises:
        ValueError: an unknown measure, or one that is better the higher it is.
    """
    for measure in limits:
        if measure not in MEASURES:
            raise ValueError(f"{measure!r} is no measure; known: {', '.join(MEASURES)}")
        if measure == "fidelity":
            raise ValueError("fidelity is better the higher it is, so nothing fails above it: limit flipped")


def check_name(spec: str) -> str | None:
    """Which of `SETTINGS` a specification names; None for module:object.

    Raises:
        ValueError: neither, or the Keep version of what has none.
    """
    name = spec.partition(":")[0]
    plain = name.removeprefix("keep_")
    if plain in SETTINGS:
        if name != plain and plain in NO_KEEP:
            raise ValueError(f"{plain} has no Keep version; audit {plain}")
        return plain
    if ":" in spec:
        return None
    raise ValueError(
        f"{spec!r} is no augmentation; known: {', '.join(SETTINGS)}, each with keep_ too where it cuts or "
        "distorts, or module:object of your own"
    )
