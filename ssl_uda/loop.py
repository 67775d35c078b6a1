"""The semi-supervised training loop."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from keepaug.data.batch_transforms import normalise
from keepaug.models.networks import build_network
from keepaug.runs.checkpoint import FILE_NAME as CHECKPOINT
from keepaug.runs.checkpoint import load_checkpoint, save_checkpoint
from keepaug.runs.config import ConfigError, to_dict
from keepaug.runs.distributed import Distributed, setup
from keepaug.runs.ema import ModelEma
from keepaug.runs.files import write_atomic, write_json_atomic
from keepaug.runs.folder import RunFolder
from keepaug.runs.guard import check_finite, only_finite
from keepaug.runs.progress import progress
from keepaug.runs.result import write_result
from keepaug.runs.seeds import derive_seed, seed_everything
from keepaug.transfer import start_reading, to_device
from ssl_uda.algorithms import ALGORITHMS
from ssl_uda.augment import StepDraws, Views, draw_step, finish_strong, make_views, part_of, weak_view
from ssl_uda.batchnorm import synchronise
from ssl_uda.config import UdaConfig, check, is_shortened, label
from ssl_uda.data import Data, Stream, open_data
from ssl_uda.pictures import draw_views
from ssl_uda.schedule import learning_rate
from ssl_uda.step import look, sample_paste, step_loss

__all__ = ["build", "train"]

MAY_CHANGE = ("device", "log_every", "checkpoint_every", "tensorboard", "pictures", "root")
LABELS = "labels.json"


@dataclass
class _Run:
    """What the steps of one run share."""

    config: UdaConfig
    world: Distributed
    data: Data
    labelled: Stream
    unlabelled: Stream
    network: nn.Module
    forward: Callable[[Tensor], Any]  # through DDP and torch.compile
    seen: nn.Module  # what the saliency pass runs
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None
    step: int = 0
    history: list[float] = field(default_factory=list)  # accuracy at each evaluation


def train(config: UdaConfig, output: str | Path, *, resume: bool = False) -> dict[str, float]:
    """Train and evaluate; everything ends up in the folder `output`.

    Interrupted at any moment and called again with `resume`, it ends with the same weights as without the interruption,
    bit for bit on a CPU.

    Args:
        config: settings.
        output: run folder: labels.json, checkpoint.pt, weights.pt, metrics.jsonl, result.json, views.png.
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
    folder = None
    try:
        data = open_data(config, world.device)
        run = _prepare(config, world, data)
        if world.is_main:
            folder = RunFolder(
                output, to_dict(config), resume=resume, may_change=MAY_CHANGE, tensorboard=config.tensorboard
            )
            _save_labels(run, output)
        world.barrier()
        earlier = _restore(run, output, folder) if resume else 0.0
        _train(run, output, folder, earlier, started)
        metrics = _finish(run, output, folder, earlier + time.monotonic() - started)
    finally:
        if folder is not None:
            folder.close()
        world.close()
    return metrics


def build(config: UdaConfig, num_classes: int) -> nn.Module:
    """The network with random weights; Wide ResNets with the shortcut and the last layer of UDA's code."""
    if not config.arch.startswith("wrn"):
        return build_network(config.arch, num_classes, stem=config.stem)
    network = build_network(config.arch, num_classes, shortcut="raw")
    bound = (
        num_classes**-0.5
    )  # by the outputs: `fc` of google-research/uda, `image/randaugment/custom_ops.py`
    nn.init.uniform_(network.fc.weight, -bound, bound)  # type: ignore[union-attr, arg-type]
    return network


def _prepare(config: UdaConfig, world: Distributed, data: Data) -> _Run:
    if config.batch_size % world.world_size:
        raise ConfigError(
            f"batch_size {config.batch_size} must be divisible by the {world.world_size} processes"
        )
    seed_everything(config.seed)
    split = data.split
    num_unlabelled = config.batch_size * config.unlabelled_ratio
    network = build(config, len(data.classes)).to(world.device)
    if config.sync_batchnorm and world.active:
        synchronise(network)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward: Any = network
    if world.active:
        ids = [world.device.index] if world.device.type == "cuda" else None
        forward = DistributedDataParallel(network, device_ids=ids)
    seen: Any = network
    if config.compile:
        # torch.compile wraps; checkpoints are taken from the module inside.
        forward, seen = torch.compile(forward), torch.compile(network)
    optimizer = torch.optim.SGD(
        _parameter_groups(network, config),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    return _Run(
        config,
        world,
        data,
        Stream(len(split.labelled), config.batch_size, seed=config.seed, name="labelled"),
        Stream(len(split.unlabelled), num_unlabelled, seed=config.seed, name="unlabelled"),
        network,
        forward,
        seen,
        optimizer,
        ModelEma(network, config.ema) if config.ema else None,
    )


def _parameter_groups(network: nn.Module, config: UdaConfig) -> list[dict[str, Any]]:
    """All parameters with weight decay, or with decay=kernels those of convolutions and linear layers alone."""
    parameters = list(network.parameters())
    if config.decay == "all":
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]


def _train(run: _Run, output: Path, folder: RunFolder | None, earlier: float, started: float) -> None:
    config = run.config
    bar: Any = progress(
        range(run.step, config.steps),
        config.algorithm,
        total=config.steps,
        initial=run.step,
        disable=not run.world.is_main,
    )
    run.network.train()
    for step in bar:
        rate = learning_rate(step, config.steps, config.lr, config.warmup_steps)
        figures = _step(run, step, rate, output)
        run.step = step + 1
        last = run.step == config.steps
        if run.step % config.log_every == 0 or last:
            values = _mean_over_processes(run, figures)
            if folder is not None:
                folder.log(
                    run.step, {f"train/{key}": value for key, value in values.items()} | {"train/lr": rate}
                )
                if hasattr(bar, "set_postfix"):
                    bar.set_postfix({key: f"{value:.3f}" for key, value in values.items()}, refresh=False)
        if run.step % config.eval_every == 0 or last:
            _evaluate_and_log(run, folder)
        if run.step % config.checkpoint_every == 0 or last:
            _save(run, output, earlier + time.monotonic() - started)


def _pixels(run: _Run, images: Tensor) -> Tensor:
    pixels = normalise(images, run.data.mean, run.data.std)
    return pixels.contiguous(memory_format=torch.channels_last) if run.config.channels_last else pixels


def _step(run: _Run, step: int, rate: float, output: Path) -> dict[str, Tensor]:
    config, world, data = run.config, run.world, run.data
    device = world.device
    # Every step has its own streams, so that a resumed run goes on as the first one, however many processes there are.
    torch.manual_seed(derive_seed(config.seed, "network", step, world.rank))
    draws = draw_step(config, step, data.image_size, rank=world.rank, world_size=world.world_size)
    chosen = run.labelled.batch(step)[part_of(config.batch_size, world.rank, world.world_size)]
    chosen = to_device(data.split.labelled[chosen], device)
    images = _pixels(run, weak_view(data.images[chosen], draws.labelled_seeds, config))
    labels = data.labels[chosen]
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        views, target_logits, read_heat = None, None, None
        if ALGORITHMS[config.algorithm].unlabelled:
            views, target_logits, read_heat = _unlabelled(run, step, draws)
        parts = step_loss(run.forward, images, labels, views, target_logits, config, step, world)
    read_loss = start_reading(parts.total)
    run.optimizer.zero_grad(set_to_none=True)
    parts.total.backward()
    if config.clip_norm:
        nn.utils.clip_grad_norm_(run.network.parameters(), config.clip_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update(run.network)
    # Here, so that a GPU has the rest of the step to do while the host waits.
    if read_heat is not None:
        check_finite(float(read_heat()), step, _last_checkpoint(output), what="saliency")
    check_finite(float(read_loss()), step, _last_checkpoint(output))
    return parts.figures


def _last_checkpoint(output: Path) -> Path | None:
    return output / CHECKPOINT if (output / CHECKPOINT).is_file() else None


def _unlabelled(
    run: _Run, step: int, draws: StepDraws
) -> tuple[Views, Tensor | None, Callable[[], Tensor] | None]:
    """Both views, the strong one as it is trained on; the target's logits with target_mode=eval; a reading of the saliency."""
    config, world, data = run.config, run.world, run.data
    total = config.batch_size * config.unlabelled_ratio
    chosen = run.unlabelled.batch(step)[part_of(total, world.rank, world.world_size)]
    images = data.images[to_device(data.split.unlabelled[chosen], world.device)]
    views = make_views(images, draws, config, data.mean, data.std)
    clean = views.clean
    if config.channels_last:
        clean = clean.contiguous(memory_format=torch.channels_last)
    target_logits, heat = look(run.seen, clean, config)
    pasted, read_heat = None, None
    if heat is not None:
        heat, read_heat = only_finite(heat)
        pasted = sample_paste(heat, clean, config, step, world)
    return views._replace(strong=finish_strong(views, pasted, draws, config)), target_logits, read_heat


def _mean_over_processes(run: _Run, figures: dict[str, Tensor]) -> dict[str, float]:
    values = torch.stack([value.detach().float() for value in figures.values()])
    values = run.world.sum(values) / run.world.world_size
    return dict(zip(figures, values.tolist(), strict=True))


@torch.no_grad()
def _accuracy(run: _Run, network: nn.Module) -> float:
    """Of one network on the validation images, in percent, shared among the processes."""
    training = network.training
    network.eval()
    images, labels = run.data.val_images, run.data.val_labels
    mine = torch.arange(run.world.rank, len(images), run.world.world_size, device=images.device)
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    for part in mine.split(500):
        right += (network(_pixels(run, images[part])).argmax(dim=1) == labels[part]).sum()
    network.train(training)
    return 100 * float(run.world.sum(right)) / len(images)


def _evaluate_and_log(run: _Run, folder: RunFolder | None) -> None:
    accuracy = _accuracy(run, run.ema.model if run.ema is not None else run.network)
    run.history.append(accuracy)
    if folder is not None:
        folder.log(run.step, {"val/accuracy": accuracy})


def _save_labels(run: _Run, output: Path) -> None:
    """Write `labels.json`; on a resumed run, hold it against the one there."""
    config, data = run.config, run.data
    seed = config.seed if config.split_seed < 0 else config.split_seed
    content = data.split.describe(data.classes, config.split, seed) | {"dataset": data.identity}
    path = output / LABELS
    if path.is_file() and (output / CHECKPOINT).is_file() and json.loads(path.read_text()) != content:
        raise ConfigError(f"{path} was written for other data or labels; the run cannot be resumed on these")
    write_json_atomic(path, content)


def _save(run: _Run, output: Path, seconds: float) -> None:
    if not run.world.is_main:
        return
    state = {
        "model": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "ema": run.ema.state_dict() if run.ema is not None else None,
        "step": run.step,
        "history": run.history,
        "seconds": seconds,
    }
    save_checkpoint(output, state)


def _restore(run: _Run, output: Path, folder: RunFolder | None) -> float:
    state = load_checkpoint(output)
    if state is None:
        return 0.0
    run.network.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    run.step, run.history = state["step"], state["history"]
    if folder is not None:
        folder.truncate_metrics(run.step)
        print(f"resuming at step {run.step}", flush=True)
    return float(state["seconds"])


def _finish(run: _Run, output: Path, folder: RunFolder | None, seconds: float) -> dict[str, float]:
    config, data, history = run.config, run.data, run.history
    metrics = {
        "accuracy": history[-1],
        "best": max(history),
        "median_last_20": statistics.median(history[-20:]),
        "accuracy_last_weights": _accuracy(run, run.network),
    }
    if folder is None:
        return metrics
    _save_weights(run, output / "weights.pt")
    artifacts = {"weights": "weights.pt", "labels": LABELS}
    if config.pictures:
        artifacts["views"] = _draw(run, output / "views.png").name
    write_result(
        output,
        kind="ssl_uda",
        name=config.name or f"{data.identity['name']}-{config.arch}-{label(config)}",
        metrics=metrics,
        seed=config.seed,
        config=to_dict(config),
        dataset=data.identity,
        synthetic=data.synthetic,
        shortened=is_shortened(config),
        wall_time_s=seconds,
        artifacts=artifacts,
        extra={
            "steps": run.step,
            "history": history,
            "world_size": run.world.world_size,
            "labels_per_class": dict(zip(data.classes, data.split.counts, strict=True)),
            "num_unlabelled": len(data.split.unlabelled),
        },
    )
    return metrics


def _save_weights(run: _Run, path: Path) -> None:
    content: dict[str, Any] = {
        "state_dict": {key: value.cpu() for key, value in run.network.state_dict().items()},
        "arch": run.config.arch,
        "stem": run.config.stem,
        "num_classes": len(run.data.classes),
        "classes": run.data.classes,
        "mean": list(run.data.mean),
        "std": list(run.data.std),
        "color_order": "RGB",
        "method": label(run.config),
    }
    if run.ema is not None:
        content["state_dict_ema"] = {key: value.cpu() for key, value in run.ema.state_dict().items()}
    write_atomic(path, lambda file: torch.save(content, file))


def _draw(run: _Run, path: Path) -> Path:
    """Clean, saliency, strong, and strong with the pasted region, of eight unlabelled images."""
    config, data = run.config, run.data
    draws = draw_step(config, 0, data.image_size)
    num = min(8, len(data.split.unlabelled), len(draws.seeds))
    few = draws._replace(
        seeds=draws.seeds[:num],
        other_seeds=draws.other_seeds[:num],
        policy=draws.policy.rows(slice(num)),
        cutout=None if draws.cutout is None else type(draws.cutout)(*(part[:num] for part in draws.cutout)),
    )
    images = data.images[data.split.unlabelled[run.unlabelled.batch(0)[:num]].to(run.world.device)]
    views = make_views(images, few, config, data.mean, data.std)
    keep = dataclasses.replace(config, keep=True)
    _, heat = look(run.network, views.clean, keep)
    assert heat is not None
    rows = [views.clean, finish_strong(views, None, few, config)]
    if config.crops == "shared":
        rows.append(finish_strong(views, sample_paste(heat, views.clean, keep, 0), few, config))
    return draw_views(rows, heat, path, mean=data.mean, std=data.std)
