"""COCO's twelve box figures from a results list.

pycocotools is the reference, faster-coco-eval the fast default.
The results are validated first: the evaluators accept NaN scores and unknown ids silently, and crash on an
empty list.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detection.coco import read_json
from keepaug.runs.files import write_json_atomic

BACKENDS = ("auto", "faster", "pycocotools")
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_REMEDY = "pip install 'keepaug[detection]'"


class ResultsError(ValueError):
    """A results list that cannot be scored: names the entry and what is wrong with it."""


@dataclass(frozen=True)
class CocoMetrics:
    """The figures of one evaluation, in percent.

    Attributes:
        stats: COCO's twelve figures by name; None where there is no ground truth of that size.
        per_class: AP (IoU 0.50:0.95) by class name; None where the class has no ground truth.
        num_images: images in the annotation file.
        num_detections: entries in the results list.
        backend: which evaluator computed them.
        notes: what a reader should know, such as that there were no detections at all.
    """

    stats: dict[str, float | None]
    per_class: dict[str, float | None]
    num_images: int
    num_detections: int
    backend: str
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl where they are defined, as a result file records them."""
        return {name: value for name in STAT_NAMES[:6] if (value := self.stats[name]) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    def table(self, *, num_classes: int = 100) -> str:
        """The figures as text, the best classes first."""

        def show(value: float | None) -> str:
            return "   -  " if value is None else f"{value:6.2f}"

        lines = [f"{self.num_detections} detections in {self.num_images} images ({self.backend}), percent:"]
        for row in (STAT_NAMES[:6], STAT_NAMES[6:]):
            lines.append("  ".join(f"{name:>6}" for name in row))
            lines.append("  ".join(show(self.stats[name]) for name in row))
        known = {name: value for name, value in self.per_class.items() if value is not None}
        best = sorted(known, key=lambda name: -known[name])[:num_classes]
        width = max((len(name) for name in best), default=0)
        cells = [f"{name:<{width}} {known[name]:6.2f}" for name in best]
        if cells:
            lines.append(f"AP by class ({len(self.per_class) - len(known)} more have no ground truth):")
            lines += ["   ".join(cells[start : start + 4]) for start in range(0, len(cells), 4)]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def validate_results(results: Any, ground_truth: dict[str, Any]) -> None:
    """Refuse results that an evaluator would score wrongly or crash on.

    Args:
        results: COCO results: dicts with `image_id`, `category_id`, `bbox` [x, y, width, height], `score`.
        ground_truth: the annotation file's dict.

    Raises:
        ResultsError: names the first bad entry and how many there are.
    """
    if not isinstance(results, list):
        raise ResultsError(f"expected a list of results, got a {type(results).__name__}")
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    first, count = "", 0
    for position, entry in enumerate(results):
        if complaint := _complaint(entry, images, categories):
            first = first or f"entry {position}: {complaint}"
            count += 1
    if count:
        raise ResultsError(f"{count} of {len(results)} results cannot be scored; {first}")


def _complaint(entry: Any, images: set[Any], categories: set[Any]) -> str:
    if not isinstance(entry, dict):
        return f"expected a dict, got {entry!r}"
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        return f"lacks {', '.join(missing)}: {entry!r}"
    if entry["image_id"] not in images:
        return f"image id {entry['image_id']!r} is not in the annotation file; results of another split?"
    if entry["category_id"] not in categories:
        return (
            f"category id {entry['category_id']!r} is not in the annotation file; contiguous class numbers "
            "must be mapped back to the file's ids"
        )
    if not _is_number(entry["score"]):
        return f"score {entry['score']!r} is not a finite number"
    bbox = entry["bbox"]
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"bbox {bbox!r} is not four finite numbers"
    if bbox[2] < 0 or bbox[3] < 0:
        return f"bbox {bbox!r} has a negative size; expected [x, y, width, height], not corners"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def evaluate(json_path: str | Path, results: list[dict[str, Any]], *, backend: str = "auto") -> CocoMetrics:
    """Score boxes against an annotation file.

    Args:
        json_path: an instance annotation file.
        results: COCO results: `image_id`, `category_id` (the file's own ids), `bbox` [x, y, width,
            height] in pixels, `score`.
        backend: "pycocotools" is the reference, "faster" is faster-coco-eval (the same figures to 1e-9,
            several times faster), "auto" takes the second where it is installed.

    Raises:
        ResultsError: the results cannot be scored.
        ValueError: unknown backend.
        ImportError: the backend is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    ground_truth = read_json(json_path)
    validate_results(results, ground_truth)
    backend, coco_class, eval_class = _load_backend(backend)
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    # Only what the evaluators read; "iscrowd" may be absent, but they look it up unasked.
    dataset = {
        "info": {},
        "images": [{"id": image["id"]} for image in ground_truth["images"]],
        "categories": categories,
        "annotations": [_plain_annotation(annotation) for annotation in ground_truth["annotations"]],
    }
    if not results:
        has_truth = {a["category_id"] for a in dataset["annotations"] if not a["iscrowd"]}
        return CocoMetrics(
            stats=dict.fromkeys(STAT_NAMES, 0.0),
            per_class={c["name"]: 0.0 if c["id"] in has_truth else None for c in categories},
            num_images=len(dataset["images"]),
            num_detections=0,
            backend=backend,
            notes=["there were no detections at all: every figure is 0"],
        )
    with contextlib.redirect_stdout(io.StringIO()):  # both print their progress and tables
        truth = coco_class()
        truth.dataset = dataset
        truth.createIndex()
        # A fresh dict each: loadRes writes ids and areas into what it is given.
        detections = truth.loadRes([_plain_result(result) for result in results])
        evaluator = eval_class(truth, detections, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = np.asarray(evaluator.eval["precision"])  # (IoU, recall, class, area, max detections)
    return CocoMetrics(
        stats={
            name: _percent(value)
            for name, value in zip(STAT_NAMES, np.asarray(evaluator.stats)[:12], strict=True)
        },
        per_class={name: _mean_percent(precision[:, :, k, 0, -1]) for k, name in enumerate(names)},
        num_images=len(dataset["images"]),
        num_detections=len(results),
        backend=backend,
    )


def _load_backend(backend: str) -> tuple[str, Any, Any]:
    if backend in ("auto", "faster"):
        try:
            from faster_coco_eval import COCO, COCOeval_faster

            return "faster-coco-eval", COCO, COCOeval_faster
        except ImportError as error:
            if backend == "faster":
                raise ImportError(f"backend 'faster' needs faster-coco-eval: {_REMEDY}") from error
    try:
        from pycocotools.coco import COCO as PyCOCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(f"the evaluation needs pycocotools: {_REMEDY}") from error
    return "pycocotools", PyCOCO, COCOeval


def _plain_annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    bbox = [float(value) for value in annotation["bbox"]]
    return {
        "id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": bbox,
        "area": float(annotation.get("area", bbox[2] * bbox[3])),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }


def _plain_result(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_id": result["image_id"],
        "category_id": result["category_id"],
        "bbox": [float(value) for value in result["bbox"]],
        "score": float(result["score"]),
    }


def _percent(value: float) -> float | None:
    """Evaluators say -1 where there is no ground truth."""
    return None if value < 0 else 100 * float(value)


def _mean_percent(precision: np.ndarray) -> float | None:
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else None


def save_results(path: str | Path, results: Sequence[dict[str, Any]]) -> Path:
    """Write a results list as COCO's results JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, [_plain_result(result) for result in results])
    return path


def load_results(path: str | Path) -> list[dict[str, Any]]:
    """Read COCO's results JSON.

    Raises:
        ResultsError: no such file, or not a list of results.
    """
    path = Path(path)
    if not path.is_file():
        raise ResultsError(f"no results file {path}")
    try:
        results = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(results, list):
        hint = "; it holds annotations, not results" if "annotations" in results else ""
        raise ResultsError(f"{path}: expected a list of results, got a {type(results).__name__}{hint}")
    return results
