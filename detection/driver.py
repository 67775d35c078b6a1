"""From a checked job to a result file, with either engine: what `keepaug train-detector` calls.

The engine trains and predicts; scoring, pictures and `result.json` are the same for both.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.coco import CocoDataset
from detection.config import ConfigError, flat
from detection.prepare import DetectorJob, Prepared, prepare, scored_split
from detection.sidecar import started_from
from detection.tool import changed_settings, has_run, precision_of, recipe_of
from keepaug.runs.files import write_json_atomic
from keepaug.runs.shapes import check_shape, read_yaml

if TYPE_CHECKING:  # a wrong config is refused without torch
    from detection.evaluation import CocoMetrics
    from keepaug.runs.recorder import Recorder

RESULTS_FILE = "inference/coco_instances_results.json"


def run(job: DetectorJob) -> CocoMetrics | None:
    """Do the job; on the first machine also score, draw and record it.

    Returns:
        The figures on the validation split; None on the other machines and of a dry run.

    Raises:
        ConfigError: config, options and files do not fit together.
        CocoDataError: the annotations cannot be used.
    """
    if job.results_json is not None:
        return rescore(job)
    prepared = prepare(job)
    for note in prepared.notes:
        print(f"note: {note}", flush=True)
    from detection.evaluation import load_results

    output = Path(prepared.cfg.OUTPUT_DIR)
    with open_recorder(job, prepared) as recorder:
        recorded = not job.eval_only  # an evaluation says nothing of how long, or on what, was trained
        if recorded:
            claim(job, prepared, recorder)
        if job.dry_run:
            _rehearse(job, prepared, recorder)
            return None
        results_path = output / RESULTS_FILE
        results_path.unlink(missing_ok=True)  # an earlier evaluation must not be taken for this one
        if prepared.engine == "detectron2":
            _run_detectron2(job, prepared, recorder)
        else:
            _run_torchvision(job, prepared, recorder)
        if job.machine_rank != 0:
            return None
        metrics = _score(job, prepared.val, load_results(results_path), output / "evaluation.json")
        if recorded:
            _record(job, prepared, metrics, recorder)
        return metrics


def open_recorder(job: DetectorJob, prepared: Prepared) -> Recorder:
    """The run's folder, locked; see `keepaug.runs.recorder`."""
    from keepaug.runs.recorder import Recorder

    cfg = prepared.cfg
    return Recorder(
        cfg.OUTPUT_DIR,
        json.loads(json.dumps(cfg)),
        kind="detection",
        main=job.machine_rank == 0,
        dry=bool(job.dry_run),
        tracker=job.tracker if prepared.engine == "torchvision" else "none",
        tensorboard=prepared.engine == "torchvision",  # Detectron2 writes its own
        recipe=recipe_of(cfg),
        precision=precision_of(cfg),
        seed=cfg.SEED,
        changed=lambda before: changed_settings(before, cfg),
        pass_signals_on=job.num_gpus * job.num_machines > 1,
        has_run=has_run,
    )


def claim(job: DetectorJob, prepared: Prepared, recorder: Recorder) -> None:
    """Make the folder this run's.

    Raises:
        ConfigError: it is another's, or resuming would change its config, its data or what it is built on.
    """
    before = recorder.recorded
    origin, weights = before.get("started_from"), Path(prepared.cfg.MODEL.WEIGHTS)
    if job.resume and not before and has_run(recorder.path):
        _check_old_run(recorder.path / "config.yaml", str(prepared.cfg.MODEL.WEIGHTS))
    if not (job.resume and origin and not weights.is_file()):  # its file may be gone since
        origin = started_from(prepared.cfg.MODEL.WEIGHTS)
    own = {key: prepared.dataset[key] for key in ("name", "sizes", "checksum")}
    recorder.claim(
        job.resume,
        name=job.config_file.stem if job.config_file else recorder.path.name,
        dataset=own,
        synthetic=prepared.dataset["synthetic"],
        shortened=prepared.shortened,
        engine=prepared.engine,
        started_from=origin,
        root=str(job.data_root or ""),
        device=str(prepared.cfg.MODEL.DEVICE),
        processes=job.num_gpus * job.num_machines,
    )


def _check_old_run(saved: Path, weights: str) -> None:
    """A run of an earlier version says what it began with by its path alone."""
    if not saved.is_file():
        return
    content = read_yaml(saved)
    check_shape(content, {"MODEL?": {"WEIGHTS?": str, str: Any}, str: Any}, saved)
    began = content.get("MODEL", {}).get("WEIGHTS")
    if began != weights:
        raise ConfigError(
            f"{saved.parent} holds a run of an earlier version that began with {began!r}, not with "
            f"{weights!r}: set MODEL.WEIGHTS to that, or start a new run in another folder"
        )


def rescore(job: DetectorJob) -> CocoMetrics:
    """Score a results JSON again, without any engine; leaves the figures beside it."""
    if not job.eval_only:
        raise ConfigError("--results-json re-scores results and trains nothing: add --eval-only")
    from detection.evaluation import load_results

    assert job.results_json is not None
    val = scored_split(job)
    results = load_results(job.results_json)
    return _score(job, val, results, job.results_json.with_suffix(".evaluation.json"))


def _rehearse(job: DetectorJob, prepared: Prepared, recorder: Recorder) -> None:
    """Say what the engine measures."""
    if prepared.engine == "detectron2":
        _run_detectron2(job, prepared, recorder)
        return
    from detection.torchvision_engine.loop import rehearse

    assert prepared.train is not None
    print(rehearse(prepared.cfg, prepared.train, recorder, resume=job.resume).lines(job.dry_run))


def _run_detectron2(job: DetectorJob, prepared: Prepared, recorder: Recorder) -> None:
    from detection import detectron2_engine
    from keepaug.runs.loggers import open_loggers

    # Several processes get their own signals; this one passes on what is sent to it.
    several = job.num_gpus * job.num_machines > 1

    work = functools.partial(
        detectron2_engine.run,
        prepared.cfg,
        prepared.train,
        prepared.val,
        resume=job.resume,
        eval_only=job.eval_only,
        dry_run=job.dry_run,
        clock=None if job.eval_only else recorder.clock,
        header=None if job.eval_only else recorder.header,
        signals=None if several else recorder.signals,
        loggers=functools.partial(
            open_loggers,
            recorder.path,
            tensorboard=False,
            tracker=job.tracker,
            name=recorder.path.name,
            config=flat(prepared.cfg),
        ),
    )
    detectron2_engine.launch(
        work,
        job.num_gpus,
        output=recorder.path,
        num_machines=job.num_machines,
        machine_rank=job.machine_rank,
        dist_url=job.dist_url,
    )


def _run_torchvision(job: DetectorJob, prepared: Prepared, recorder: Recorder) -> None:
    from detection.checks import newest_checkpoint
    from detection.evaluation import save_results
    from detection.torchvision_engine.loop import predict, restore_model, train

    cfg = prepared.cfg
    if job.eval_only:
        last = newest_checkpoint(cfg.OUTPUT_DIR) if job.resume else None
        model = restore_model(cfg, last[0] if last else cfg.MODEL.WEIGHTS)
    else:
        assert prepared.train is not None
        model = train(cfg, prepared.train, recorder, resume=job.resume)
    save_results(Path(cfg.OUTPUT_DIR) / RESULTS_FILE, predict(cfg, model, prepared.val))


def _score(job: DetectorJob, val: CocoDataset, results: list[dict[str, Any]], file: Path) -> CocoMetrics:
    from detection.evaluation import evaluate

    metrics = evaluate(val, results, backend=job.backend)
    write_json_atomic(file, metrics.to_dict())
    print(metrics.table(), flush=True)
    if job.draw:
        from detection.draw import draw_predictions

        for path in draw_predictions(val, results, file.parent / "pictures", num_images=job.draw):
            print(f"picture: {path}", flush=True)
    return metrics


def _pictures(output: Path) -> dict[str, str]:
    found = sorted((output / "pictures").glob("predictions_*.png"))
    return {path.stem: path.relative_to(output).as_posix() for path in found}


def _record(job: DetectorJob, prepared: Prepared, metrics: CocoMetrics, recorder: Recorder) -> None:
    recorder.finish(
        metrics.metrics,
        artifacts={"results": RESULTS_FILE, "evaluation": "evaluation.json", **_pictures(recorder.path)},
        extra={
            "per_class_AP": metrics.per_class,
            "undefined": [name for name, value in metrics.stats.items() if value is None],
            "num_detections": metrics.num_detections,
            "evaluator": metrics.backend,
            "resumed": job.resume,
            "notes": prepared.notes + metrics.notes,
        },
    )
