"""COCO evaluation by every evaluator that is installed, for `keepaug benchmark coco_evaluation`."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detection.coco import CocoDataset, load_coco
from detection.evaluation import CocoMetrics, _ground_truth, evaluate, score, validate_results
from detection.prepare import BACKENDS
from keepaug.runs.timing import Table, interleaved


def coco_evaluation_section(
    device: torch.device, *, rounds: int = 3, processor_time: bool = False, shrink: bool = False
) -> tuple[Table, dict[str, Any]]:
    """Seconds for the twelve figures and every class, as multiples of pycocotools, after validation."""
    images = 20 if shrink else 2000
    with tempfile.TemporaryDirectory() as folder:
        split, results = drawn(Path(folder), images)
    truth, ready = _ground_truth(split), validate_results(results, split)
    figures: dict[str, CocoMetrics] = {}
    variants: dict[str, Callable[[], object]] = {}
    for name in BACKENDS[1:]:
        try:
            figures[name] = evaluate(split, results, backend=name)
        except ImportError:
            continue
        variants[name] = partial(score, truth, ready, name)
    seconds = interleaved(variants, rounds, device, processor_time=processor_time)
    reference = figures["pycocotools"]
    rows, record = [], {}
    for name, taken in seconds.items():
        found = figures[name]
        differences = [
            abs((found_value or 0.0) - (value or 0.0))
            for ours, theirs in ((found.stats, reference.stats), (found.per_class, reference.per_class))
            for found_value, value in zip(ours.values(), theirs.values(), strict=True)
        ]
        ratio = taken / seconds["pycocotools"]
        record[name] = {"seconds": taken, "ratio": ratio, "largest_difference": max(differences)}
        rows.append([name, f"{taken:.2f}", f"{ratio:.3f}", f"{max(differences):.0e}"])
    return (["evaluator", "seconds", "of pycocotools", "largest difference, points"], rows), record


def drawn(folder: Path, images: int) -> tuple[CocoDataset, list[dict[str, Any]]]:
    """COCO's proportions: 7.5 boxes an image of 80 classes, four detections a box."""
    draw = random.Random(0)
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(draw.randrange(16)):
            box = [draw.uniform(0, 400), draw.uniform(0, 300), draw.uniform(4, 200), draw.uniform(4, 160)]
            category = min(80, int(draw.expovariate(1 / 15)) + 1)
            crowd = int(draw.random() < 0.01)
            entry = {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            truth.append({"id": len(truth), **entry})
            for _ in range(4):
                near = [value * draw.uniform(0.8, 1.2) for value in box]
                entry = {"image_id": image, "category_id": category, "bbox": near}
                results.append({**entry, "score": draw.random()})
    data = {
        "images": [
            {"id": i + 1, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(images)
        ],
        "categories": [{"id": k, "name": str(k)} for k in range(1, 81)],
        "annotations": truth,
    }
    (folder / "a.json").write_text(json.dumps(data))
    return load_coco(folder / "a.json", folder), results
