"""Seeds of one run put together: mean, spread, number."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["IGNORED", "Group", "aggregate", "field_of", "formatted"]

# Settings that do not change what is measured.
IGNORED = (
    "seed",
    "SEED",
    "device",
    "num_workers",
    "root",
    "name",
    "log_every",
    "checkpoint_every",
    "OUTPUT_DIR",
    "pictures",
)


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

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
        """Whether it may stand beside a number of the paper: real data, the whole recipe."""
        return not (self.first["synthetic"] or self.first["shortened"])

    def values(self, metric: str) -> list[float]:
        """One value for each seed that has the metric."""
        return [result["metrics"][metric] for result in self.results if metric in result["metrics"]]

    def cell(self, metric: str) -> str:
        """Mean ± sample standard deviation (number of seeds); one seed without spread."""
        return formatted(self.values(metric))


def formatted(values: list[float]) -> str:
    """Of the values of several seeds."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f} (1 seed)"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)} seeds)"


def field_of(result: Mapping[str, Any], key: str) -> Any:
    """A value of a result: "kind", "dataset" (its name), "config.method", "extra.backbone_method" ..."""
    if key == "dataset":
        return result["dataset"]["name"]
    if key == "extra.backbone_method":
        backbone = result.get("extra", {}).get("backbone") or {}
        return backbone.get("provenance", {}).get("method")
    value: Any = result
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def aggregate(results: Iterable[dict[str, Any]]) -> list[Group]:
    """Group results whose settings, data and engine are the same but for the seed, in the order given."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        config = {key: value for key, value in result["config"].items() if key not in IGNORED}
        identity = [
            result["kind"],
            result["name"],
            result.get("engine"),
            result["synthetic"],
            result["shortened"],
            result["dataset"],
            field_of(result, "extra.backbone_method"),
            config
            if result["kind"] != "detection"
            else {**config, "MODEL": {**config.get("MODEL", {}), "WEIGHTS": ""}},
        ]
        groups.setdefault(json.dumps(identity, sort_keys=True, default=str), []).append(result)
    return [Group(sorted(members, key=lambda result: result["seed"])) for members in groups.values()]
