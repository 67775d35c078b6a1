"""From a value for each image to rows: means with bootstrap intervals, by class, and the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keepaug.audit.images import class_name
from keepaug.audit.measures import SHARES, Interval, bootstrap
from keepaug.audit.trials import Trial
from keepaug.runs.seeds import make_generator

HALF = 0.5
Table = Mapping[str, Mapping[str, Tensor]]
_LEAST_OF_A_CLASS = 10


def _per_image(values: Tensor, image: Tensor, num: int) -> Tensor:
    return torch.zeros(num, dtype=torch.float64).index_add_(0, image, values.double())


def _ratios(clean: Table, columns: Table, keep: bool) -> dict[str, tuple[Tensor, Tensor]]:
    images, objects, first = columns["images"], columns["objects"], clean["images"]
    num = len(images["lost"])
    ones, known = torch.ones(num, dtype=torch.float64), images["known"]
    seconds = images["seconds"] + (first["saliency_seconds"][:num] if keep else 0)
    destroyed = (objects["hidden"] >= HALF) * objects["known"]
    return {
        "importance_lost": (images["lost"] * known, known),
        "half_lost": ((images["lost"] >= HALF) * known, known),
        "destroyed": (
            _per_image(destroyed, objects["image"], num),
            _per_image(objects["known"], objects["image"], num),
        ),
        "fidelity": (images["correct"], first["correct"][:num]),
        "flipped": (images["flipped"], ones),
        "logit_drop": (images["drop"], ones),
        "diversity": (images["loss"], first["loss"][:num]),
        "feature_spread": (images["moved"], first["distance"][:num]),
        "colour_change": (images["change"] * known, known),
        "area_hidden": (images["area"] * known, known),
        "cost": (seconds * 1000, ones),
    }


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {key: round(value, 6) for key, value in interval._asdict().items()}


def row_of(
    trial: Trial,
    clean: Table,
    columns: Table,
    *,
    seed: int,
    classes: Sequence[str] | None,
    object_names: Sequence[str],
) -> dict[str, Any]:
    """One row of `audit.json`."""
    generator = make_generator(seed, "audit", "bootstrap")
    measured = bootstrap(_ratios(clean, columns, trial.keep), generator=generator)
    augmentation = trial.augmentation
    return {
        "augmentation": augmentation.spec,
        "keep": trial.keep,
        "title": augmentation.title(trial.keep),
        "settings": augmentation.settings | ({"tau": trial.tau} if trial.keep else {}),
        "named": augmentation.named_keep == trial.keep,
        "images": len(columns["images"]["lost"]),
        "untold": int((columns["images"]["known"] == 0).sum()),
        **{name: _plain(interval) for name, interval in measured.items()},
        "destroyed_curve": _curve(columns),
        "by_class": _by_class(clean, columns, classes),
        "by_object": _by_object(columns, object_names),
        "code": augmentation.code(trial.keep, trial.tau),
    }


def differences(clean: Table, plain: Table, keep: Table, *, seed: int) -> dict[str, Any]:
    """Measures with Keep minus those without, of the images and objects that both tell of.

    Returns:
        "destroyed_difference" and others: mean and interval over resampled images, which are the same for
        both; None where nothing is known.
    """
    first, second = plain["objects"], keep["objects"]
    one, other = plain["images"], keep["images"]
    num, image = len(one["lost"]), first["image"]
    known, told = first["known"] * second["known"], one["known"] * other["known"]
    hidden = ((second["hidden"] >= HALF).double() - (first["hidden"] >= HALF).double()) * known
    lost = ((other["lost"] >= HALF).double() - (one["lost"] >= HALF).double()) * told
    ratios = {
        "destroyed": (_per_image(hidden, image, num), _per_image(known, image, num)),
        "half_lost": (lost, told),
        "flipped": (other["flipped"] - one["flipped"], torch.ones_like(one["flipped"])),
        "fidelity": (other["correct"] - one["correct"], clean["images"]["correct"][:num]),
    }
    found = bootstrap(ratios, generator=make_generator(seed, "audit", "bootstrap"))
    return {f"{name}_difference": _plain(interval) for name, interval in found.items()}


def _curve(columns: Table) -> list[list[float]]:
    """(hidden share, share of objects hidden at least so much)."""
    objects = columns["objects"]
    hidden = objects["hidden"][objects["known"] > 0]
    if not len(hidden):
        return []
    return [[share, round(float((hidden >= share - 1e-9).double().mean()), 6)] for share in SHARES]


def _by_class(clean: Table, columns: Table, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    """Each class with enough images, the one whose accuracy suffers most first."""
    images = columns["images"]
    num = len(images["lost"])
    labels, correct, known = clean["images"]["label"][:num], clean["images"]["correct"][:num], images["known"]
    found = []
    for label in labels.unique().tolist():
        own = labels == label
        right = float(correct[own].sum())
        if int(own.sum()) < _LEAST_OF_A_CLASS or not right:
            continue
        told = float(known[own].sum())
        found.append(
            {
                "class": class_name(label, classes),
                "images": int(own.sum()),
                "fidelity": round(float(images["correct"][own].sum()) / right, 6),
                "flipped": round(float(images["flipped"][own].mean()), 6),
                "importance_lost": round(float((images["lost"] * known)[own].sum()) / told, 6)
                if told
                else None,
            }
        )
    return sorted(found, key=lambda entry: entry["fidelity"])


def _by_object(columns: Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """Each kind of object with enough of them, the one most often destroyed first."""
    objects = columns["objects"]
    found = []
    for kind in objects["kind"].unique().tolist():
        own = (objects["kind"] == kind) & (objects["known"] > 0)
        if int(own.sum()) >= _LEAST_OF_A_CLASS:
            share = float((objects["hidden"][own] >= HALF).double().mean())
            found.append({"object": names[kind], "objects": int(own.sum()), "destroyed": round(share, 6)})
    return sorted(found, key=lambda entry: -entry["destroyed"])


def clean_figures(clean: Table, *, seed: int, labelled: bool) -> dict[str, Any]:
    """Accuracy on the clean images, what guessing would give, and how sure the network is."""
    images = clean["images"]
    ones = torch.ones_like(images["correct"])
    measured = bootstrap(
        {"accuracy": (images["correct"], ones), "confidence": (images["confidence"], ones)},
        generator=make_generator(seed, "audit", "bootstrap"),
    )
    labels = images["label"]
    chance = float(labels.bincount().max()) / len(labels)
    return {
        "accuracy": _plain(measured["accuracy"]) if labelled else None,
        "chance": round(chance, 6) if labelled else None,
        "confidence": _plain(measured["confidence"]),
    }


def sweep_points(clean: Table, trials: Sequence[tuple[Trial, Table]], *, seed: int) -> list[dict[str, Any]]:
    """The sweep of one augmentation: a point for each strength, plain, Keep, and tau."""
    points = []
    for trial, columns in trials:
        ratios = _ratios(clean, columns, trial.keep)
        wanted = {
            name: ratios[name]
            for name in ("fidelity", "importance_lost", "destroyed", "flipped", "diversity")
        }
        measured = bootstrap(wanted, generator=make_generator(seed, "audit", "bootstrap"))
        points.append(
            {
                "value": trial.value,
                "keep": trial.keep,
                "tau": trial.tau if trial.keep else None,
                **{name: _plain(interval) for name, interval in measured.items()},
            }
        )
    return points


def recommended(
    clean: Table, trials: Sequence[tuple[Trial, Table]], *, keep: bool, tau: float, bound: float, seed: int
) -> dict[str, Any] | None:
    """The strongest setting up to which fidelity stays at or above the bound, and how sure that is.

    Args:
        clean: columns of the clean images.
        trials: the sweep, strengths rising.
        keep: of the Keep version, at `tau`.
        tau: quantile.
        bound: least fidelity.
        seed: of the bootstrap.

    Returns:
        "value" (None: not even the weakest), "low" and "high" (over 90 % of 1,000 bootstrap samples of the
        images) and "share", how many of the samples recommend the same; None where nothing was swept.
    """
    chosen = [one for one in trials if one[0].keep == keep and (not keep or one[0].tau == tau)]
    if not chosen:
        return None
    after = torch.stack([columns["images"]["correct"] for _, columns in chosen])
    before = clean["images"]["correct"][: after.shape[1]]
    generator = make_generator(seed, "audit", "bootstrap")
    picked = torch.randint(after.shape[1], (1000, after.shape[1]), generator=generator)
    right = before[picked].sum(dim=1).clamp(min=1)
    resampled = torch.stack([row[picked].sum(dim=1) / right for row in after], dim=1)
    values: list[Any] = [None, *(trial.value for trial, _ in chosen)]

    def strongest(fidelity: Tensor) -> Tensor:
        return (fidelity >= bound).long().cumprod(dim=-1).sum(dim=-1)

    own = int(strongest(after.sum(dim=1) / before.sum().clamp(min=1)))
    places = strongest(resampled).sort().values
    low, high = (int(places[int(part * (len(places) - 1))]) for part in (0.05, 0.95))
    share = float((places == own).double().mean())
    return {"value": values[own], "low": values[low], "high": values[high], "share": round(share, 3)}
