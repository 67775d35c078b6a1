"""The classifier's training loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from keepaug.baselines import HiddenMix, mixed_inside
from keepaug.classify.attention import feature_attention, load_teacher, stages_of
from keepaug.classify.config import IN_THE_NETWORK, ClassifyConfig, check
from keepaug.classify.datasets import Datasets, open_datasets
from keepaug.classify.losses import learning_rate, loss_of
from keepaug.classify.methods import Labels, Method, build_method, compute_saliency, needs_early_head
from keepaug.classify.pictures import draw_augmented
from keepaug.data.batch_transforms import draw_crop_flip, lighting, normalise
from keepaug.data.images import Batch, Images, MemoryImages
from keepaug.data.loader import Loader, default_workers, make_loader
from keepaug.data.saliency_cache import SaliencyCache, carried_or_fresh
from keepaug.models.drop_resnet import schedule_drops
from keepaug.models.early import EarlyHeadNetwork
from keepaug.models.networks import build_network
from keepaug.runs.checkpoint import FILE_NAME as CHECKPOINT
from keepaug.runs.checkpoint import load_checkpoint, save_checkpoint
from keepaug.runs.config import ConfigError, to_dict
from keepaug.runs.distributed import Distributed, setup
from keepaug.runs.ema import ModelEma
from keepaug.runs.files import write_atomic
from keepaug.runs.folder import RunFolder
from keepaug.runs.guard import check_finite, only_finite
from keepaug.runs.progress import progress
from keepaug.runs.result import write_result
from keepaug.runs.seeds import derive_seed, make_generator, seed_everything
from keepaug.transfer import start_reading, to_device

__all__ = ["train"]

MAY_CHANGE = ("device", "num_workers", "log_every", "checkpoint_every", "tensorboard", "pictures", "root")


@dataclass
class _Run:
    """What the steps of one run share."""

    config: ClassifyConfig
    world: Distributed
    data: Datasets
    loader: Loader
    method: Method
    network: nn.Module
    trained: nn.Module  # the network, with its early head if there is one
    forward: Callable[[Tensor], Any]  # through DDP and torch.compile
    seen: nn.Module  # what the saliency pass runs
    forward_early: Callable[[Tensor], Tensor] | None
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None
    teacher: nn.Module | None
    cache: SaliencyCache | None  # with reuse_every
    hits: Tensor  # right answers and images since the epoch began
    step: int = 0
    history: list[float] | None = None  # accuracy after each evaluation


def train(config: ClassifyConfig, output: str | Path, *, resume: bool = False) -> dict[str, float]:
    """Train and evaluate; everything ends up in the folder `output`.

    Interrupted at any moment and called again with `resume`, it ends with the same weights as without the
    interruption, bit for bit on a CPU.

    Args:
        config: settings.
        output: run folder: checkpoint.pt, weights.pt, metrics.jsonl, result.json, pictures.
        resume: go on with the run in `output` (from the beginning, if it has no checkpoint yet).

    Returns:
        The metrics of result.json, in percent.

    Raises:
        ValueError: settings or data that cannot be used (ConfigError among them), before training.
        NonFiniteLossError: the loss is no longer a number.
    """
    started = time.monotonic()
    check(config)
    output = Path(output)
    world = setup(config.device)
    data = open_datasets(config)
    seed_everything(config.seed)
    run = _prepare(config, world, data)
    folder = None
    try:
        if world.is_main:
            folder = RunFolder(
                output, to_dict(config), resume=resume, may_change=MAY_CHANGE, tensorboard=config.tensorboard
            )
        world.barrier()
        earlier = _restore(run, output, folder) if resume else 0.0
        _train(run, output, folder, earlier, started)
        metrics = _finish(run, output, folder, earlier + time.monotonic() - started)
    finally:
        if folder is not None:
            folder.close()
        world.close()
    return metrics


def _prepare(config: ClassifyConfig, world: Distributed, data: Datasets) -> _Run:
    loader = make_loader(
        data.train,
        config.batch_size,
        seed=config.seed,
        shuffle=True,
        drop_last=True,
        num_workers=_num_workers(config, world, data.train),
        rank=world.rank,
        world_size=world.world_size,
        pin_memory=world.device.type == "cuda",
    )
    inside = {key: getattr(config, key) for key in IN_THE_NETWORK if getattr(config, key)}
    network = build_network(config.arch, len(data.train.classes), stem=config.stem, **inside)
    trained: nn.Module = network
    if needs_early_head(config):
        trained = EarlyHeadNetwork(network, after=config.early_after)
    trained.to(world.device)
    if config.channels_last:
        trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward: Any = trained
    if world.active:
        ids = [world.device.index] if world.device.type == "cuda" else None
        forward = DistributedDataParallel(trained, device_ids=ids)
    seen: Any = trained
    early = trained.forward_early if isinstance(trained, EarlyHeadNetwork) else None
    if config.compile:
        # torch.compile wraps; checkpoints are taken from the module inside.
        forward, seen = torch.compile(forward), torch.compile(trained)
        early = torch.compile(early) if early is not None else None
    optimizer = torch.optim.SGD(
        trained.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    ema = ModelEma(network, config.ema) if config.ema else None
    if config.method == "manifold_mixup" and config.hidden_layers > len(stages_of(network)) + 1:
        raise ConfigError(
            f"hidden_layers={config.hidden_layers}: {config.arch} has {len(stages_of(network))} stages, and the images are "
            "one layer more"
        )
    teacher = load_teacher(config.teacher, data.train.classes).to(world.device) if config.teacher else None
    return _Run(
        config,
        world,
        data,
        loader,
        build_method(config),
        network,
        trained,
        forward,
        seen,
        early,
        optimizer,
        ema,
        teacher,
        _make_cache(config, data),
        torch.zeros(2, dtype=torch.float64, device=world.device),
        history=[],
    )


def _num_workers(config: ClassifyConfig, world: Distributed, images: Images) -> int:
    if config.num_workers >= 0:
        return config.num_workers
    return default_workers(world.device, in_memory=isinstance(images, MemoryImages))


def _make_cache(config: ClassifyConfig, data: Datasets) -> SaliencyCache | None:
    if config.reuse_every == 1 or not isinstance(data.train, MemoryImages):
        return None
    height, width = data.train.images.shape[2:]
    return SaliencyCache(len(data.train), (height, width))


def _total_steps(run: _Run) -> int:
    total = run.config.epochs * len(run.loader)
    return min(total, run.config.max_steps) if run.config.max_steps else total


def _train(run: _Run, output: Path, folder: RunFolder | None, earlier: float, started: float) -> None:
    config, total = run.config, _total_steps(run)
    while run.step < total:
        epoch = run.loader.epoch
        bar = progress(
            run.loader,
            f"epoch {epoch + 1}/{config.epochs}",
            total=len(run.loader),
            initial=run.loader.position,
            disable=not run.world.is_main,
        )
        run.trained.train()
        if run.loader.position == 0:
            run.hits.zero_()
        for batch in bar:
            loss = _step(run, batch, output)
            run.step += 1
            if folder is not None and (run.step % config.log_every == 0 or run.step == total):
                rate = run.optimizer.param_groups[0]["lr"]
                folder.log(run.step, {"train/loss": loss, "train/lr": rate})
            if run.step == total:
                break
            if config.checkpoint_every and run.step % config.checkpoint_every == 0:
                _save(run, output, earlier + time.monotonic() - started)
        done = run.step >= total
        if done or run.loader.epoch % config.eval_every == 0:
            _evaluate_and_log(run, folder)
        _save(run, output, earlier + time.monotonic() - started)


def _step(run: _Run, batch: Batch, output: Path) -> float:
    config, device = run.config, run.world.device
    # Every step has its own streams, so that a resumed run, whatever it drew before, goes on as the first one.
    torch.manual_seed(derive_seed(config.seed, "network", run.step, run.world.rank))
    generator = make_generator(config.seed, "augment", run.step, run.world.rank)
    labels = to_device(batch.labels, device)
    images = _pixels(run, batch.images)
    strong = _pixels(run, batch.strong) if batch.strong is not None else None
    if config.lighting:
        images = lighting(images, run.data.std, strength=config.lighting, generator=generator)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        heat, read_heat = None, None
        if run.method.needs_saliency:
            heat, read_heat = only_finite(_heat(run, images, labels, batch))
        progress = run.step / (config.epochs * len(run.loader))
        step = run.method.step if run.method.at is None else run.method.at(progress)
        if config.drop_path or config.drop_block:
            schedule_drops(run.network, progress)
        inputs, targets = step(images, strong, labels, heat, generator)
        loss = _forward(run, inputs, targets)
    read_loss = start_reading(loss)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.clip_norm:
        nn.utils.clip_grad_norm_(run.trained.parameters(), config.clip_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config, run.step, len(run.loader))
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update(run.network)
    # Here, so that a GPU has the rest of the step to do while the host waits.
    known = output / CHECKPOINT if (output / CHECKPOINT).is_file() else None
    if read_heat is not None:
        check_finite(float(read_heat()), run.step, known, what="saliency")
    value = float(read_loss())
    check_finite(value, run.step, known)
    return value


def _heat(run: _Run, images: Tensor, labels: Tensor, batch: Batch) -> Tensor:
    """What the method sees as important, computed now or in an earlier epoch."""
    config, cache = run.config, run.cache
    if cache is None or batch.seeds is None:
        return _fresh_heat(run, images, labels)
    place = draw_crop_flip(batch.seeds, padding=config.padding, flip=config.flip)

    def compute(rows: Tensor) -> Tensor:
        if len(rows) == len(images):
            return _fresh_heat(run, images, labels)
        rows = to_device(rows, images.device)
        return _fresh_heat(run, images[rows], labels[rows])

    epoch, every = run.loader.epoch, config.reuse_every
    heat = carried_or_fresh(cache, batch.indices, place, compute, epoch=epoch, every=every)
    return to_device(heat, images.device)


def _fresh_heat(run: _Run, images: Tensor, labels: Tensor) -> Tensor:
    config = run.config
    if config.method == "attentive_cutmix" and config.attention == "features":
        return feature_attention(run.teacher or run.network, images)
    if run.teacher is not None:
        return compute_saliency(run.teacher, images, labels, config.saliency)
    return compute_saliency(run.seen, images, labels, config.saliency, forward_early=run.forward_early)


def _forward(run: _Run, inputs: Tensor, targets: Labels) -> Tensor:
    if run.config.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if isinstance(targets, HiddenMix):
        with mixed_inside(stages_of(run.network), targets):
            return loss_of(run.forward(inputs), targets.labels, run.config)
    output = run.forward(inputs)
    if isinstance(targets, Tensor):
        logits = output[0] if isinstance(output, tuple) else output
        run.hits[0] += (logits.detach().argmax(dim=1) == targets).sum()
        run.hits[1] += len(logits)
    return loss_of(output, targets, run.config)


def _pixels(run: _Run, images: Tensor) -> Tensor:
    if images.ndim == 5:  # several views
        return _pixels(run, images.flatten(0, 1)).unflatten(0, images.shape[:2])
    pixels = normalise(to_device(images, run.world.device), run.data.mean, run.data.std)
    return pixels.contiguous(memory_format=torch.channels_last) if run.config.channels_last else pixels


@torch.no_grad()
def _evaluate(run: _Run) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent of the averaged weights if there are any, otherwise of the last ones."""
    network = run.ema.model if run.ema is not None else run.network
    network.eval()
    in_memory = isinstance(run.data.val, MemoryImages)  # and nothing to compute
    loader = make_loader(
        run.data.val,
        max(run.config.batch_size, 2 * run.world.world_size),
        rank=run.world.rank,
        world_size=run.world.world_size,
        num_workers=0 if in_memory else _num_workers(run.config, run.world, run.data.val),
        pin_memory=run.world.device.type == "cuda",
    )
    counts = torch.zeros(3, dtype=torch.float64)
    for batch in loader:
        if not len(batch.labels):
            continue
        logits = network(_pixels(run, batch.images)).cpu()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        counts += torch.tensor([best[:, 0].sum(), best.sum(), len(best)], dtype=torch.float64)
    counts = run.world.sum(counts.to(run.world.device if run.world.device.type == "cuda" else "cpu")).cpu()
    return {"accuracy": 100 * float(counts[0] / counts[2]), "top5": 100 * float(counts[1] / counts[2])}


def _evaluate_and_log(run: _Run, folder: RunFolder | None) -> None:
    values = _evaluate(run)
    run.history = [*(run.history or []), values["accuracy"]]
    running = _train_accuracy(run)
    if folder is not None:
        logged = {f"val/{key}": value for key, value in values.items()}
        folder.log(run.step, logged | {f"train/{key}": value for key, value in running.items()})
        print(f"step {run.step}: accuracy {values['accuracy']:.2f} %", flush=True)


def _train_accuracy(run: _Run) -> dict[str, float]:
    """On this epoch's augmented images, in percent, by the weights of each step; empty where labels are mixed."""
    right, total = run.world.sum(run.hits).tolist()
    return {"accuracy": 100 * right / total} if total else {}


def _save(run: _Run, output: Path, seconds: float) -> None:
    if run.cache is not None and run.world.active:
        run.cache.share(lambda part: run.world.sum(part.to(run.world.device)).cpu())
    hits = run.world.sum(run.hits)
    if not run.world.is_main:
        return
    state = {
        "model": run.trained.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "ema": run.ema.state_dict() if run.ema is not None else None,
        "loader": run.loader.state_dict(),
        "saliency_cache": run.cache.state_dict() if run.cache is not None else None,
        "hits": hits,
        "step": run.step,
        "history": run.history,
        "seconds": seconds,
    }
    save_checkpoint(output, state)


def _restore(run: _Run, output: Path, folder: RunFolder | None) -> float:
    state = load_checkpoint(output)
    if state is None:
        return 0.0
    run.trained.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    run.loader.load_state_dict(state["loader"])
    if run.cache is not None:
        run.cache.load_state_dict(state["saliency_cache"])
    if run.world.is_main:
        run.hits.copy_(state["hits"])  # of all processes together
    run.step, run.history = state["step"], state["history"]
    if folder is not None:
        folder.truncate_metrics(run.step)
        print(f"resuming at step {run.step}", flush=True)
    return float(state["seconds"])


def _finish(run: _Run, output: Path, folder: RunFolder | None, seconds: float) -> dict[str, float]:
    config, history = run.config, run.history or []
    values = _evaluate(run)
    metrics = {
        **values,
        **{f"train_{key}": value for key, value in _train_accuracy(run).items()},
        "best": max(history, default=values["accuracy"]),
        "median_last_20": statistics.median(history[-20:] or [values["accuracy"]]),
    }
    if folder is None:
        return metrics
    save_weights(run, output / "weights.pt")
    artifacts = {"weights": "weights.pt"}
    if config.pictures:
        artifacts["pictures"] = _draw(run, output / "augmented.png").name
    name = config.name or f"{run.data.identity['name']}-{config.arch}-{config.method}"
    write_result(
        output,
        kind="classify",
        name=name,
        metrics=metrics,
        seed=config.seed,
        config=to_dict(config),
        dataset=run.data.identity,
        synthetic=run.data.synthetic,
        shortened=_is_shortened(config),
        wall_time_s=seconds,
        artifacts=artifacts,
        extra={"steps": run.step, "history": history, "world_size": run.world.world_size},
    )
    return metrics


def _is_shortened(config: ClassifyConfig) -> bool:
    less_data = config.limit_train or config.limit_val or config.max_steps
    return bool(less_data) or config.epochs < config.recipe_epochs


def save_weights(run: _Run, path: Path) -> None:
    """`weights.pt`: torchvision's keys and what the network expects as input; read by tools/convert_backbone.py."""
    content: dict[str, Any] = {
        "state_dict": {key: value.cpu() for key, value in run.network.state_dict().items()},
        "arch": run.config.arch,
        "stem": run.config.stem,
        "num_classes": len(run.data.train.classes),
        "classes": run.data.train.classes,
        "mean": list(run.data.mean),
        "std": list(run.data.std),
        "color_order": "RGB",
        "method": run.config.method,
    }
    if run.ema is not None:
        content["state_dict_ema"] = {key: value.cpu() for key, value in run.ema.state_dict().items()}
    if isinstance(run.trained, EarlyHeadNetwork):
        content["early_head"] = {key: value.cpu() for key, value in run.trained.head.state_dict().items()}
        content["early_after"] = run.config.early_after
    write_atomic(path, lambda file: torch.save(content, file))


def _draw(run: _Run, path: Path) -> Path:
    indices = torch.arange(min(8, len(run.data.train)))
    batch = run.data.train.load(indices, torch.arange(len(indices)) * 2**21 + 1)
    images = _pixels(run, batch.images)
    strong = _pixels(run, batch.strong) if batch.strong is not None else None
    labels = batch.labels.to(images.device)
    heat = (
        _fresh_heat(run, images, labels)
        if run.method.needs_saliency
        else compute_saliency(run.trained, images, labels, "full")
    )
    generator = make_generator(run.config.seed, "pictures")
    inputs, _ = run.method.step(images, strong, labels, heat, generator)
    inputs = inputs[-len(images) :]  # the last view, where there are several
    return draw_augmented(images, heat, inputs, path, mean=run.data.mean, std=run.data.std)
