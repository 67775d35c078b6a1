"""The audit: opens network and images, runs the trials not known yet, assembles table, advice and page."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import io
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepaug.audit.advice import advise, headline, warnings
from keepaug.audit.augmentations import Augmentation, foreign_augmentation, parse_augmentation
from keepaug.audit.choices import BOUND, MEASURES, PERCENT, check_limits
from keepaug.audit.images import Sample, Source, open_source
from keepaug.audit.networks import AuditedNetwork, open_network, wrap_network
from keepaug.audit.table import clean_figures, differences, recommended, row_of, sweep_points
from keepaug.audit.trials import Picture, Trial, rehearse_trials, run_trials
from keepaug.runs.cache import cache_file, keep_checked, read_checked
from keepaug.runs.distributed import choose_device
from keepaug.runs.files import write_json_atomic, write_text_atomic
from keepaug.runs.rehearsal import facts

TAUS = (0.2, 0.4, 0.6, 0.8)
NUM_WORST = 24
_CACHE_VERSION = 3
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "timm", "albumentations", "kornia")
Columns = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        content: what `audit.json` holds.
        pictures: the worst images, by augmentation.
    """

    content: dict[str, Any]
    pictures: list[tuple[str, list[Picture]]] = field(repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One per augmentation and Keep or not."""
        return list(self.content["rows"])

    @property
    def sentence(self) -> str:
        """The finding in a sentence."""
        return str(self.content["sentence"])

    def failures(self, limits: Mapping[str, float]) -> list[str]:
        """What exceeds the limits, as sentences: of the rows that were named (Keep for keep_ names).

        Args:
            limits: measure to the largest mean allowed; shares in percent.

        Raises:
            ValueError: no measure to limit, or one that could not be measured here.
        """
        check_limits(limits)
        found = []
        for measure, limit in limits.items():
            scale, unit = (100.0, " %") if measure in PERCENT else (1.0, "")
            for row in self.rows:
                if not row["named"]:
                    continue
                if row[measure] is None:
                    raise ValueError(
                        f"{measure} of {row['augmentation']} could not be measured on these images"
                        + (": no objects are known, give boxes" if measure == "destroyed" else "")
                    )
                value = scale * row[measure]["mean"]
                if value > limit:
                    found.append(f"{row['title']}: {measure} is {value:.1f}{unit}, allowed {limit:g}{unit}")
        return found

    def table(self) -> str:
        """The rows as text, a few of the measures."""
        measures = ("importance_lost", "destroyed", "fidelity", "flipped")
        names = [name for name in measures if any(row[name] is not None for row in self.rows)]
        lines = [f"{'':44}" + "".join(f"{name:>26}" for name in names)]
        for row in self.rows:
            cells = []
            for name in names:
                text = "-"
                if row[name] is not None:
                    mean, low, high = (100 * row[name][part] for part in ("mean", "low", "high"))
                    text = f"{mean:.1f} % ({low:.1f}-{high:.1f})"
                cells.append(f"{text:>26}")
            name = row["augmentation"] + (", Keep" if row["keep"] else "")
            lines.append(f"{name:44}" + "".join(cells))
        return "\n".join(lines)

    def save(self, output: str | Path) -> Path:
        """Write `audit.json` and `audit.html`.

        Returns:
            The page.

        Raises:
            ImportError: jinja2 is missing.
        """
        from keepaug.audit.page import render  # inside: needs jinja2

        page = render(self.content, self.pictures)
        write_json_atomic(Path(output) / "audit.json", self.content)
        return write_text_atomic(Path(output) / "audit.html", page)


def audit(
    network: str | Path | nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    augmentations: Sequence[str | Callable[[Any], Any]],
    *,
    weights: str | Path | None = None,
    boxes: str | Path | None = None,
    output: str | Path | None = None,
    images: int = 2000,
    sweep: int = 200,
    tau: float = 0.6,
    bound: float = BOUND,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    use_labels: bool = True,
    split: str | None = None,
    device: str | torch.device = "cpu",
    cache: bool = False,
    quiet: bool = False,
    limits: Mapping[str, float] | None = None,
) -> Audit:
    """Measure what augmentations take from images, and what a network makes of it, plain beside Keep.

    Args:
        network: what `keepaug.audit.networks.open_network` takes, or a network, or any differentiable
            function from normalised images to logits.
        data: what `keepaug.audit.images.open_source` takes.
        augmentations: names with settings (`cutout:24`, `keep_cutout:24`, `rand_augment:2,9`),
            `module:object`, or transforms of single images.
        weights: for `torchvision:NAME` and `timm:NAME`.
        boxes: COCO's JSON, whose boxes or masks are the known objects.
        output: folder for `audit.json` and `audit.html`; None writes nothing.
        images: sampled from the data.
        sweep: images on which strengths and tau are swept; 0 for no sweep.
        tau: quantile of the Keep versions.
        bound: least fidelity of a recommended setting.
        seed: of the sample, the draws and the bootstrap.
        mean: of the normalisation, where the network does not say it.
        std: of the normalisation, likewise.
        size: side of the network's images in pixels, likewise; None: as the images are.
        classes: names in the order of the logits, where the network does not say them.
        use_labels: False takes the network's own answers on the clean images for right.
        split: folder of the data; None: the first of val, test, train.
        device: where the network runs: cpu, cuda, cuda:N, or auto.
        cache: keep results by network, data and augmentation in `$KEEPAUG_CACHE`, and use those kept.
        quiet: no progress bar.
        limits: what `Audit.failures` will be asked; refused before anything is measured.

    Returns:
        Rows, sentence, page.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything that does not fit, in a sentence.
        ImportError: a library that is needed and missing.

    Example:
        >>> result = audit(model, (pixels, labels), ["cutout:16"], mean=(0.5,) * 3, std=(0.2,) * 3)
        >>> lost = result.rows[0]["importance_lost"]["mean"]
    """
    plan = _plan(
        network,
        data,
        augmentations,
        weights=weights,
        boxes=boxes,
        images=images,
        sweep=sweep,
        tau=tau,
        bound=bound,
        seed=seed,
        mean=mean,
        std=std,
        size=size,
        classes=classes,
        use_labels=use_labels,
        split=split,
        device=device,
        cache=cache,
        limits=limits or {},
    )
    clean, found, pictures = _measured(plan, quiet=quiet)
    content = _content(plan, clean, found, tau=tau, bound=bound)
    titles = [own[0].augmentation.title() for own in plan.trials]
    result = Audit(content, list(zip(titles, pictures, strict=True)))
    if output is not None:
        result.save(output)
    return result


def rehearse_audit(network: str | Path, data: str, augmentations: Sequence[str], **settings: Any) -> str:
    """What the audit would look at and take, from a few steps of it; nothing is written.

    Args:
        network: as of `audit`.
        data: as of `audit`.
        augmentations: as of `audit`.
        settings: the others of `audit`, all of them but `output`, `classes` and `quiet`.

    Raises:
        ValueError: what `audit` raises before it measures.
    """
    plan = _plan(network, data, augmentations, classes=None, **settings)
    known = plan.known()
    left = [one for number, own in enumerate(plan.trials) if number not in known for one in own]
    source, names, (height, width) = plan.sample.source, plan.classes, plan.sample.shape
    told = [
        "class labels" if source.labels is not None else "no labels",
        "known objects" if source.objects is not None else "no objects",
    ]
    said = facts(
        network=f"{plan.network.name}, {f'{len(names)} classes' if names else 'classes without names'}",
        data=f"{source.name}: {len(plan.sample):,} of {len(source):,} images, {height} x {width}, "
        f"{' and '.join(told)}",
        trials=f"{len(left)}, strengths and Keep versions of {len(plan.trials) - len(known)} augmentations; "
        f"{len(known)} are known from earlier audits",
    )
    if not left and plan.clean() is not None:
        return f"{said}\nall is known: only the page would be written"
    found = rehearse_trials(plan.network, plan.sample, left, seed=plan.seed, device=plan.device)
    return f"{said}\n{found.lines()}"


@dataclass(frozen=True)
class _Plan:
    """What an audit does.

    Attributes:
        network: that is audited.
        sample: of images.
        trials: of each augmentation, see `_trials_of`.
        classes: names in the order of the logits, where anybody says them.
        seed: of the draws.
        device: where the network runs.
        cache: keep and use results.
    """

    network: AuditedNetwork
    sample: Sample
    trials: list[list[Trial]]
    classes: list[str] | None
    seed: int
    device: torch.device
    cache: bool

    @property
    def num_worst(self) -> int:
        """Pictures of each augmentation."""
        return -(-NUM_WORST // len(self.trials))

    @property
    def key(self) -> _Key:
        """Of what is kept."""
        return _Key(self.network, self.sample, self.seed, self.cache)

    def known(self) -> dict[int, Any]:
        """What is kept of augmentations, by their numbers."""
        files = [self.key.of(own, self.num_worst) for own in self.trials]
        return {number: found for number, file in enumerate(files) if (found := _load(file)) is not None}

    def clean(self) -> Any:
        """What is kept of the clean images, or None."""
        return _load(self.key.file("clean"))


def _plan(
    network: str | Path | nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    augmentations: Sequence[str | Callable[[Any], Any]],
    *,
    weights: str | Path | None,
    boxes: str | Path | None,
    images: int,
    sweep: int,
    tau: float,
    bound: float,
    seed: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: int | None,
    classes: Sequence[str] | None,
    use_labels: bool,
    split: str | None,
    device: str | torch.device,
    cache: bool,
    limits: Mapping[str, float],
) -> _Plan:
    """Check the arguments of `audit`, and open network and images."""
    if not 0 <= tau <= 1 or not 0 < bound <= 1:
        raise ValueError(f"tau must be in [0, 1] and bound in (0, 1], got {tau} and {bound}")
    if not augmentations:
        raise ValueError("name at least one augmentation, for example cutout:24")
    check_limits(limits)
    if sweep < 0:
        raise ValueError(f"sweep is a number of images, 0 for no sweep, got {sweep}")
    device = choose_device(str(device))
    if isinstance(network, str | Path):
        opened = open_network(network, weights=weights, mean=mean, std=std, size=size)
    else:
        opened = wrap_network(network, mean=mean, std=std, size=size, classes=classes)
    source = open_source(data, boxes=boxes, use_labels=use_labels, split=split)
    if "destroyed" in limits and source.objects is None:
        raise ValueError(f"destroyed has a limit, but no objects are known in {source.name}: give boxes")
    names = list(classes) if classes else opened.classes
    source = _matched_classes(source, names)
    sample = Sample(source, images, opened.size, seed)
    side = min(sample.shape)
    named = [
        parse_augmentation(one, side)
        if isinstance(one, str)
        else foreign_augmentation(one, getattr(one, "__name__", type(one).__name__), side)
        for one in augmentations
    ]
    if len({one.spec for one in named}) < len(named):
        raise ValueError(f"an augmentation is named twice: {', '.join(one.spec for one in named)}")
    trials = [_trials_of(one, len(sample), min(sweep, len(sample)), tau, side) for one in named]
    return _Plan(opened, sample, trials, names or source.classes, seed, device, cache)


def _matched_classes(source: Source, names: list[str] | None) -> Source:
    """The labels by the network's numbering, where both have names.

    Raises:
        ValueError: classes that the network does not have.
    """
    if source.labels is None or source.classes is None or names is None or source.classes == names:
        return source
    if not (missing := [name for name in source.classes if name not in names]):
        order = [names.index(name) for name in source.classes]
        return replace(source, labels=[order[label] for label in source.labels], classes=names)
    raise ValueError(
        f"the network's {len(names)} classes ({', '.join(names[:3])} ...) do not fit the "
        f"{len(source.classes)} of the images: it does not have {', '.join(missing[:3])}"
        f"{' ...' if len(missing) > 3 else ''}; give the network that was trained on them, or leave the "
        "labels aside (--no-labels)"
    )


def _trials_of(augmentation: Augmentation, images: int, sweep: int, tau: float, side: int) -> list[Trial]:
    """Plain, Keep, then the sweep: strengths plain and Keep, and tau at the named strength."""
    trials = [Trial(augmentation, False, tau, images)]
    if augmentation.has_keep:
        trials.append(Trial(augmentation, True, tau, images))
    if not sweep:
        return trials
    strengths = augmentation.stronger(side)
    for keep in (False, True) if augmentation.has_keep else (False,):
        trials += [Trial(stronger, keep, tau, sweep, value) for value, stronger in strengths]
    if augmentation.has_keep and strengths:
        value = augmentation.settings[augmentation.strength_name]
        trials += [Trial(augmentation, True, other, sweep, value) for other in TAUS if other != tau]
    return trials


@dataclass(frozen=True)
class _Key:
    """Names of cached results: by network, data and augmentation."""

    network: AuditedNetwork
    sample: Sample
    seed: int
    wanted: bool

    def file(self, *parts: Any) -> Path | None:
        if not self.wanted or self.network.identity is None or any(part is None for part in parts):
            return None
        network = [self.network.identity, self.network.mean, self.network.std, self.network.size]
        told = self.sample.source.labels is not None
        sample = [self.sample.checksum, told, self.seed, len(self.sample)]
        whole = [_CACHE_VERSION, torch.__version__, network, *sample, *parts]
        return cache_file("audit", json.dumps(whole, default=str), suffix=".pt")

    def of(self, trials: Sequence[Trial], num_worst: int) -> Path | None:
        augmentation = trials[0].augmentation
        identity: str | None = "ours"
        if augmentation.kind is None and augmentation.foreign is not None:
            identity = _code_checksum(augmentation.spec, augmentation.foreign.transform)
        described = [[t.augmentation.settings, t.keep, t.tau, t.limit, str(t.value)] for t in trials]
        return self.file(augmentation.kind or augmentation.spec, described, num_worst, identity)


def _code_checksum(spec: str, transform: Any) -> str | None:
    """Of the module that `module:object` names; None for an object, whose code may be anywhere."""
    if ":" not in spec:
        return None
    import sys

    module = sys.modules.get(spec.partition(":")[0].removesuffix(".py").replace("/", "."))
    try:
        text = inspect.getsource(module) if module is not None else None
    except (OSError, TypeError):
        return None
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _measured(plan: _Plan, *, quiet: bool) -> tuple[Columns, list[list[Columns]], list[list[Picture]]]:
    """Columns of the clean images and of each augmentation's trials, kept or measured."""
    sample, trials, known, clean = plan.sample, plan.trials, plan.known(), plan.clean()
    if clean is None or len(known) < len(trials):
        todo = [number for number in range(len(trials)) if number not in known]
        flat = [trial for number in todo for trial in trials[number]]
        clean, columns, worst = run_trials(
            plan.network,
            sample,
            flat,
            seed=plan.seed,
            num_worst=plan.num_worst,
            device=plan.device,
            quiet=quiet,
        )
        clean["counts"] = {
            "objects": torch.tensor(sample.num_objects),
            "left_out": torch.tensor(sample.num_left_out),
        }
        _store(plan.key.file("clean"), clean | {"names": sample.object_names})
        clean["names"] = sample.object_names  # type: ignore[assignment]
        for number in todo:
            count = len(trials[number])
            own, columns = columns[:count], columns[count:]
            pictures, worst = worst[0], worst[count:]
            known[number] = {"columns": own, "pictures": [vars(picture) for picture in pictures]}
            _store(plan.key.of(trials[number], plan.num_worst), known[number])
    pictures_of = [[Picture(**entry) for entry in known[number]["pictures"]] for number in range(len(trials))]
    return clean, [known[number]["columns"] for number in range(len(trials))], pictures_of


def _load(file: Path | None) -> Any:
    if file is None:
        return None
    content = read_checked(file)
    return content and torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _store(file: Path | None, content: Any) -> None:
    if file is not None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        keep_checked(file, buffer.getvalue())


def _content(
    plan: _Plan, clean: Any, found: Sequence[Sequence[Columns]], *, tau: float, bound: float
) -> dict[str, Any]:
    network, sample, classes, seed = plan.network, plan.sample, plan.classes, plan.seed
    labelled = sample.source.labels is not None
    names = list(clean["names"])
    rows, sweeps = [], []
    for own, columns in zip(plan.trials, found, strict=True):
        paired = list(zip(own, columns, strict=True))
        rows += [
            row_of(trial, clean, table, seed=seed, classes=classes, object_names=names)
            for trial, table in paired
            if trial.value is None
        ]
        if own[0].augmentation.has_keep:
            rows[-1] |= differences(clean, columns[0], columns[1], seed=seed)
        if swept := [(trial, table) for trial, table in paired if trial.value is not None]:
            sweeps.append(
                {
                    "augmentation": own[0].augmentation.spec,
                    "title": own[0].augmentation.title(),
                    "keep_title": own[0].augmentation.title(True) if own[0].augmentation.has_keep else None,
                    "setting": own[0].augmentation.strength_name,
                    "named": own[0].augmentation.settings[own[0].augmentation.strength_name],
                    "images": swept[0][0].limit,
                    "points": sweep_points(clean, swept, seed=seed),
                    "recommended": recommended(clean, swept, keep=False, tau=tau, bound=bound, seed=seed),
                    "recommended_keep": recommended(clean, swept, keep=True, tau=tau, bound=bound, seed=seed),
                }
            )
    figures = clean_figures(clean, seed=seed, labelled=labelled)
    counts = (int(clean["counts"]["left_out"]), int(clean["counts"]["objects"]))
    said = warnings(figures, rows, left_out=counts, labelled=labelled)
    return {
        "sentence": headline(rows),
        "warnings": said,
        "advice": advise(rows, sweeps, bound),
        "rows": rows,
        "sweeps": sweeps,
        "network": {
            "name": network.name,
            "identity": network.identity,
            "mean": list(network.mean),
            "std": list(network.std),
            "size": network.size,
            **figures,
        },
        "data": {
            "name": sample.source.name,
            "images": len(sample),
            "of": len(sample.source),
            "shape": list(sample.shape),
            "labels": labelled,
            "classes": list(classes) if classes else None,
            "objects": counts[1] - counts[0],
            "checksum": sample.checksum,
        },
        "tau": tau,
        "bound": bound,
        "seed": seed,
        "measures": MEASURES,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("keepaug", *_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
