"""One pass over the images: what the network says of each image and of what each augmentation makes of it."""

from __future__ import annotations

import heapq
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepaug.audit.augmentations import Augmentation, Batch, Outcome
from keepaug.audit.images import Sample
from keepaug.audit.measures import colour_change, hidden_share, importance_lost, visible_pixels
from keepaug.audit.networks import AuditedNetwork
from keepaug.data.batch_transforms import normalize
from keepaug.data.pictures import grey_map
from keepaug.modes import evaluating
from keepaug.runs.progress import progress
from keepaug.runs.rehearsal import Rehearsal, rehearse
from keepaug.runs.seeds import make_generator
from keepaug.saliency import saliency_map

_STEP = 8  # images of a rehearsed step
_CLEAN = 4  # passes of the images as they are: the answer, and a saliency map, forward and back


@dataclass(frozen=True)
class Trial:
    """An augmentation, plain or Keep, on the first images of the sample.

    Attributes:
        augmentation: with its settings.
        keep: its Keep version.
        tau: quantile of the Keep version.
        limit: how many images.
        value: of the swept setting, or None outside of a sweep.
    """

    augmentation: Augmentation
    keep: bool
    tau: float
    limit: int
    value: Any = None


class Columns:
    """A value for each image, and for each object, in the order of the sample."""

    def __init__(self) -> None:
        # Plain arrays: thousands of small tensors would lie between the large ones and keep their memory.
        self._values: dict[str, dict[str, array[float]]] = {"images": {}, "objects": {}}
        self._types: dict[str, torch.dtype] = {}

    def add(self, images: Mapping[str, Tensor], objects: Mapping[str, Tensor]) -> None:
        """The columns of one batch."""
        for table, values in (("images", images), ("objects", objects)):
            for name, column in values.items():
                self._types[f"{table} {name}"] = column.dtype
                self._values[table].setdefault(name, array("d")).extend(column.tolist())

    def joined(self) -> dict[str, dict[str, Tensor]]:
        """All batches."""
        return {
            table: {
                name: torch.tensor(values, dtype=self._types[f"{table} {name}"])
                for name, values in columns.items()
            }
            for table, columns in self._values.items()
        }


@dataclass(frozen=True)
class Picture:
    """One image, what it loses, and what its Keep version loses.

    Attributes:
        score: what it is ranked by.
        position: in the sample.
        panels: name to (3, H, W) uint8.
        facts: numbers and names for the caption.
    """

    score: tuple[float, float]
    position: int
    panels: dict[str, Tensor]
    facts: dict[str, Any]


class _Worst:
    """The few images that lose most, kept while the rest streams by."""

    def __init__(self, num: int) -> None:
        self.num = num
        self._heap: list[tuple[tuple[float, float], int, Picture]] = []

    def wants(self, score: tuple[float, float]) -> bool:
        return self.num > 0 and (len(self._heap) < self.num or score > self._heap[0][0])

    def add(self, picture: Picture) -> None:
        heapq.heappush(self._heap, (picture.score, -picture.position, picture))
        if len(self._heap) > self.num:
            heapq.heappop(self._heap)

    def sorted(self) -> list[Picture]:
        return [picture for _, _, picture in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def run_trials(
    network: AuditedNetwork,
    sample: Sample,
    trials: Sequence[Trial],
    *,
    seed: int,
    num_worst: int,
    device: torch.device,
    quiet: bool = False,
) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, dict[str, Tensor]]], list[list[Picture]]]:
    """What the clean images and the trials give.

    Plain and Keep of one augmentation, at all its strengths, draw from generators of the same seed.

    Args:
        network: of classification.
        sample: of images.
        trials: of augmentations.
        seed: of all draws.
        num_worst: pictures to keep of each trial that is plain and outside of a sweep.
        device: where the network runs.
        quiet: no progress bar.

    Returns:
        Columns of the clean images, of each trial, and each trial's worst pictures.

    Raises:
        ValueError: labels without a logit, an image that cannot be read, an augmentation that fails.
    """
    clean = Columns()
    found = [Columns() for _ in trials]
    worst = [_Worst(num_worst if not trial.keep and trial.value is None else 0) for trial in trials]
    module = network.module.to(device)
    size = 64 if max(sample.shape) <= 64 else 16
    starts = range(0, len(sample), size)
    with evaluating(module), _features(module) as features:
        for start in progress(starts, "auditing", total=len(starts), disable=quiet):
            part = (start, start + size)
            _batch(network, module, features, sample, part, trials, clean, found, worst, seed, device)
    return clean.joined(), [columns.joined() for columns in found], [heap.sorted() for heap in worst]


def rehearse_trials(
    network: AuditedNetwork, sample: Sample, trials: Sequence[Trial], *, seed: int, device: torch.device
) -> Rehearsal:
    """What `run_trials` takes, from a few steps of it: each all trials on the same few images.

    A step counts as a pass of its images for each trial, and `_CLEAN` for what is done to them as they are.
    """
    module = network.module.to(device)
    each = min(_STEP, len(sample))
    passes = _CLEAN * len(sample) + sum(trial.limit for trial in trials)
    steps = -(-passes // (each * (_CLEAN + len(trials))))
    nothing = [_Worst(0) for _ in trials]
    with evaluating(module), _features(module) as features:

        def step() -> None:
            found = [Columns() for _ in trials]
            part = (0, each)
            _batch(network, module, features, sample, part, trials, Columns(), found, nothing, seed, device)

        return rehearse(step, steps, device)


def _batch(
    network: AuditedNetwork,
    module: nn.Module,
    features: _Features,
    sample: Sample,
    part: tuple[int, int],
    trials: Sequence[Trial],
    clean: Columns,
    found: Sequence[Columns],
    worst: Sequence[_Worst],
    seed: int,
    device: torch.device,
) -> None:
    pixels, labels, masks, owners, kinds = sample.load(*part)
    inputs = normalize(pixels, network.mean, network.std)
    logits, vectors = features.of(inputs.to(device))
    best = logits.argmax(dim=1)
    _check_labels(labels, logits)
    told = best if labels is None else labels
    started = time.perf_counter()
    heat = saliency_map(module, inputs.to(device), told.to(device)).cpu()
    seconds = (time.perf_counter() - started) / len(pixels)
    distance = (vectors - vectors.roll(1, dims=0)).norm(dim=1).double()
    clean.add(
        {
            "label": told,
            "prediction": best,
            "correct": (best == told).double(),
            "loss": F.cross_entropy(logits, told, reduction="none").double(),
            "distance": distance,
            "confidence": logits.softmax(dim=1).amax(dim=1).double(),
            "saliency_seconds": torch.full((len(pixels),), seconds, dtype=torch.float64),
        },
        {"image": owners + part[0], "kind": kinds},
    )
    batch = Batch(pixels, told, heat, network.mean, network.std, {})
    outcomes: dict[int, Outcome] = {}
    for number, trial in enumerate(trials):
        if part[0] >= trial.limit:
            continue
        name = trial.augmentation.kind or trial.augmentation.spec
        outcome = trial.augmentation.draw(
            batch, keep=trial.keep, tau=trial.tau, generator=make_generator(seed, "audit", name, part[0])
        )
        outcomes[number] = outcome
        after, moved = features.of(outcome.inputs.to(device))
        visible = visible_pixels(outcome.source, close=outcome.close)
        lost, known = importance_lost(heat, visible), outcome.told.double()
        row = torch.arange(len(pixels))
        drop = (logits[row, told] - after[row, told]).double()
        hidden = hidden_share(visible, masks, owners)
        found[number].add(
            {
                "lost": lost,
                "known": known,
                "area": 1 - visible.double().mean(dim=(1, 2)),
                "change": colour_change(pixels / 255, _shown(outcome.inputs, network), outcome.source),
                "flipped": (after.argmax(dim=1) != best).double(),
                "drop": drop,
                "correct": _mixed((after.argmax(dim=1) == told).double(), after, outcome),
                "loss": _mixed_loss(after, told, outcome),
                "moved": (moved - vectors).norm(dim=1).double(),
                "seconds": torch.full((len(pixels),), outcome.seconds / len(pixels), dtype=torch.float64),
            },
            {"hidden": hidden, "known": known[owners], "image": owners + part[0], "kind": kinds},
        )
        if worst[number].num:
            for index in range(len(pixels)):
                if outcome.told[index] and worst[number].wants(
                    score := (round(float(lost[index]), 3), float(drop[index]))
                ):
                    shares = hidden[owners == index]
                    worst[number].add(
                        Picture(
                            score,
                            part[0] + index,
                            {
                                "image": pixels[index].clone(),  # not a view, which would keep its batch
                                "saliency": grey_map(heat[index]),
                                "plain": _uint8(_shown(outcome.inputs[index : index + 1], network))[0],
                                "objects": masks[owners == index].any(dim=0).to(torch.uint8),
                            },
                            {
                                "lost": float(lost[index]),
                                "hidden": float(shares.max()) if len(shares) else None,
                                "object": (
                                    sample.object_names[int(kinds[owners == index][shares.argmax()])]
                                    if len(shares)
                                    else None
                                ),
                                "label": int(told[index]),
                                "prediction": int(best[index]),
                                "after": int(after[index].argmax()),
                            },
                        )
                    )
    _add_keep_panels(trials, outcomes, worst, heat, network, part[0], features, device)


def _add_keep_panels(
    trials: Sequence[Trial],
    outcomes: Mapping[int, Outcome],
    worst: Sequence[_Worst],
    heat: Tensor,
    network: AuditedNetwork,
    start: int,
    features: _Features,
    device: torch.device,
) -> None:
    """Show beside each picture what the Keep version of the same draw did."""
    for number, trial in enumerate(trials):
        if not worst[number].num:
            continue
        twins = [
            outcomes[other]
            for other, candidate in enumerate(trials)
            if candidate.keep and candidate.value is None and candidate.augmentation is trial.augmentation
            if other in outcomes
        ]
        if not twins:
            continue
        outcome = twins[0]
        for picture in worst[number].sorted():
            index = picture.position - start
            if 0 <= index < len(heat) and "keep" not in picture.panels:
                visible = visible_pixels(outcome.source[index : index + 1], close=outcome.close)
                picture.panels["keep"] = _uint8(_shown(outcome.inputs[index : index + 1], network))[0]
                picture.facts["kept_lost"] = float(importance_lost(heat[index : index + 1], visible))
                logits, _ = features.of(outcome.inputs[index : index + 1].to(device))
                picture.facts["kept_after"] = int(logits[0].argmax())


def _shown(inputs: Tensor, network: AuditedNetwork) -> Tensor:
    """Normalised images in [0, 1] again."""
    std, mean = (torch.tensor(three).view(1, 3, 1, 1) for three in (network.std, network.mean))
    return (inputs * std + mean).clamp(0, 1)


def _uint8(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _mixed(correct: Tensor, logits: Tensor, outcome: Outcome) -> Tensor:
    """Right answers; of two mixed images, each label's with its weight."""
    if outcome.partner is None:
        return correct
    share = outcome.share.double()
    return share * correct + (1 - share) * (logits.argmax(dim=1) == outcome.partner).double()


def _mixed_loss(logits: Tensor, labels: Tensor, outcome: Outcome) -> Tensor:
    own = F.cross_entropy(logits, labels, reduction="none").double()
    if outcome.partner is None:
        return own
    share = outcome.share.double()
    return share * own + (1 - share) * F.cross_entropy(logits, outcome.partner, reduction="none").double()


def _check_labels(labels: Tensor | None, logits: Tensor) -> None:
    if labels is not None and int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"the network gives {logits.shape[1]} logits and the images have a class number "
            f"{int(labels.max())} (counted from 0): its classes do not fit the labels; give the network that "
            "was trained on them, or leave the labels aside (--no-labels)"
        )


class _Features:
    """Logits, and the input of the last linear layer (the logits where there is none)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._seen: Tensor | None = None

    def keep(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._seen = arguments[0].detach()

    def of(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self._seen = None
            logits = self.module(inputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the network must return logits (N, classes), got {got} for {len(inputs)} images"
            )
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("the network's values are not finite (NaN or infinite) for these images")
        vectors = logits if self._seen is None or len(self._seen) != len(inputs) else self._seen.flatten(1)
        return logits.float().cpu(), vectors.float().cpu()


@contextmanager
def _features(module: nn.Module) -> Iterator[_Features]:
    found = _Features(module)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    handle = layers[-1].register_forward_pre_hook(found.keep) if layers else None
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()
