"""The semi-supervised training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepaug.data.batch_transforms import normalize
from keepaug.data.pictures import draw_views
from keepaug.models.lab import LabNetwork
from keepaug.models.networks import ARCHITECTURES
from keepaug.models.weights import NetworkSpec, save_classifier
from keepaug.modes import evaluating
from keepaug.runs.config import ConfigError, changed_settings
from keepaug.runs.distributed import Distributed, setup
from keepaug.runs.ema import ModelEma, ema_decay
from keepaug.runs.files import write_json_atomic
from keepaug.runs.guard import check_finite, only_finite
from keepaug.runs.precision import with_precision
from keepaug.runs.progress import RunBar
from keepaug.runs.recorder import Recorder
from keepaug.runs.rehearsal import Rehearsal
from keepaug.runs.rehearsal import rehearse as rehearse_steps
from keepaug.runs.seeds import derive_seed, seed_everything
from keepaug.transfer import start_reading, to_device
from ssl_uda.algorithms import ALGORITHMS
from ssl_uda.augment import StepDraws, Views, draw_step, finish_strong, make_views, rank_slice, weak_view
from ssl_uda.config import UdaConfig, check, in_todays_names, is_shortened, label
from ssl_uda.data import Data, Stream, open_data
from ssl_uda.schedule import learning_rate
from ssl_uda.step import sample_paste, step_loss, targets_and_saliency


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
    saliency_network: nn.Module  # the network, perhaps compiled, never through DDP
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None
    step: int = 0
    history: list[float] = field(default_factory=list)  # accuracy at each evaluation


def train(config: UdaConfig, output: str | Path, *, resume: bool = False) -> dict[str, float]:
    """Train and evaluate; the folder gets labels.json, weights.pt, metrics.jsonl, result.json, views.png.

    Args:
        config: settings.
        output: the run's folder.
        resume: go on from the folder's last checkpoint, if there is one. The weights are then those of a run
            that was never interrupted, bit for bit on a CPU.

    Returns:
        Accuracies in percent, as result.json says them.

    Raises:
        ValueError: settings or data that cannot be used (ConfigError among them), before training.
        NonFiniteLossError: a loss, a saliency map or a weight is no longer a number.
    """
    with _begun(config, output, resume) as (run, recorder):
        if run.world.is_main:
            write_json_atomic(recorder.path / "labels.json", _labels(run))
        _train(run, recorder)
        return _finish(run, recorder)


def rehearse(config: UdaConfig, output: str | Path, *, resume: bool = False) -> Rehearsal:
    """Begin as `train` does, and take a few steps; nothing is written.

    Raises:
        ValueError: what `train` raises.
    """
    with _begun(config, output, resume, dry=True) as (run, recorder):
        run.network.train()
        left = config.steps - run.step
        return rehearse_steps(lambda: _step(run, run.step, config.lr, recorder), left, run.world.device)


@contextlib.contextmanager
def _begun(
    config: UdaConfig, output: str | Path, resume: bool, *, dry: bool = False
) -> Iterator[tuple[_Run, Recorder]]:
    """A run before its first step: settings and data checked, folder claimed, all said."""
    check(config)
    with contextlib.closing(setup(config.device)) as world:
        config = with_precision(config, Path(output), world.device)
        data = open_data(config, world.device)
        run = _prepare(config, world, data)
        with Recorder(
            output,
            config,
            kind="ssl_uda",
            main=world.is_main,
            dry=dry,
            changed=lambda before: changed_settings(in_todays_names(before), config),
        ) as recorder:
            run.step = recorder.claim(
                resume,
                name=config.name or f"{data.identity['name']}-{config.arch}-{label(config)}",
                dataset=data.identity,
                synthetic=data.synthetic,
                shortened=is_shortened(config),
                root=config.root,
                device=str(world.device),
                processes=world.world_size,
                model=run.network,
                optimizer=run.optimizer,
                ema=run.ema,
                history=run.history,
            )["step"]
            work = f"{config.steps} steps of {config.batch_size} labelled"
            if ALGORITHMS[config.algorithm].unlabelled:
                work += f" and {config.batch_size * config.unlabelled_ratio} unlabelled"
            recorder.announce(run.network, world.device, run.step, f"{work} images, {label(config)}")
            world.barrier()
            yield run, recorder


def network_spec(config: UdaConfig, num_classes: int) -> NetworkSpec:
    """How the network is built; Wide ResNets as in UDA's code."""
    options = {"shortcut": "raw"} if config.arch.startswith("wrn") else {}
    own = {"stem": config.stem} if config.arch in ARCHITECTURES else options
    return NetworkSpec(config.arch, num_classes, own)


def _prepare(config: UdaConfig, world: Distributed, data: Data) -> _Run:
    if config.batch_size % world.world_size:
        raise ConfigError(f"batch_size {config.batch_size} must be divisible by {world.world_size} processes")
    seed_everything(config.seed)
    split = data.split
    num_unlabelled = config.batch_size * config.unlabelled_ratio
    network = network_spec(config, len(data.classes)).build()
    if isinstance(network, LabNetwork):  # from any images: their labels are not looked at
        some = data.images[:: max(1, len(data.images) // 5000)].cpu()
        network.whiten(normalize(some, data.mean, data.std))
    forward: Any = world.place(
        network, sync_batchnorm=config.sync_batchnorm, channels_last=config.channels_last
    )
    saliency_network: Any = network
    if config.compile:
        # torch.compile wraps; checkpoints are taken from the module inside.
        forward, saliency_network = torch.compile(forward), torch.compile(network)
    optimizer = torch.optim.SGD(
        _parameter_groups(network, config), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
    )
    return _Run(
        config,
        world,
        data,
        Stream(len(split.labelled), config.batch_size, seed=config.seed, name="labelled"),
        Stream(len(split.unlabelled), num_unlabelled, seed=config.seed, name="unlabelled"),
        network,
        forward,
        saliency_network,
        optimizer,
        ModelEma(network, config.ema) if config.ema else None,
    )


def _parameter_groups(network: nn.Module, config: UdaConfig) -> list[dict[str, Any]]:
    """The parameters with weight decay: all, or with decay=kernels those of convolutions and linear ones."""
    parameters = list(network.parameters())
    if config.decay == "all":
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]


def _train(run: _Run, recorder: Recorder) -> None:
    config, world = run.config, run.world
    run.network.train()
    shown: dict[str, float] = {}
    with RunBar(config.steps, run.step, disable=not world.is_main) as bar:
        for step in range(run.step, config.steps):
            rate = learning_rate(step, config.steps, config.lr, config.warmup_steps)
            figures = _step(run, step, rate, recorder)
            run.step = step + 1
            last = run.step == config.steps
            if run.step % config.log_every == 0 or last:
                values = _mean_over_processes(run, figures)
                named = {f"train/{key}": one for key, one in values.items()}
                recorder.log(run.step, named | {"train/lr": rate})
                shown = values
            bar.step(**shown)
            if run.step % config.eval_every == 0 or last:
                run.history.append(_accuracy(run, run.ema.model if run.ema is not None else run.network))
                recorder.log(run.step, {"val/accuracy": run.history[-1]})
            if run.step % config.checkpoint_every == 0 or last:
                recorder.save(run.step)
            if not last:
                recorder.stop_if_asked(run.step, lambda: recorder.save(run.step), world)


def _pixels(run: _Run, images: Tensor) -> Tensor:
    pixels = normalize(images, run.data.mean, run.data.std)
    return pixels.contiguous(memory_format=torch.channels_last) if run.config.channels_last else pixels


def _step(run: _Run, step: int, rate: float, recorder: Recorder) -> dict[str, Tensor]:
    config, world, data = run.config, run.world, run.data
    device = world.device
    # Every step has its own streams, so that a resumed run goes on as the first, on however many processes.
    torch.manual_seed(derive_seed(config.seed, "network", step, world.rank))
    draws = draw_step(config, step, data.image_size, rank=world.rank, world_size=world.world_size)
    chosen = run.labelled.batch(step)[rank_slice(config.batch_size, world.rank, world.world_size)]
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
        run.ema.update(run.network, ema_decay(step, config.steps, config.ema, ramp=config.ema_ramp))
    # Here, so that a GPU has the rest of the step to do while the host waits.
    if read_heat is not None:
        check_finite(float(read_heat()), step, recorder.last_checkpoint, what="saliency")
    check_finite(float(read_loss()), step, recorder.last_checkpoint)
    return parts.figures


def _unlabelled(
    run: _Run, step: int, draws: StepDraws
) -> tuple[Views, Tensor | None, Callable[[], Tensor] | None]:
    """Both views, the strong one as trained on; target logits (target_mode=eval); a saliency reading."""
    config, world, data = run.config, run.world, run.data
    total = config.batch_size * config.unlabelled_ratio
    chosen = run.unlabelled.batch(step)[rank_slice(total, world.rank, world.world_size)]
    images = data.images[to_device(data.split.unlabelled[chosen], world.device)]
    views = make_views(images, draws, config, data.mean, data.std)
    clean = views.clean
    if config.channels_last:
        clean = clean.contiguous(memory_format=torch.channels_last)
    target_logits, heat = targets_and_saliency(run.saliency_network, clean, config, only=draws.policy.changes)
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
    images, labels = run.data.val_images, run.data.val_labels
    mine = torch.arange(run.world.rank, len(images), run.world.world_size, device=images.device)
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    with evaluating(network):
        for part in mine.split(500):
            right += (network(_pixels(run, images[part])).argmax(dim=1) == labels[part]).sum()
    return 100 * float(run.world.sum(right)) / len(images)


def _labels(run: _Run) -> dict[str, Any]:
    """Which images keep their labels, for `labels.json`."""
    config, data = run.config, run.data
    seed = config.seed if config.split_seed < 0 else config.split_seed
    return data.split.describe(data.classes, config.split, seed) | {"dataset": data.identity}


def _finish(run: _Run, recorder: Recorder) -> dict[str, float]:
    config, data, history = run.config, run.data, run.history
    metrics = {
        "accuracy": history[-1],
        "best": max(history),
        "median_last_20": statistics.median(history[-20:]),
        "accuracy_last_weights": _accuracy(run, run.network),
    }
    if not run.world.is_main:
        return metrics
    save_classifier(
        recorder.path / "weights.pt",
        run.network,
        network_spec(config, len(data.classes)),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        provenance=recorder.provenance | {"steps": run.step, "metrics": metrics},
        averaged=run.ema.state_dict() if run.ema is not None else None,
    )
    artifacts = {"weights": "weights.pt", "labels": "labels.json"}
    if config.pictures:
        artifacts["views"] = _draw(run, recorder.path / "views.png").name
    extra = {
        "steps": run.step,
        "history": history,
        "world_size": run.world.world_size,
        "labels_per_class": dict(zip(data.classes, data.split.counts, strict=True)),
        "num_unlabelled": len(data.split.unlabelled),
    }
    recorder.finish(metrics, artifacts=artifacts, extra=extra)
    return metrics


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
    _, heat = targets_and_saliency(run.network, views.clean, keep)
    assert heat is not None
    with evaluating(run.network), torch.no_grad():
        guessed = run.network(views.clean).argmax(dim=1)
    rows = [("image", views.clean), ("strong view", finish_strong(views, None, few, config))]
    if config.crops == "shared":
        label = f"with Keep\nsize {config.size}\ntau {config.tau}"
        rows.append((label, finish_strong(views, sample_paste(heat, views.clean, keep, 0), few, config)))
    titles = [f"{data.classes[int(index)]}?" for index in guessed]
    return draw_views(rows, heat, path, mean=data.mean, std=data.std, titles=titles)
