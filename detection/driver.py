"""From a checked job to a result file, with either engine: what `tools/train_detector.py` calls.

The engine trains and predicts; scoring, pictures and `result.json` are the same for both.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

from detection.coco import CocoDataset
from detection.config import ConfigError
from detection.evaluation import CocoMetrics, evaluate, load_results, save_results
from detection.prepare import Job, Prepared, prepare, scored_split
from detection.sidecar import ORIGIN
from detection.tool import precision_of, recipe_of
from keepaug.runs.files import write_json_atomic, write_text_atomic
from keepaug.runs.result import write_result

RESULTS_FILE = "inference/coco_instances_results.json"


def run(job: Job) -> CocoMetrics | None:
    """Do the job; on the first machine also score, draw and record it.

    Returns:
        The figures on the validation split; None on the other machines.

    Raises:
        ConfigError: config, options and files do not fit together.
        CocoDataError: the annotations cannot be used.
    """
    if job.results_json is not None:
        return rescore(job)
    prepared = prepare(job)
    for note in prepared.notes:
        print(f"note: {note}", flush=True)
    cfg = prepared.cfg
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(parents=True, exist_ok=True)
    results_path = output / RESULTS_FILE
    results_path.unlink(missing_ok=True)  # an earlier evaluation must not be taken for this one
    if job.machine_rank == 0 and not job.eval_only:
        write_json_atomic(output / ORIGIN, prepared.started_from)
    start = time.monotonic()
    if prepared.engine == "detectron2":
        _run_detectron2(job, prepared)
    else:
        _run_torchvision(job, prepared)
    if job.machine_rank != 0:
        return None
    results = load_results(results_path)
    metrics = _score(job, prepared.val, results, output)
    if not job.eval_only or job.resume:
        _record(job, prepared, metrics, time.monotonic() - start)
    return metrics


def rescore(job: Job) -> CocoMetrics:
    """Score a results JSON again, without any engine; leaves the figures beside it."""
    if not job.eval_only:
        raise ConfigError("--results-json re-scores results and trains nothing: add --eval-only")
    assert job.results_json is not None
    val = scored_split(job)
    results = load_results(job.results_json)
    metrics = evaluate(val.json_path, results, backend=job.backend)
    write_json_atomic(job.results_json.with_suffix(".evaluation.json"), metrics.to_dict())
    print(metrics.table(), flush=True)
    if job.draw:
        _draw(job, val, results, job.results_json.parent / "pictures")
    return metrics


def _run_detectron2(job: Job, prepared: Prepared) -> None:
    from detection import detectron2_engine

    work = functools.partial(
        detectron2_engine.run,
        prepared.cfg,
        prepared.train,
        prepared.val,
        resume=job.resume,
        eval_only=job.eval_only,
    )
    detectron2_engine.launch(
        work,
        job.num_gpus,
        num_machines=job.num_machines,
        machine_rank=job.machine_rank,
        dist_url=job.dist_url,
    )


def _run_torchvision(job: Job, prepared: Prepared) -> None:
    from detection.torchvision_engine.loop import last_checkpoint, predict, restore_model, train

    cfg = prepared.cfg
    if job.eval_only:
        last = last_checkpoint(cfg.OUTPUT_DIR) if job.resume else None
        model = restore_model(cfg, last or cfg.MODEL.WEIGHTS)
    else:
        assert prepared.train is not None
        write_text_atomic(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
        model = train(cfg, prepared.train, resume=job.resume)
    save_results(Path(cfg.OUTPUT_DIR) / RESULTS_FILE, predict(cfg, model, prepared.val))


def _score(job: Job, val: CocoDataset, results: list[dict[str, Any]], output: Path) -> CocoMetrics:
    metrics = evaluate(val.json_path, results, backend=job.backend)
    write_json_atomic(output / "evaluation.json", metrics.to_dict())
    print(metrics.table(), flush=True)
    if job.draw:
        _draw(job, val, results, output / "pictures")
    return metrics


def _draw(job: Job, val: CocoDataset, results: list[dict[str, Any]], folder: Path) -> None:
    from detection.draw import draw_predictions

    for path in draw_predictions(val, results, folder, num_images=job.draw):
        print(f"picture: {path}", flush=True)


def _pictures(output: Path) -> dict[str, str]:
    found = sorted((output / "pictures").glob("predictions_*.png"))
    return {path.stem: path.relative_to(output).as_posix() for path in found}


def _record(job: Job, prepared: Prepared, metrics: CocoMetrics, seconds: float) -> None:
    cfg = prepared.cfg
    output = Path(cfg.OUTPUT_DIR)
    path = write_result(
        output,
        kind="detection",
        name=job.config_file.stem if job.config_file else output.name,
        metrics=metrics.metrics,
        seed=cfg.SEED,
        config=json.loads(json.dumps(cfg)),
        recipe=recipe_of(cfg),
        precision=precision_of(cfg),
        dataset={key: prepared.dataset[key] for key in ("name", "sizes", "checksum")},
        synthetic=prepared.dataset["synthetic"],
        shortened=prepared.shortened,
        engine=prepared.engine,
        started_from=prepared.started_from,
        wall_time_s=seconds,
        artifacts={"results": RESULTS_FILE, "evaluation": "evaluation.json", **_pictures(output)},
        extra={
            "per_class_AP": metrics.per_class,
            "undefined": [name for name, value in metrics.stats.items() if value is None],
            "num_detections": metrics.num_detections,
            "evaluator": metrics.backend,
            "resumed": job.resume,
            "notes": prepared.notes + metrics.notes,
        },
    )
    print(f"result: {path}", flush=True)
