"""One run: data, network, engine, and what is left in the run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from keepaug.runs.config import changed_settings
from keepaug.runs.distributed import setup
from keepaug.runs.precision import with_precision
from keepaug.runs.recorder import Recorder
from keepaug.runs.rehearsal import Rehearsal, endless
from keepaug.runs.rehearsal import rehearse as rehearse_steps
from keepaug.runs.seeds import seed_everything
from reid.config import ReidConfig, check, in_todays_names, resolve
from reid.data.manager import DataManager, open_manager
from reid.evaluation.artifacts import erased_importance, write_artifacts
from reid.evaluation.scores import rerank_scores
from reid.models.weights import WEIGHTS, build, start
from reid.training.engine import BEST, KeepEngine


def train(config: ReidConfig, output: str | Path, *, resume: bool = False) -> dict[str, float]:
    """Train and evaluate; everything ends up in the folder `output`.

    Interrupted at any moment and called again with `resume`, it ends with the same weights as without the
    interruption, bit for bit on a CPU.

    Args:
        config: settings; tricks that are None are filled in from the recipe.
        output: run folder: checkpoint.pt, weights.pt, best.pt (highest mAP), metrics, result, pictures.
        resume: go on with the run in `output` (from the beginning, if it has no checkpoint yet), for more
            epochs than before if `epochs` says so.

    Returns:
        The metrics of result.json, in percent; nothing on processes other than the main one.

    Raises:
        ValueError: settings or data that cannot be used (ConfigError among them), before training.
        NonFiniteLossError: the loss is no longer a number.
    """
    with _begun(config, output, resume) as (engine, recorder):
        engine.run()
        if engine.tested_at != engine.step:  # resumed after its last step
            engine.test()
        return _finish(engine, recorder)


def rehearse(config: ReidConfig, output: str | Path, *, resume: bool = False) -> Rehearsal:
    """Begin as `train` does, and take a few steps; nothing is written.

    Raises:
        ValueError: what `train` raises.
    """
    with _begun(config, output, resume, dry=True) as (engine, _):
        engine.set_model_mode("train")
        batches = endless(engine.train_loader)
        left = engine.total_steps - engine.step
        return rehearse_steps(lambda: engine.forward_backward(next(batches)), left, engine.world.device)


@contextlib.contextmanager
def _begun(
    config: ReidConfig, output: str | Path, resume: bool, *, dry: bool = False
) -> Iterator[tuple[KeepEngine, Recorder]]:
    """A run before its first step: settings and data checked, folder claimed, all said."""
    check(resolve(config))
    with contextlib.closing(setup(config.device)) as world:
        config = with_precision(config, Path(output), world.device)
        with Recorder(
            output,
            config,
            kind="reid",
            main=world.is_main,
            dry=dry,
            changed=partial(_changed, config),
        ) as recorder:
            manager = open_manager(config, world)
            seed_everything(config.seed)
            network = build(config, manager.num_train_pids)
            started_from = start(network, config)
            engine = KeepEngine(manager, network, config, world)
            engine.claim(recorder, resume=resume, started_from=started_from)
            batches = f"{len(manager.train_loader.sampler)} batches of {config.identities} identities"
            work = f"{config.epochs} epochs of {batches} with {config.images} images, {config.recipe}"
            recorder.announce(network, world.device, engine.step, work)
            world.barrier()
            if world.is_main:
                _announce(manager)
            yield engine, recorder


def _changed(config: ReidConfig, before: Mapping[str, Any]) -> list[str]:
    """What a continuation would change; a run may become longer."""
    before = in_todays_names(before)
    longer = replace(config)
    if config.epochs > before.get("epochs", config.epochs):
        longer.epochs = before["epochs"]
    stop = before.get("max_steps", 0)
    if stop and (not config.max_steps or config.max_steps > stop):
        longer.max_steps = stop
    return changed_settings(before, longer)


def _announce(manager: DataManager) -> None:
    sizes = ", ".join(f"{number} {split}" for split, number in manager.identity["sizes"].items())
    left_out = "; ".join(
        f"{number} junk images of {split} left out"
        for one in list(manager.test_loader.values())[:1]
        for split, number in one.data.left_out.items()
    )
    print(
        f"{manager.identity['name']}: {sizes}, {manager.num_train_pids} training identities "
        f"{left_out}".rstrip(),
        flush=True,
    )
    sampler = manager.train_loader.sampler
    print(
        f"{len(sampler)} batches of {sampler.num_identities} identities x {sampler.num_images} images per "
        f"epoch use {100 * sampler.share(manager.train_loader.epoch):.1f} % of the images; every image is "
        f"used within {sampler.epochs_to_cover} epoch(s)",
        flush=True,
    )


def _finish(engine: KeepEngine, recorder: Recorder) -> dict[str, float]:
    config, manager = engine.config, engine.datamanager
    if not engine.world.is_main:
        return {}
    tested = manager.test_loader[manager.targets[0]]
    scored = engine.results[tested.name]
    trained = [entry for entry in engine.history if entry["step"] > 0] or [dict(scored.metrics)]
    metrics = {**scored.metrics, "best_mAP": max(entry["mAP"] for entry in trained)}
    metrics["best_rank1"] = max(entry["rank1"] for entry in trained)
    untrained = [entry for entry in engine.history if entry["step"] == 0]
    for key in ("rank1", "mAP") if untrained else ():
        metrics[f"untrained_{key}"] = untrained[0][key]
    for name in manager.targets[1:]:
        metrics |= {f"{name}/{key}": value for key, value in engine.results[name].metrics.items()}
    if config.rerank:
        metrics |= rerank_scores(scored, tested, config)
    metrics |= erased_importance(config, engine.network, manager.train_loader, engine.world.device)
    engine.save_weights(WEIGHTS)
    artifacts = {"weights": WEIGHTS}
    if (recorder.path / BEST).is_file():
        artifacts["best"] = BEST
    images, device = manager.train_loader, engine.world.device
    artifacts |= write_artifacts(
        recorder.path, config, engine.network, tested, scored, images, device, manager.labels
    )
    sampler = manager.train_loader.sampler
    extra: dict[str, Any] = {
        "steps": engine.step,
        "history": engine.history,
        "world_size": engine.world.world_size,
        "initial_weights": config.weights or "random",
        "share_of_images_per_epoch": sampler.share(0),
        "left_out": tested.data.left_out,
    }
    data = tested.data
    if data.identity_names or data.camera_names:
        extra["identities"] = [str(label) for label in manager.labels]
        extra["cameras"] = sorted({*data.camera_names.values()})
    recorder.finish(metrics, artifacts=artifacts, extra=extra)
    return metrics
