"""Seeds of one run put together: mean, spread, number."""

from __future__ import annotations

import collections
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone: same recipe, precision, data, engine and kind of starting network.

    Attributes:
        results: their result.json, by seed.
    """

    results: list[dict[str, Any]]

    @property
    def first(self) -> dict[str, Any]:
        """Any of them, for what they share."""
        return self.results[0]

    @property
    def comparable(self) -> bool:
        """Whether it may stand beside the paper: real data, whole training, in what it starts from too."""
        return _comparable(self.first)

    @property
    def repeated(self) -> list[str]:
        """Seeds that more than one run has; such runs are never averaged."""
        counts = collections.Counter(seed_of(result) for result in self.results)
        return [seed for seed, number in counts.items() if number > 1]

    @property
    def averaged(self) -> list[Group]:
        """What may stand as one number: the group, or each of its runs where a seed is repeated."""
        return [Group([result]) for result in self.results] if self.repeated else [self]

    def values(self, metric: str) -> list[float]:
        """One value for each run that has the metric; "seconds_per_epoch" is its time over its epochs."""
        if metric == "seconds_per_epoch":
            return [result["wall_time_s"] / result["config"]["epochs"] for result in self.results]
        return [result["metrics"][metric] for result in self.results if metric in result["metrics"]]

    def cell(self, metric: str) -> str:
        """Mean ± sample standard deviation (number of seeds); no spread of one; repeated seeds singly."""
        if self.repeated:
            each = " | ".join(f"{value:.1f}" for value in self.values(metric))
            return f"{each} (not averaged: more than one run of seed {', '.join(self.repeated)})"
        return formatted(self.values(metric))


def _comparable(run: Mapping[str, Any]) -> bool:
    if run.get("synthetic") or run.get("shortened"):
        return False
    origin = run.get("started_from")
    return not origin or _comparable(origin.get("provenance") or {})


def seed_of(result: Mapping[str, Any]) -> str:
    """The run's seed, and that of the run whose network it starts from."""
    below = ((result.get("started_from") or {}).get("provenance") or {}).get("seed")
    return str(result["seed"]) if below is None else f"{result['seed']} on {below}"


def formatted(values: list[float]) -> str:
    """Of the values of several seeds."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f} (1 seed)"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)} seeds)"


def sizes_of(dataset: Mapping[str, Any]) -> str:
    """`1200 train + 300 val`: the images of each split, those that were trained on first."""
    sizes = sorted(dataset.get("sizes", {}).items(), key=lambda one: one[0] != "train")
    return " + ".join(f"{number} {split}" for split, number in sizes)


def field_of(result: Mapping[str, Any], key: str) -> Any:
    """A value of a result: "kind", "dataset" (its name), "config.method", "backbone_method" ..."""
    if key == "dataset":
        return result["dataset"]["name"]
    if key == "backbone_method":
        provenance = (result.get("started_from") or {}).get("provenance") or {}
        return provenance.get("recipe", provenance).get("method")
    value: Any = result
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def built_on(started_from: Mapping[str, Any] | None) -> Any:
    """What a starting network is: the recipe and the data of its run; a foreign file is its contents."""
    if not started_from:
        return None
    run = started_from.get("provenance") or {}
    return _identity(run) if "recipe" in run else started_from.get("sha256")


def _identity(run: Mapping[str, Any]) -> list[Any]:
    keys = ("kind", "engine", "synthetic", "shortened", "dataset", "recipe", "precision")
    return [*(run.get(key) for key in keys), built_on(run.get("started_from"))]


def machine(result: Mapping[str, Any]) -> str:
    """What a run ran on: "CPU", "8 x NVIDIA H100"."""
    hardware = result["hardware"]
    gpus, processes = hardware["gpus"], hardware.get("processes")
    on_gpu = str(hardware["device"]).startswith("cuda") if "device" in hardware else bool(gpus)
    if on_gpu and gpus:
        return f"{processes or len(gpus)} x {gpus[0]}"
    return f"CPU, {processes} processes" if processes and processes > 1 else "CPU"


def origin_name(started_from: Mapping[str, Any] | None) -> str:
    """What a run starts from, for a reader: its run's method and network, or file and start of checksum."""
    if not started_from:
        return "random weights"
    run = started_from.get("provenance") or {}
    if "recipe" in run:
        marks = [word for word in ("synthetic", "shortened") if run.get(word)]
        said = {"synthetic": "drawn data", "shortened": "shortened"}
        name = f"{run['recipe'].get('method', run['kind'])} ({run['recipe'].get('arch', run.get('name'))}"
        return ", ".join([name, *(said[mark] for mark in marks)]) + ")"
    name = started_from.get("file") or started_from.get("source") or "a file"
    return f"{name} ({str(started_from.get('sha256'))[:8]})"


def aggregate(results: Iterable[dict[str, Any]]) -> list[Group]:
    """Group results that are runs of one thing, in the order given."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        key = json.dumps([result["schema"], *_identity(result)], sort_keys=True, default=str)
        groups.setdefault(key, []).append(result)
    return [Group(sorted(members, key=lambda result: result["seed"])) for members in groups.values()]
