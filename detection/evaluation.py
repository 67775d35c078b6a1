"""COCO's twelve box figures from a results list.

pycocotools is the reference and what is left where nothing faster is installed; hotcoco gives the same
figures, per class too, in a fiftieth of the time. The evaluators see the normalised set alone, and results
that were validated first: they accept NaN scores and unknown ids, drop annotations numbered 0, crash on an
empty list.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detection.coco import CocoDataset, _key, _number
from detection.prepare import BACKENDS
from keepaug.runs.files import write_json_atomic

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
        if cells := [f"{name:<{width}} {known[name]:6.2f}" for name in best]:
            lines.append(f"AP by class ({len(self.per_class) - len(known)} more have no ground truth):")
            lines += ["   ".join(cells[start : start + 4]) for start in range(0, len(cells), 4)]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def validate_results(results: Any, dataset: CocoDataset) -> list[dict[str, Any]]:
    """Refuse results that an evaluator would score wrongly or crash on.

    Args:
        results: COCO results: dicts with `image_id`, `category_id`, `bbox` [x, y, width, height], `score`.
        dataset: the split they are results of.

    Returns:
        The same with the normalised set's numbers: `image_id` and `category_id` from 1.

    Raises:
        ResultsError: names the first bad entry and how many there are.
    """
    if not isinstance(results, list):
        raise ResultsError(f"expected a list of results, got a {type(results).__name__}")
    images = {_key(id_): number for number, id_ in enumerate(dataset.json_image_ids, start=1)}
    categories = {_key(id_): number for number, id_ in enumerate(dataset.contiguous_to_json_id, start=1)}
    first, count, ready = "", 0, []
    for position, entry in enumerate(results):
        if complaint := _complaint(entry, images, categories):
            first = first or f"entry {position}: {complaint}"
            count += 1
        elif not count:
            ready.append(
                {
                    "image_id": images[_key(entry["image_id"])],
                    "category_id": categories[_key(entry["category_id"])],
                    "bbox": [float(value) for value in entry["bbox"]],
                    "score": float(entry["score"]),
                }
            )
    if count:
        raise ResultsError(f"{count} of {len(results)} results cannot be scored; {first}")
    return ready


def _complaint(entry: Any, images: dict[Any, int], categories: dict[Any, int]) -> str:
    if not isinstance(entry, dict):
        return f"expected a dict, got {entry!r:.80}"
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        return f"lacks {', '.join(missing)}: {entry!r:.80}"
    if _key(entry["image_id"]) not in images:
        return f"image id {entry['image_id']!r:.80} is not in the annotation file; results of another split?"
    if _key(entry["category_id"]) not in categories:
        return (
            f"category id {entry['category_id']!r:.80} is not in the annotation file; contiguous class "
            "numbers must be mapped back to the file's ids"
        )
    if _number(entry["score"]) is None:
        return f"score {entry['score']!r:.80} is not a finite number"
    bbox = entry["bbox"]
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or None in map(_number, bbox):
        return f"bbox {bbox!r:.80} is not four finite numbers"
    if bbox[2] < 0 or bbox[3] < 0:
        return f"bbox {bbox!r} has a negative size; expected [x, y, width, height], not corners"
    return ""


def coco_results(
    boxes: Tensor, scores: Tensor, labels: Tensor, image_id: int, dataset: CocoDataset
) -> list[dict[str, Any]]:
    """One image's detections as COCO results, with the ids of the annotation file.

    Args:
        boxes: (K, 4) x0, y0, x1, y1 in the pixels of the image file; those without area are left out.
        scores: (K,).
        labels: (K,) contiguous class numbers.
        image_id: of the record.
        dataset: the split.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    places = torch.cat([boxes[:, :2], sizes], dim=1)
    rows = zip(places.tolist(), scores.tolist(), labels.tolist(), strict=True)
    return [
        {
            "image_id": dataset.json_image_ids[image_id - 1],
            "category_id": dataset.contiguous_to_json_id[label],
            "bbox": box,
            "score": score,
        }
        for box, score, label in rows
        if box[2] > 0 and box[3] > 0
    ]


def evaluate(dataset: CocoDataset, results: list[dict[str, Any]], *, backend: str = "auto") -> CocoMetrics:
    """Score boxes against a split.

    Args:
        dataset: the split.
        results: COCO results: `image_id`, `category_id` (the file's own), `bbox` [x, y, width, height] in
            pixels, `score`.
        backend: "pycocotools" is the reference; "hotcoco" and "faster" (faster-coco-eval) give the same
            figures to 1e-9 faster; "auto" takes the fastest that is installed.

    Raises:
        ResultsError: the results cannot be scored.
        ValueError: unknown backend.
        ImportError: the backend is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    ready = validate_results(results, dataset)
    backend = _load_backend(backend)[0]
    truth = _ground_truth(dataset)
    stats: dict[str, float | None] = dict.fromkeys(STAT_NAMES, 0.0)
    if ready:
        evaluator = score(truth, ready, backend)
        precision = np.asarray(evaluator.eval["precision"])  # (IoU, recall, class, area, max detections)
        stats = dict(zip(STAT_NAMES, map(_percent, np.asarray(evaluator.stats)[:12]), strict=True))
        each = [_mean_percent(precision[:, :, k, 0, -1]) for k in range(len(dataset.thing_classes))]
    else:
        found = {box["category_id"] for box in truth["annotations"] if not box["iscrowd"]}
        each = [0.0 if k in found else None for k in range(1, len(dataset.thing_classes) + 1)]
    return CocoMetrics(
        stats=stats,
        per_class=dict(zip(dataset.thing_classes, each, strict=True)),
        num_images=len(dataset.records),
        num_detections=len(ready),
        backend=backend,
        notes=[] if ready else ["there were no detections at all: every figure is 0"],
    )


def score(truth: dict[str, Any], results: list[dict[str, Any]], backend: str) -> Any:
    """The evaluator of a backend after its work; pycocotools writes into what it gets, so it gets copies."""
    backend, coco_class, eval_class = _load_backend(backend)
    with contextlib.redirect_stdout(io.StringIO()):  # all print their progress and tables
        if backend == "hotcoco":
            index = coco_class(truth)
        else:
            index = coco_class()
            index.dataset = {**truth, "annotations": [{**box} for box in truth["annotations"]]}
            index.createIndex()
            results = [{**result} for result in results]
        evaluator = eval_class(index, index.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _ground_truth(dataset: CocoDataset) -> dict[str, Any]:
    """For the evaluators; annotations are numbered from 1, because they take number 0 for "no match"."""
    boxes = [
        {**box, "category_id": box["category_id"] + 1, "image_id": record["image_id"]}
        for record in dataset.records
        for box in record["annotations"]
    ]
    return {
        "info": {},
        "images": [
            {"id": record["image_id"], "height": record["height"], "width": record["width"]}
            for record in dataset.records
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(dataset.thing_classes, start=1)],
        "annotations": [{**box, "id": number} for number, box in enumerate(boxes, start=1)],
    }


def _load_backend(backend: str) -> tuple[str, Any, Any]:
    """Its name and its two classes; "auto" falls back from the fastest to the reference."""
    if backend in ("auto", "hotcoco"):
        try:
            import hotcoco

            return "hotcoco", hotcoco.COCO, hotcoco.COCOeval
        except ImportError as error:
            if backend == "hotcoco":
                raise ImportError(f"backend 'hotcoco' needs hotcoco: {_REMEDY}") from error
    if backend in ("auto", "faster", "faster-coco-eval"):
        try:
            from faster_coco_eval import COCO as FasterCOCO
            from faster_coco_eval import COCOeval_faster

            return "faster-coco-eval", FasterCOCO, COCOeval_faster
        except ImportError as error:
            if backend == "faster":
                raise ImportError(
                    "backend 'faster' needs faster-coco-eval: pip install faster-coco-eval"
                ) from error
    try:
        from pycocotools.coco import COCO as PyCOCO
        from pycocotools.cocoeval import COCOeval as PyCOCOeval
    except ImportError as error:
        raise ImportError(f"the evaluation needs pycocotools: {_REMEDY}") from error
    return "pycocotools", PyCOCO, PyCOCOeval


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
    write_json_atomic(path, list(results))
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
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(results, list):
        hint = (
            "; it holds annotations, not results"
            if isinstance(results, dict) and "annotations" in results
            else ""
        )
        raise ResultsError(f"{path}: expected a list of results, got a {type(results).__name__}{hint}")
    return results
