"""`result.json`: what a run measured, on what, with what; the only thing the report reads."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keepaug.runs.files import write_json_atomic
from keepaug.runs.shapes import check_shape, read_json

FILE_NAME = "result.json"
SCHEMA = 2
KINDS = ("classify", "convert", "detection", "fidelity", "reid", "ssl_uda")
_PACKAGES = (
    "torch", "torchvision", "numpy", "detectron2", "torchreid", "pycocotools", "faster-coco-eval", "timm",
)  # fmt: skip
DATASET = {"name": str, "sizes": {str: int}, "checksum": str, str: Any}
"""What is said of the data, see `keepaug.data.identity`."""
STARTED_FROM = ({"file": str, "sha256": str, "provenance?": {str: Any}, str: Any}, None)
"""What is said of the network that a training began with."""
RECIPE = {"recipe": {str: Any}, "precision": {str: Any}, "started_from": STARTED_FROM, str: Any}
RESULT = {
    "schema": int,
    "kind": str,
    "name": str,
    "metrics": {str: float},
    "seed": int,
    "config": {"method?": str, "arch?": str, "saliency?": str, str: Any},
    "dataset": DATASET,
    "synthetic": bool,
    "shortened": bool,
    "engine?": (str, None),
    "revision?": (str, None),
    "revisions?": [(str, None)],
    "packages?": {str: str},
    "hardware": {"cpu?": str, "cores?": (int, None), "threads?": int, "gpus": [str], str: Any},
    "wall_time_s": float,
    "artifacts": {str: str},
    "extra": {"cpu_time_s?": float, "notes?": [str], "history?": [(float, {str: float})], str: Any},
    "created": str,
    str: Any,
}
"""What result.json holds."""


def describe_run(
    *,
    kind: str,
    name: str,
    seed: int,
    config: Mapping[str, Any],
    dataset: Mapping[str, Any],
    synthetic: bool,
    shortened: bool,
    recipe: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    engine: str | None = None,
    started_from: Mapping[str, Any] | None = None,
    root: str = "",
    revisions: Sequence[str | None] = (),
) -> dict[str, Any]:
    """All that makes a run's numbers, as its result, its weights and what is built on them say it.

    Args:
        kind: one of `KINDS`.
        name: of the run, the same for its seeds.
        seed: of the run.
        config: resolved settings.
        dataset: "name", "sizes" per split and "checksum".
        synthetic: the data was drawn by the program; such a result never stands beside a number of the paper.
        shortened: less data or fewer steps than the settings' epochs say; neither does this.
        recipe: settings that decide the figures, see `keepaug.runs.config.recipe_of`; None: all but the seed.
        precision: settings that say how numbers are computed.
        engine: the detection engine, if any.
        started_from: the network that the training began with: "sha256", "file" and "provenance" (the same
            dictionary, of the run that made it, or {} for a foreign file); None for random weights.
        root: folder of the data, as the user gave it.
        revisions: of the program, where the run was continued by another one.

    Raises:
        ValueError: unknown kind, or a dataset without its identity.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if missing := {"name", "sizes", "checksum"} - set(dataset):
        raise ValueError(
            f"dataset must name {', '.join(sorted(missing))}; see keepaug.data.identity.describe_files"
        )
    return {
        "kind": kind,
        "name": name,
        "seed": seed,
        "synthetic": synthetic,
        "shortened": shortened,
        "engine": engine,
        "dataset": dict(dataset),
        "root": root,
        "recipe": _without_seed(config) if recipe is None else dict(recipe),
        "precision": dict(precision or {}),
        "started_from": None if started_from is None else dict(started_from),
        "config": dict(config),
        "revision": revision(),
        "revisions": [*revisions] or [revision()],
        "packages": _packages(),
        "hardware": _hardware(),
    }


def record_result(
    folder: str | Path,
    run: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    wall_time_s: float,
    artifacts: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run's result.

    Args:
        folder: the run folder.
        run: of `describe_run`.
        metrics: numbers; accuracies, AP and error rates in percent.
        wall_time_s: seconds.
        artifacts: files of the run, by role, relative to the folder.
        extra: anything else a reader may want.

    Returns:
        The path of result.json.

    Raises:
        ValueError: a metric that is not finite.
    """
    for key, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"the metric {key!r} must be a finite number, got {value!r}")
    content = {
        "schema": SCHEMA,
        **run,
        "metrics": dict(metrics),
        "wall_time_s": round(wall_time_s, 3),
        "artifacts": dict(artifacts or {}),
        "extra": dict(extra or {}),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return write_json_atomic(Path(folder) / FILE_NAME, content)


def write_result(
    folder: str | Path,
    *,
    metrics: Mapping[str, float],
    wall_time_s: float,
    artifacts: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    **run: Any,
) -> Path:
    """`record_result` of a measurement that is no training run; `run` goes to `describe_run`."""
    about = describe_run(**run)
    return record_result(folder, about, metrics, wall_time_s=wall_time_s, artifacts=artifacts, extra=extra)


def plain(value: Any) -> Any:
    """As JSON gives it back: tuples as lists; whole floats as they are."""
    return json.loads(json.dumps(value, default=str))


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("seed", "SEED")}


def read_result(path: str | Path) -> dict[str, Any]:
    """One result file, with its folder under "folder".

    Raises:
        ValueError: not a result file of this schema.
    """
    path = Path(path)
    content = read_json(path, RESULT)
    if content["schema"] not in (1, SCHEMA):
        raise ValueError(f"{path} has schema {content['schema']}, this program reads {SCHEMA}; run it again")
    if content["schema"] == 1:
        # It does not say which settings made the figure: a row of its own, and in no cell of the paper.
        content |= {
            "recipe": _without_seed(content["config"]),
            "precision": {},
            "started_from": content.get("extra", {}).get("backbone"),
        }
    check_shape(content, RECIPE, path)
    content["folder"] = str(path.parent)
    return content


def read_results(root: str | Path) -> list[dict[str, Any]]:
    """All result files below a folder, sorted by path.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a file that is not a result.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    return [read_result(path) for path in sorted(root.rglob(FILE_NAME))]


@functools.cache
def revision() -> str | None:
    """Git revision of the source, with "+" when it has changes; None outside a checkout."""
    source = Path(__file__).resolve().parent
    try:
        options = {"cwd": source, "capture_output": True, "text": True, "check": True, "timeout": 10}
        head = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return None
    return str(head) + ("+" if changed.strip() else "")


def _packages() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, Any]:
    import torch  # a report reads results without it

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )
