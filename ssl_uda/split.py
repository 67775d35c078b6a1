"""Which images keep their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keepaug.runs.config import ConfigError
from keepaug.runs.seeds import make_generator
from ssl_uda.choices import SPLITS


@dataclass(frozen=True)
class LabelSplit:
    """The labelled images and those used without label.

    Attributes:
        labelled: (num_labels,) int64 positions in the training images, rising.
        unlabelled: (M,) int64 positions; from the number of training images on the unlabelled folder's.
        counts: labelled images of each class.
    """

    labelled: Tensor
    unlabelled: Tensor
    counts: list[int]

    def describe(self, classes: Sequence[str], kind: str, seed: int) -> dict[str, Any]:
        """For `labels.json`."""
        return {
            "split": kind,
            "seed": seed,
            "num_labels": len(self.labelled),
            "num_unlabelled": len(self.unlabelled),
            "per_class": dict(zip(classes, self.counts, strict=True)),
            "labelled": self.labelled.tolist(),
        }


def choose_labelled(labels: Tensor, num_labels: int, num_classes: int, kind: str, seed: int) -> Tensor:
    """Positions of the labelled images, rising.

    Args:
        labels: (N,) int64.
        num_labels: how many.
        num_classes: K.
        kind: "first": the first num_labels images, whatever their classes (Google's for CIFAR-10,
            AutoAugment's reduced set); "balanced_first": the first num_labels / K of each class (Google's
            `use_equal_split`); "balanced": num_labels / K of each class at random, by the seed. A number that
            K does not divide gives one more to some classes: the first ones, or random ones.
        seed: of "balanced".

    Raises:
        ConfigError: more labels than images, fewer than classes, a class with too few images.
    """
    num = len(labels)
    if num_labels > num:
        raise ConfigError(f"num_labels is {num_labels}, there are {num} training images; lower num_labels")
    if num_labels < num_classes:
        raise ConfigError(f"num_labels is {num_labels} for {num_classes} classes; each needs one: raise it")
    if kind == "first":
        return torch.arange(num_labels)
    if kind not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {kind!r}")
    each, over = divmod(num_labels, num_classes)
    generator = make_generator(seed, "labels")
    lucky = torch.arange(num_classes)
    if kind == "balanced":
        lucky = torch.randperm(num_classes, generator=generator)
    wanted = torch.full((num_classes,), each)
    wanted[lucky[:over]] += 1
    chosen = []
    for label in range(num_classes):
        members = (labels == label).nonzero()[:, 0]
        if len(members) < wanted[label]:
            raise ConfigError(
                f"class {label} has {len(members)} images, {int(wanted[label])} of them should be labelled; "
                "lower num_labels or set split=first"
            )
        if kind == "balanced":
            members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[: wanted[label]])
    return torch.cat(chosen).sort().values


def split_labels(
    labels: Tensor,
    num_labels: int,
    num_classes: int,
    kind: str,
    *,
    seed: int,
    unlabelled: str = "all",
    num_extra: int = 0,
) -> LabelSplit:
    """Choose the labelled images and check that every class is among them.

    Args:
        labels: (N,) int64 of all training images.
        num_labels: see `choose_labelled`.
        num_classes: K.
        kind: one of `SPLITS`.
        seed: of "balanced".
        unlabelled: which images are used without label: "all", labelled ones included (Google's code), the
            "rest", or the "extra" ones alone.
        num_extra: images without a label, which follow the others.

    Raises:
        ConfigError: numbers that do not fit, or a class without a labelled image.
    """
    labelled = choose_labelled(labels, num_labels, num_classes, kind, seed)
    counts = labels[labelled].bincount(minlength=num_classes).tolist()
    if missing := [str(label) for label, count in enumerate(counts) if not count]:
        raise ConfigError(
            f"split={kind} with {num_labels} labels leaves the classes {', '.join(missing)} without any; "
            "images sorted by class have no useful first ones: set split=balanced, or raise num_labels"
        )
    used = torch.full((len(labels) + num_extra,), unlabelled != "extra")
    used[len(labels) :] = True
    if unlabelled == "rest":
        used[labelled] = False
    others = used.nonzero()[:, 0]
    if not len(others):
        why = "there is no unlabelled folder" if unlabelled == "extra" else "all are labelled"
        raise ConfigError(f"unlabelled={unlabelled} leaves no image: {why}; set unlabelled=all")
    return LabelSplit(labelled, others, counts)
