"""The augmentations that can be audited: ours by name with settings, and anybody's as module:object.

Each draws for a batch, plain or in its Keep version from the same random numbers, and tells with the result
which pixel of the original each pixel shows. All of ours stand in one table, `KINDS`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import keepaug
from keepaug.audit.choices import SETTINGS, check_name, paste_side
from keepaug.audit.foreign import Foreign, load_object
from keepaug.audit.measures import identity_source
from keepaug.audit.probes import probe_images, read_sources
from keepaug.baselines import CutMix, Cutout, GridMask, Mixup, RandomErasing
from keepaug.baselines.grid_mask import grid_mask
from keepaug.data.batch_transforms import normalize
from keepaug.keep import KeepCutMix, KeepCutout, KeepPaste, KeepRandomErasing
from keepaug.policies import BatchPolicy, aug_mix, auto_augment, rand_augment
from keepaug.regions import region_mask


class Batch(NamedTuple):
    """What an augmentation gets.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        labels: (N,) int64; the network's own predictions where the images have none.
        saliency: (N, H, W) float32.
        mean: of the network's normalisation, RGB in [0, 1].
        std: of it.
        views: the transformed images, which Keep versions paste on; filled when first wanted.
    """

    pixels: Tensor
    labels: Tensor
    saliency: Tensor
    mean: Sequence[float]
    std: Sequence[float]
    views: dict[str, _Views]

    @property
    def inputs(self) -> Tensor:
        """(N, 3, H, W) normalised."""
        return normalize(self.pixels, self.mean, self.std)


class Outcome(NamedTuple):
    """What an augmentation gave.

    Attributes:
        inputs: (N, 3, H, W) normalised.
        source: (N, H, W) int64 source map, see `keepaug.audit.measures`.
        told: (N,) bool, where the source map can be believed.
        close: the map was read off coded images and may have gaps.
        partner: (N,) int64 classes mixed in, or None.
        share: (N,) float, the weight of the image's own label.
        seconds: what the augmentation itself took, without telling where pixels went.
    """

    inputs: Tensor
    source: Tensor
    told: Tensor
    close: bool
    partner: Tensor | None
    share: Tensor
    seconds: float


Settings = Mapping[str, Any]
Draw = Callable[["Augmentation", Batch, bool, float, torch.Generator], Outcome]


@dataclass(frozen=True)
class Kind:
    """One of our augmentations.

    Attributes:
        title: in a sentence, `{name}` of the settings replaced.
        keep: name of the Keep version, or None where there is none.
        defaults: settings for images of a side, in the order in which they may be given without names.
        draw: for a batch.
        build: the object that a user's code would call, plain or Keep.
        call: how the user's code calls it.
        code: how it is built, where that is not its `repr`.
        strength: the setting that makes it stronger, and its values for images of a side, rising in strength.
    """

    title: str
    keep: str | None
    defaults: Callable[[int], dict[str, Any]]
    draw: Draw
    build: Callable[[Settings, bool, float], Any]
    call: str = "images = augment(images, heat)"
    code: str = ""
    strength: tuple[str, Callable[[int], list[Any]]] | None = None


@dataclass(frozen=True)
class Augmentation:
    """An augmentation with its settings.

    Attributes:
        spec: as it was named, without "keep_".
        kind: its name in `KINDS`, or None for somebody's own.
        settings: all of them.
        named_keep: it was named as its Keep version.
        foreign: somebody's own transform.
    """

    spec: str
    kind: str | None
    settings: dict[str, Any]
    named_keep: bool = False
    foreign: Foreign | None = None

    @functools.cached_property
    def transform(self) -> Foreign | BatchPolicy:
        """What changes the image as a whole, for those whose Keep version pastes back."""
        if self.foreign is not None or self.kind is None:
            assert self.foreign is not None
            return self.foreign
        built = KINDS[self.kind].build(self.settings, False, 0.0)
        return built if isinstance(built, BatchPolicy) else Foreign(built, self.spec)

    @property
    def has_keep(self) -> bool:
        """Whether there is a Keep version."""
        return self.kind is None or KINDS[self.kind].keep is not None

    @property
    def strength_name(self) -> str:
        """The setting that a sweep changes; empty where there is none."""
        strength = None if self.kind is None else KINDS[self.kind].strength
        return "" if strength is None else strength[0]

    def title(self, keep: bool = False) -> str:
        """As a sentence would name it."""
        if self.kind is None:
            return f"{self.spec} with pasting back" if keep else self.spec
        kind = KINDS[self.kind]
        where = self.settings.get("placement", "matched")
        named = str(kind.keep) if keep else kind.title.format(**self.settings)
        return named if where == "matched" else f"{named} ({where})"

    def draw(self, batch: Batch, *, keep: bool, tau: float, generator: torch.Generator) -> Outcome:
        """The augmented batch."""
        draw = _pasted if self.kind is None else KINDS[self.kind].draw
        return draw(self, batch, keep, tau, generator)

    def code(self, keep: bool, tau: float) -> str:
        """Lines to copy."""
        if self.kind is None and not keep:
            return f"# {self.spec}, as it is"
        if self.kind is None or (keep and KINDS[self.kind].draw is _pasted):
            augment = repr(KeepPaste(self.settings["paste"], tau))
            call = "images = augment(images, strong, heat)  # strong: the augmented view of the same images"
        else:
            kind = KINDS[self.kind]
            augment, call = kind.code.format(**self.settings), kind.call
            if not augment:
                augment = repr(kind.build(self.settings, keep, tau))
            if not keep:
                call = call.replace(", heat", "")
        names = {name for name in re.findall(r"\w+(?=\()", augment) if name in keepaug.__all__}
        names |= {"saliency_map"} if keep else set()
        heat = ["heat = saliency_map(model, images, labels, scale=0.5)"] if keep else []
        imports = f"from keepaug import {', '.join(sorted(names))}"
        return "\n".join([imports, f"augment = {augment}", *heat, call])

    def stronger(self, side: int) -> list[tuple[Any, Augmentation]]:
        """The sweep: strengths with the augmentation at each, rising."""
        if self.kind is None or (strength := KINDS[self.kind].strength) is None:
            return []
        key, values = strength
        changed = [{**self.settings, key: value} for value in values(side)]
        return [(settings[key], dataclasses.replace(self, settings=settings)) for settings in changed]


def _outcome(
    batch: Batch,
    inputs: Tensor,
    hidden: Tensor,
    seconds: float,
    *,
    partner: Tensor | None = None,
    share: Tensor | None = None,
) -> Outcome:
    """Of an augmentation that leaves every pixel in its place or hides it."""
    num, height, width = hidden.shape
    source = torch.where(hidden, -1, identity_source(num, height, width))
    everything = torch.ones(num)
    share = everything if share is None else share
    return Outcome(inputs, source, everything.bool(), False, partner, share, seconds)


def _cut(
    augmentation: Augmentation, batch: Batch, keep: bool, tau: float, generator: torch.Generator
) -> Outcome:
    augment = KINDS[str(augmentation.kind)].build(augmentation.settings, keep, tau)
    inputs, heat = batch.inputs, batch.saliency if keep else None
    started = time.perf_counter()
    regions = augment.sample(inputs, heat, generator=generator)
    result = augment(inputs, heat, regions=regions, generator=generator)
    seconds = time.perf_counter() - started
    return _outcome(batch, result, region_mask(regions, (inputs.shape[2], inputs.shape[3])), seconds)


def _mix(
    augmentation: Augmentation, batch: Batch, keep: bool, tau: float, generator: torch.Generator
) -> Outcome:
    augment = KINDS[str(augmentation.kind)].build(augmentation.settings, keep, tau)
    inputs, heat = batch.inputs, batch.saliency if keep else None
    started = time.perf_counter()
    permutation = torch.randperm(len(inputs), generator=generator)
    if isinstance(augment, Mixup):
        mixed, labels = augment(inputs, batch.labels, permutation=permutation, generator=generator)
        hidden = torch.zeros(len(inputs), *inputs.shape[2:], dtype=torch.bool)
    else:
        regions = augment.sample(inputs, heat, generator=generator)
        mixed, labels = augment(inputs, batch.labels, heat, regions=regions, permutation=permutation)
        hidden = region_mask(regions, (inputs.shape[2], inputs.shape[3]))
    seconds = time.perf_counter() - started
    return _outcome(batch, mixed, hidden, seconds, partner=labels.labels_b, share=labels.lam)


def _grid(
    augmentation: Augmentation, batch: Batch, keep: bool, tau: float, generator: torch.Generator
) -> Outcome:
    augment = KINDS["grid_mask"].build(augmentation.settings, keep, tau)
    inputs = batch.inputs
    started = time.perf_counter()
    grids = augment.sample(len(inputs), generator=generator)
    result = augment(inputs, grids=grids)
    seconds = time.perf_counter() - started
    return _outcome(batch, result, grid_mask(grids, (inputs.shape[2], inputs.shape[3])), seconds)


def _pasted(
    augmentation: Augmentation, batch: Batch, keep: bool, tau: float, generator: torch.Generator
) -> Outcome:
    """A transform of uint8 images, whose Keep version pastes an important region of the clean image back."""
    num, _, height, width = batch.pixels.shape
    seeds = torch.randint(2**42, (num,), generator=generator)
    key = repr((augmentation.kind, augmentation.settings))
    if key not in batch.views:
        batch.views[key] = _transformed(augmentation, batch.pixels, seeds)
    strong, source, told, seconds = batch.views[key]
    result = normalize(strong, batch.mean, batch.std)
    if keep:
        clean = batch.inputs
        started = time.perf_counter()
        paste = KeepPaste(augmentation.settings["paste"], tau)
        regions = paste.sample(clean, batch.saliency, generator=generator)
        result = paste(clean, result, regions=regions)
        seconds += time.perf_counter() - started
        inside = region_mask(regions, (height, width))
        source = torch.where(inside, identity_source(num, height, width), source)
    return Outcome(result, source, told, True, None, torch.ones(num), seconds)


class _Views(NamedTuple):
    """A whole batch transformed: images (N, 3, H, W) uint8, source map, where it can be believed, seconds."""

    strong: Tensor
    source: Tensor
    told: Tensor
    seconds: float


def _transformed(augmentation: Augmentation, pixels: Tensor, seeds: Tensor) -> _Views:
    num, _, height, width = pixels.shape
    transform = augmentation.transform
    if isinstance(transform, BatchPolicy):
        started = time.perf_counter()
        strong = transform(pixels, seeds)
        seconds = time.perf_counter() - started
        return _Views(strong, transform.sources((height, width), seeds), torch.ones(num).bool(), seconds)
    codes = probe_images(height, width)
    if augmentation.kind == "aug_mix":  # blends several views of the image: a pixel shows no single other
        codes = codes[:0]
    images, answers, seconds = [], [], 0.0
    for image, seed in zip(pixels, seeds.tolist(), strict=True):
        started = time.perf_counter()
        results = transform(torch.cat([image[None], codes]), seed)
        seconds += (time.perf_counter() - started) / len(results)
        images.append(results[0])
        answers.append(results[1:])
    strong = torch.stack(images)
    if not len(codes) or not transform.repeats(pixels[:1], int(seeds[0])):
        return _Views(strong, identity_source(num, height, width), torch.zeros(num).bool(), seconds)
    source, believed = read_sources(torch.stack(answers))
    return _Views(strong, source, believed, seconds)


def _paste_or(plain: Callable[[Settings], Any]) -> Callable[[Settings, bool, float], Any]:
    return lambda own, keep, tau: KeepPaste(own["paste"], tau) if keep else plain(own)


_POLICY_CALL = "images = augment(images, torch.randint(2**42, (len(images),)))  # uint8 images"
KINDS: dict[str, Kind] = {
    "cutout": Kind(
        "Cutout of {size} pixels",
        "KeepCutout",
        SETTINGS["cutout"],
        _cut,
        lambda settings, keep, tau: (
            KeepCutout(settings["size"], settings["placement"], tau=tau)
            if keep
            else Cutout(settings["size"], settings["placement"])
        ),
        strength=("size", lambda side: [round(side * part / 8) for part in (2, 3, 4, 5, 6)]),
    ),
    "random_erasing": Kind(
        "random erasing",
        "KeepRandomErasing",
        SETTINGS["random_erasing"],
        _cut,
        lambda settings, keep, tau: (
            KeepRandomErasing(settings["p"], (settings["area_low"], settings["area_high"]), tau=tau)
            if keep
            else RandomErasing(settings["p"], (settings["area_low"], settings["area_high"]))
        ),
        strength=("area_high", lambda side: [0.1, 0.2, 0.3, 0.4, 0.6]),
    ),
    "cutmix": Kind(
        "CutMix",
        "KeepCutMix",
        SETTINGS["cutmix"],
        _mix,
        lambda settings, keep, tau: (
            KeepCutMix(settings["alpha"], placement=settings["placement"], tau=tau)
            if keep
            else CutMix(settings["alpha"], placement=settings["placement"])
        ),
        call="images, mixed = augment(images, labels, heat)",
    ),
    "mixup": Kind(
        "mixup",
        None,
        SETTINGS["mixup"],
        _mix,
        lambda settings, keep, tau: Mixup(settings["alpha"]),
        call="images, mixed = augment(images, labels)",
    ),
    "grid_mask": Kind(
        "GridMask",
        None,
        SETTINGS["grid_mask"],
        _grid,
        lambda own, keep, tau: GridMask((own["unit_low"], own["unit_high"]), own["ratio"]),
        call="images = augment(images)",
        strength=("ratio", lambda side: [0.8, 0.7, 0.6, 0.5, 0.4]),
    ),
    "rand_augment": Kind(
        "RandAugment of {num_ops} operations of magnitude {magnitude}",
        "KeepRandAugment",
        SETTINGS["rand_augment"],
        _pasted,
        _paste_or(lambda own: BatchPolicy(rand_augment(own["num_ops"], own["magnitude"]))),
        call=_POLICY_CALL,
        code="BatchPolicy(rand_augment({num_ops}, {magnitude}))",
        strength=("magnitude", lambda side: [3, 9, 15, 21, 27]),
    ),
    "auto_augment": Kind(
        "AutoAugment",
        "KeepAutoAugment",
        SETTINGS["auto_augment"],
        _pasted,
        _paste_or(lambda own: BatchPolicy(auto_augment(own["policy"]))),
        call=_POLICY_CALL,
        code="BatchPolicy(auto_augment('{policy}'))",
    ),
    "aug_mix": Kind(
        "AugMix of severity {severity}",
        "KeepAugMix",
        SETTINGS["aug_mix"],
        _pasted,
        _paste_or(lambda own: aug_mix(own["severity"])),
        call="image = augment(image)  # image by image",
        code="aug_mix({severity})",
        strength=("severity", lambda side: [1, 3, 5, 7, 10]),
    ),
}


def parse_augmentation(spec: str, side: int) -> Augmentation:
    """`cutout:24`, `keep_cutout:size=24`, `rand_augment:2,9`, `my_transforms:train_transform`.

    Args:
        spec: a name of `KINDS`, also with keep_, and settings in order or as key=value; or module:object.
        side: of the images in pixels, on which some defaults depend.

    Raises:
        ValueError: an unknown name, setting or value.
    """
    plain, (name, _, given) = check_name(spec), spec.partition(":")
    if plain is None:
        return foreign_augmentation(load_object(spec), spec, side)
    named_keep, kind = name != plain, KINDS[plain]
    settings = kind.defaults(side)
    names = list(settings)
    for number, part in enumerate(item for item in given.split(",") if item):
        key, equals, value = part.partition("=")
        if not equals:
            if number >= len(names):
                raise ValueError(
                    f"{spec}: {plain} takes {len(names)} settings ({', '.join(names)}), got more"
                )
            key, value = names[number], part
        if key not in settings:
            raise ValueError(f"{spec}: {plain} has no setting {key!r}; it has {', '.join(names)}")
        settings[key] = _converted(spec, key, value, settings[key])
    augmentation = Augmentation(f"{plain}:{given}" if given else plain, plain, settings, named_keep)
    try:
        kind.build(settings, kind.keep is not None, 0.6)
        kind.build(settings, False, 0.6)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    for key in ("size", "paste"):
        if settings.get(key, 1) > side or settings.get(key, 1) < 1:
            got = f"{settings[key]} and the images have a side of {side} pixels"
            raise ValueError(f"{spec}: {key} is {got}; give 1 to {side}")
    return augmentation


def foreign_augmentation(transform: Any, name: str, side: int) -> Augmentation:
    """Somebody's own transform."""
    settings = {"transform": name, "paste": paste_side(side)}
    return Augmentation(name, None, settings, foreign=Foreign(transform, name))


def _converted(spec: str, key: str, value: str, default: Any) -> Any:
    if isinstance(default, str):
        return value
    try:
        return type(default)(value)
    except ValueError as error:
        wanted = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"{spec}: {key} must be {wanted}, got {value!r}") from error
