"""One run: data, network, engine, and what is left in the run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from keepaug.runs.checkpoint import load_checkpoint
from keepaug.runs.config import recipe_of, to_dict
from keepaug.runs.distributed import setup
from keepaug.runs.folder import RunFolder
from keepaug.runs.result import write_result
from keepaug.runs.seeds import seed_everything
from reid.config import ReidConfig, check, is_shortened, resolve
from reid.data.manager import DataManager, open_manager
from reid.evaluation.artifacts import erased_importance, write_artifacts
from reid.evaluation.scores import rerank_scores
from reid.models.weights import WEIGHTS, build, save_trained
from reid.training.engine import BEST, KeepEngine

__all__ = ["train"]

MAY_CHANGE = (
    "device", "root", "threads", "loading", "memory_gb", "log_every", "checkpoint_every", "tensorboard", "ranked", "pictures",
    "features", "onnx", "rerank", "k1", "k2", "rerank_lambda", "eval_batch_size",
)  # fmt: skip


def train(config: ReidConfig, output: str | Path, *, resume: bool = False) -> dict[str, float]:
    """Train and evaluate; everything ends up in the folder `output`.

    Interrupted at any moment and called again with `resume`, it ends with the same weights as without the interruption, bit for
    bit on a CPU.

    Args:
        config: settings; tricks that are None are filled in from the recipe.
        output: run folder: checkpoint.pt, weights.pt (last), best.pt (highest mAP), metrics.jsonl, result.json, pictures.
        resume: go on with the run in `output` (from the beginning, if it has no checkpoint yet).

    Returns:
        The metrics of result.json, in percent; nothing on processes other than the main one.

    Raises:
        ValueError: settings or data that cannot be used (ConfigError among them), before training.
        NonFiniteLossError: the loss is no longer a number.
    """
    started = time.monotonic()
    check(resolve(config))
    output = Path(output)
    world = setup(config.device)
    folder = None
    try:
        manager = open_manager(config, world)
        seed_everything(config.seed)
        network = build(config, manager.num_train_pids)
        if world.is_main:
            folder = RunFolder(
                output, to_dict(config), resume=resume, may_change=MAY_CHANGE, tensorboard=config.tensorboard
            )
        world.barrier()
        engine = KeepEngine(manager, network, config, world, output=output, folder=folder)
        earlier = _restore(engine, output, folder) if resume else 0.0
        engine.clock = lambda: earlier + time.monotonic() - started
        if world.is_main:
            _announce(manager)
        engine.run()
        if engine.tested_at != engine.step:  # resumed after its last step
            engine.test()
        return _finish(engine, output, engine.clock())
    finally:
        if folder is not None:
            folder.close()
        world.close()


def _announce(manager: DataManager) -> None:
    sizes = ", ".join(f"{number} {split}" for split, number in manager.identity["sizes"].items())
    left_out = "; ".join(
        f"{number} junk images of {split} left out"
        for one in list(manager.test_loader.values())[:1]
        for split, number in one.data.left_out.items()
    )
    print(
        f"{manager.identity['name']}: {sizes}, {manager.num_train_pids} training identities {left_out}".rstrip(),
        flush=True,
    )
    sampler = manager.train_loader.sampler
    print(
        f"{len(sampler)} batches of {sampler.num_identities} identities x {sampler.num_images} images per epoch use "
        f"{100 * sampler.share(manager.train_loader.epoch):.1f} % of the images; every image is used within "
        f"{sampler.epochs_to_cover} epoch(s)",
        flush=True,
    )


def _restore(engine: KeepEngine, output: Path, folder: RunFolder | None) -> float:
    state = load_checkpoint(output)
    if state is None:
        return 0.0
    engine.restore(state)
    if folder is not None:
        folder.truncate_metrics(engine.step)
        print(f"resuming at step {engine.step}", flush=True)
    return float(state["seconds"])


def _finish(engine: KeepEngine, output: Path, seconds: float) -> dict[str, float]:
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
    save_trained(engine.network, output / WEIGHTS, config, manager.labels)
    artifacts = {"weights": WEIGHTS}
    if (output / BEST).is_file():
        artifacts["best"] = BEST
    artifacts |= write_artifacts(
        output, config, engine.network, tested, scored, manager.train_loader, engine.world.device
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
    write_result(
        output,
        kind="reid",
        name=config.name or f"{manager.identity['name']}-{config.arch.replace(':', '-')}-{config.recipe}",
        metrics=metrics,
        seed=config.seed,
        config=to_dict(config),
        recipe=recipe_of(config),
        dataset=manager.identity,
        synthetic=manager.synthetic,
        shortened=is_shortened(config),
        wall_time_s=seconds,
        artifacts=artifacts,
        extra=extra,
    )
    return metrics
