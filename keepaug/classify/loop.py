"""The classifier's training loop."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepaug.baselines import HiddenMix, mix_hidden_features
from keepaug.classify.attention import feature_attention, load_teacher, stages_of
from keepaug.classify.config import ClassifyConfig, check, network_spec
from keepaug.classify.datasets import Datasets, open_datasets
from keepaug.classify.losses import loss_of
from keepaug.classify.methods import METHODS, Cutting, Labels, Mixing, Step, Views, compute_saliency
from keepaug.classify.optimizer import build_optimizer, learning_rate, set_learning_rate
from keepaug.data.batch_transforms import change_colours, draw_colours, normalize
from keepaug.data.images import Batch, Images, MemoryImages
from keepaug.data.loader import Loader, default_workers
from keepaug.data.pictures import draw_views
from keepaug.data.saliency_cache import SaliencyCache, carried_or_fresh
from keepaug.keep import KeepCutMix, KeepCutout, KeepRandomErasing
from keepaug.models.drop_resnet import schedule_drops
from keepaug.models.early import EarlyHeadNetwork
from keepaug.models.lab import LabNetwork
from keepaug.models.weights import NetworkSpec, identity_of, save_classifier
from keepaug.runs.config import ConfigError, recipe_of
from keepaug.runs.distributed import Distributed, setup
from keepaug.runs.ema import ModelEma, ema_decay
from keepaug.runs.guard import check_finite, only_finite
from keepaug.runs.look_ahead import LookAhead
from keepaug.runs.precision import with_precision
from keepaug.runs.progress import RunBar, say
from keepaug.runs.recorder import Recorder
from keepaug.runs.rehearsal import Rehearsal, endless
from keepaug.runs.rehearsal import rehearse as rehearse_steps
from keepaug.runs.seeds import derive_seed, make_generator, seed_everything
from keepaug.transfer import start_reading, to_device


@dataclass
class _Run:
    """What the steps of one run share."""

    config: ClassifyConfig
    world: Distributed
    data: Datasets
    loader: Loader
    augment: Step
    network: nn.Module
    spec: NetworkSpec
    trained: nn.Module  # the network, with its early head if there is one
    forward: Callable[[Tensor], Any]  # through DDP and torch.compile
    saliency_network: nn.Module  # what the saliency pass runs
    forward_early: Callable[[Tensor], Tensor] | None
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None
    look_ahead: LookAhead | None
    teacher: nn.Module | None
    started_from: dict[str, Any] | None
    cache: SaliencyCache | None  # with reuse_every
    hits: Tensor  # right answers and images since the epoch began
    step: int = 0
    saved: bool = False  # there is a checkpoint: remembered, since another process may just be writing it
    evaluated: int = 0  # the step of the last evaluation
    history: list[float] = field(default_factory=list)  # accuracy after each evaluation
    values: dict[str, float] | None = None  # of the last evaluation, if it was in this process


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
    with _begun(config, output, resume) as (run, recorder):
        _train(run, recorder)
        return _finish(run, recorder)


def rehearse(config: ClassifyConfig, output: str | Path, *, resume: bool = False) -> Rehearsal:
    """Begin as `train` does, and take a few steps; nothing is written.

    Raises:
        ValueError: what `train` raises.
    """
    with _begun(config, output, resume, dry=True) as (run, _):
        run.trained.train()
        batches = endless(run.loader)
        left = _total_steps(run) - run.step
        return rehearse_steps(lambda: _step(run, next(batches), None), left, run.world.device)


@contextlib.contextmanager
def _begun(
    config: ClassifyConfig, output: str | Path, resume: bool, *, dry: bool = False
) -> Iterator[tuple[_Run, Recorder]]:
    """A run before its first step: settings and data checked, folder claimed, all said."""
    check(config)
    with contextlib.closing(setup(config.device)) as world:
        config = with_precision(config, Path(output), world.device)
        data = open_datasets(config)
        seed_everything(config.seed)
        run = _prepare(config, world, data)
        with Recorder(
            output,
            config,
            kind="classify",
            main=world.is_main,
            dry=dry,
        ) as recorder:
            _claim(run, recorder, resume)
            recorder.announce(run.trained, world.device, run.step, _work(run))
            world.barrier()
            yield run, recorder


def _prepare(config: ClassifyConfig, world: Distributed, data: Datasets) -> _Run:
    loader = Loader(
        data.train,
        config.batch_size,
        seed=config.seed,
        shuffle=True,
        alternate=config.alternate_flips,
        drop_last=config.drop_last or len(data.train) % config.batch_size < 2 * world.world_size,
        num_workers=_num_workers(config, world, data.train),
        rank=world.rank,
        world_size=world.world_size,
        pin_memory=world.device.type == "cuda",
    )
    spec = network_spec(config, len(data.train.classes))
    network = spec.build()
    if isinstance(network, LabNetwork):
        network.whiten(normalize(_evenly_spaced(data.train, 5000), data.mean, data.std))
    trained: nn.Module = network
    if "early" in config.users():
        trained = EarlyHeadNetwork(network, after=config.early_after)
    forward: Any = world.place(
        trained, sync_batchnorm=config.sync_batchnorm, channels_last=config.channels_last
    )
    saliency_network: Any = trained
    early = trained.forward_early if isinstance(trained, EarlyHeadNetwork) else None
    if config.compile:
        # torch.compile wraps; checkpoints are taken from the module inside.
        forward, saliency_network = torch.compile(forward), torch.compile(trained)
        early = torch.compile(early) if early is not None else None
    optimizer = build_optimizer(config, trained)
    ema = ModelEma(network, config.ema) if config.ema else None
    look_ahead = LookAhead(network, config.look_ahead) if config.look_ahead else None
    if config.method == "manifold_mixup" and config.hidden_layers > len(stages_of(network)) + 1:
        raise ConfigError(
            f"hidden_layers={config.hidden_layers}: {config.arch} has {len(stages_of(network))} stages, and "
            "the images are one layer more"
        )
    teacher, started_from = None, None
    if config.teacher:
        loaded = load_teacher(config.teacher, data.train.classes)
        teacher, started_from = (
            loaded.network.to(world.device),
            identity_of(config.teacher, loaded.provenance),
        )
    cache = None
    if config.reuse_every > 1 and isinstance(data.train, MemoryImages):
        height, width = data.train.images.shape[2:]
        cache = SaliencyCache(len(data.train), (height, width))
    return _Run(
        config,
        world,
        data,
        loader,
        METHODS[config.method].build(config),
        network,
        spec,
        trained,
        forward,
        saliency_network,
        early,
        optimizer,
        ema,
        look_ahead,
        teacher,
        started_from,
        cache,
        torch.zeros(2, dtype=torch.float64, device=world.device),
    )


def _claim(run: _Run, recorder: Recorder, resume: bool) -> None:
    config, data = run.config, run.data
    state = recorder.claim(
        resume,
        name=config.name or f"{data.identity['name']}-{config.arch}-{config.method}",
        dataset=data.identity,
        synthetic=data.synthetic,
        shortened=bool(config.limit_train or config.limit_val or config.max_steps),
        started_from=run.started_from,
        root=config.root,
        device=str(run.world.device),
        processes=run.world.world_size,
        model=run.trained,
        optimizer=run.optimizer,
        ema=run.ema,
        look_ahead=run.look_ahead,
        loader=run.loader,
        saliency_cache=run.cache,
        history=run.history,
    )
    run.step = state["step"]
    run.saved = run.step > 0
    run.evaluated = state.get("evaluated", run.step)
    if run.world.is_main and "hits" in state:
        run.hits.copy_(state["hits"])  # of all processes together


def _evenly_spaced(images: Images, most: int) -> Tensor:
    """Some training images (N, 3, H, W) uint8, of all classes in whatever order they come."""
    indices = torch.linspace(0, len(images) - 1, min(most, len(images))).round().long()
    if isinstance(images, MemoryImages):
        return images.images[indices]
    return images.load(indices, torch.zeros_like(indices)).images


def _num_workers(config: ClassifyConfig, world: Distributed, images: Images) -> int:
    if config.num_workers >= 0:
        return config.num_workers
    return default_workers(world.device, in_memory=isinstance(images, MemoryImages))


def _total_steps(run: _Run) -> int:
    total = run.config.epochs * len(run.loader)
    return min(total, run.config.max_steps) if run.config.max_steps else total


def _work(run: _Run) -> str:
    steps, sizes = len(run.loader), f"{run.config.batch_size} images, method {run.config.method}"
    short = f", {run.config.max_steps} of them alone" if run.config.max_steps else ""
    return f"{run.config.epochs} epochs of {steps} steps{short} of {sizes}"


def _train(run: _Run, recorder: Recorder) -> None:
    config, total = run.config, _total_steps(run)
    with RunBar(total, run.step, disable=not run.world.is_main) as bar:
        _evaluate_if_due(run, recorder)  # interrupted between a checkpoint and its evaluation
        while run.step < total:
            epoch = run.loader.epoch
            run.trained.train()
            if run.loader.position == 0:
                run.hits.zero_()
            for batch in run.loader:
                loss = _step(run, batch, recorder.last_checkpoint)
                run.step += 1
                bar.step(epoch=epoch + 1, loss=loss)
                if run.step % config.log_every == 0 or run.step == total:
                    rate = run.optimizer.param_groups[0]["lr"]
                    recorder.log(run.step, {"train/loss": loss, "train/lr": rate})
                if run.step == total:
                    break
                recorder.stop_if_asked(run.step, lambda: _save(run, recorder), run.world)
                if config.checkpoint_every and run.step % config.checkpoint_every == 0:
                    _save(run, recorder)
            if not run.saved:  # an evaluation may fail
                _save(run, recorder)
            _evaluate_if_due(run, recorder)
            _save(run, recorder)


def _step(run: _Run, batch: Batch, last_checkpoint: Path | None) -> float:
    config, device = run.config, run.world.device
    # Every step has its own streams: a resumed run, whatever it drew before, goes on as the first one.
    torch.manual_seed(derive_seed(config.seed, "network", run.step, run.world.rank))
    generator = make_generator(config.seed, "augment", run.step, run.world.rank)
    labels = to_device(batch.labels, device)
    images, strong = _views(run, batch, generator)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        heat, read_heat, drawn = None, None, None
        whitening = run.step < config.whitening_epochs * len(run.loader)
        if isinstance(run.network, LabNetwork):
            # DDP waits for the gradients that it knows of.
            run.network.whitening_bias.requires_grad_(whitening or run.world.active)
        if METHODS[config.method].needs_saliency:
            own = run.augment.augment if isinstance(run.augment, Cutting | Mixing) else None
            if isinstance(own, KeepCutout | KeepRandomErasing | KeepCutMix):
                drawn = own.draw(images, generator=generator)
            only = None if drawn is None else drawn.applied
            heat, read_heat = only_finite(_heat(run, images, labels, batch, only))
        progress = run.step / (config.epochs * len(run.loader))
        augment = run.augment.at(progress) if isinstance(run.augment, Cutting) else run.augment
        if config.drop_path or config.drop_block:
            schedule_drops(run.network, progress)
        inputs, targets = augment(Views(images, labels, strong, heat, drawn), generator)
        loss = _forward(run, inputs, targets) * run.loader.weight
    logged = run.step + 1 == _total_steps(run) or (run.step + 1) % config.log_every == 0
    read_loss = start_reading(run.world.sum(loss) / run.world.world_size if logged else loss)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if isinstance(run.network, LabNetwork) and not whitening:
        run.network.whitening_bias.grad = None
    if config.clip_norm:
        nn.utils.clip_grad_norm_(run.trained.parameters(), config.clip_norm)
    set_learning_rate(run.optimizer, learning_rate(config, run.step, len(run.loader)))
    run.optimizer.step()
    if run.ema is not None:
        decay = ema_decay(run.step, _total_steps(run), config.ema, ramp=config.ema_ramp)
        run.ema.update(run.network, decay)
    if run.look_ahead is not None:
        done, total = run.step + 1, config.epochs * len(run.loader)
        run.look_ahead.update(run.network, done, total, last=done == _total_steps(run))
    # Here, so that a GPU has the rest of the step to do while the host waits.
    if read_heat is not None:
        check_finite(float(read_heat()), run.step, last_checkpoint, what="saliency")
    value = float(read_loss())
    check_finite(value, run.step, last_checkpoint)
    return value


def _heat(run: _Run, images: Tensor, labels: Tensor, batch: Batch, only: Tensor | None) -> Tensor:
    """What the method sees as important, computed now (where `only` says so) or in an earlier epoch."""
    if run.config.saliency == "noise":
        return _controlled(run, images[:, 0])
    if run.config.saliency == "other":  # the next image may need what this one does not
        only = None
    return _controlled(run, _own_heat(run, images, labels, batch, only))


def _controlled(run: _Run, heat: Tensor) -> Tensor:
    """The maps (N, H, W) as they are, or for a control those of other images, or chance."""
    if run.config.saliency == "other":
        return heat.roll(1, dims=0)
    if run.config.saliency == "noise":
        # A stream of its own: the regions are drawn with the same numbers as with any other map.
        generator = make_generator(run.config.seed, "noise", run.step, run.world.rank)
        return to_device(torch.rand(heat.shape, generator=generator), heat.device)
    return heat


def _own_heat(run: _Run, images: Tensor, labels: Tensor, batch: Batch, only: Tensor | None) -> Tensor:
    config, cache, data = run.config, run.cache, run.data.train
    if cache is None or batch.seeds is None or not isinstance(data, MemoryImages):
        return _fresh_heat(run, images, labels, only)
    place = data.place_of(batch.seeds)

    def compute(rows: Tensor) -> Tensor:
        if len(rows) == len(images):
            return _fresh_heat(run, images, labels)
        rows = to_device(rows, images.device)
        return _fresh_heat(run, images[rows], labels[rows])

    epoch, every = run.loader.epoch, config.reuse_every
    heat = carried_or_fresh(cache, batch.indices, place, compute, epoch=epoch, every=every)
    return to_device(heat, images.device)


def _fresh_heat(run: _Run, images: Tensor, labels: Tensor, only: Tensor | None = None) -> Tensor:
    config = run.config
    if config.method == "attentive_cutmix" and config.attention == "features":
        return feature_attention(run.teacher or run.network, images)
    if run.teacher is not None:
        return compute_saliency(run.teacher, images, labels, config.saliency, only=only)
    return compute_saliency(
        run.saliency_network,
        images,
        labels,
        config.saliency,
        only=only,
        early_map=config.early_map,
        forward_early=run.forward_early,
    )


def _forward(run: _Run, inputs: Tensor, targets: Labels) -> Tensor:
    if run.config.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if isinstance(targets, HiddenMix):
        with mix_hidden_features(stages_of(run.network), targets):
            return loss_of(run.forward(inputs), targets.labels, run.config)
    output = run.forward(inputs)
    if isinstance(targets, Tensor):
        logits = output[0] if isinstance(output, tuple) else output
        run.hits[0] += (logits.detach().argmax(dim=1) == targets).sum()
        run.hits[1] += len(logits)
    return loss_of(output, targets, run.config)


def _views(run: _Run, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """The views of a batch, normalised; what is no policy is one draw for all of them."""
    config, device = run.config, run.world.device
    images = to_device(batch.images, device)
    strong = None if batch.strong is None else to_device(batch.strong, device)
    if config.jitter or config.lighting:
        strength = {"jitter": config.jitter, "lighting": config.lighting}
        colours = draw_colours(len(images), **strength, generator=generator)
        images, strong = change_colours(images, strong, colours)
    return _pixels(run, images), None if strong is None else _pixels(run, strong)


def _pixels(run: _Run, images: Tensor) -> Tensor:
    if images.ndim == 5:  # several views
        return _pixels(run, images.flatten(0, 1)).unflatten(0, images.shape[:2])
    pixels = normalize(to_device(images, run.world.device), run.data.mean, run.data.std)
    return pixels.contiguous(memory_format=torch.channels_last) if run.config.channels_last else pixels


@torch.no_grad()
def _evaluate(run: _Run) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent of the averaged weights, or of the last ones."""
    network = run.ema.model if run.ema is not None else run.network
    network.eval()
    in_memory = isinstance(run.data.val, MemoryImages)  # and nothing to compute
    loader = Loader(
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
        pixels = _pixels(run, batch.images)
        logits = network(pixels).cpu()
        if run.config.mirrored_test:
            logits = (logits + network(pixels.flip(-1)).cpu()) / 2
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        counts += torch.tensor([best[:, 0].sum(), best.sum(), len(best)], dtype=torch.float64)
    counts = run.world.sum(counts.to(run.world.device if run.world.device.type == "cuda" else "cpu")).cpu()
    return {"accuracy": 100 * float(counts[0] / counts[2]), "top5": 100 * float(counts[1] / counts[2])}


def _evaluate_if_due(run: _Run, recorder: Recorder) -> None:
    """After the last step, and after each epoch that `eval_every` names."""
    between_epochs = run.loader.position == 0 and run.loader.epoch % run.config.eval_every == 0
    if run.step == run.evaluated or not (run.step >= _total_steps(run) or between_epochs):
        return
    values = run.values = _evaluate(run)
    run.history.append(values["accuracy"])
    run.evaluated = run.step
    running = {f"train/{key}": value for key, value in _train_accuracy(run).items()}
    recorder.log(run.step, {f"val/{key}": value for key, value in values.items()} | running)
    if run.world.is_main:
        say(f"step {run.step}: accuracy {values['accuracy']:.2f} %")


def _train_accuracy(run: _Run) -> dict[str, float]:
    """On the epoch's augmented images, in percent, by each step's weights; empty where labels are mixed."""
    right, total = run.world.sum(run.hits).tolist()
    return {"accuracy": 100 * right / total} if total else {}


def _save(run: _Run, recorder: Recorder) -> None:
    if run.cache is not None and run.world.active:
        run.cache.share(lambda part: run.world.sum(part.to(run.world.device)).cpu())
    run.saved = True
    recorder.save(run.step, hits=run.world.sum(run.hits), evaluated=run.evaluated)


def _finish(run: _Run, recorder: Recorder) -> dict[str, float]:
    config, history = run.config, run.history
    values = run.values or _evaluate(run)
    metrics = {
        **values,
        **{f"train_{key}": value for key, value in _train_accuracy(run).items()},
        "best": max(history, default=values["accuracy"]),
        "median_last_20": statistics.median(history[-20:] or [values["accuracy"]]),
    }
    if not run.world.is_main:
        return metrics
    save_classifier(
        recorder.path / "weights.pt",
        run.network,
        run.spec,
        classes=run.data.train.classes,
        mean=run.data.mean,
        std=run.data.std,
        provenance=recorder.provenance | {"steps": run.step, "metrics": metrics},
        averaged=run.ema.state_dict() if run.ema is not None else None,
        early=run.trained if isinstance(run.trained, EarlyHeadNetwork) else None,
    )
    artifacts = {"weights": "weights.pt"}
    if config.pictures:
        artifacts["pictures"] = _draw(run, recorder.path / "augmented.png").name
    extra = {"steps": run.step, "history": history, "world_size": run.world.world_size}
    recorder.finish(metrics, artifacts=artifacts, extra=extra)
    return metrics


def _draw(run: _Run, path: Path) -> Path:
    num = min(8, len(run.data.train))
    indices = torch.arange(num) * len(run.data.train) // num  # folders are sorted by class
    batch = run.data.train.load(indices, torch.arange(len(indices)) * 2**21 + 1)
    generator = make_generator(run.config.seed, "pictures")
    images, strong = _views(run, batch, generator)
    labels = batch.labels.to(images.device)
    heat = (
        _controlled(run, _fresh_heat(run, images, labels))
        if METHODS[run.config.method].needs_saliency
        else compute_saliency(run.trained, images, labels, "full")
    )
    inputs, _ = run.augment(Views(images, labels, strong, heat), generator)
    inputs = inputs[-len(images) :]  # the last view, where there are several
    recipe = recipe_of(run.config)
    facts = [f"{key} {recipe[key]}" for key in ("size", "tau", "p") if key in recipe]
    rows = [("image", images), ("\n".join([run.config.method, *facts]), inputs)]
    titles = [run.data.train.classes[int(label)] for label in batch.labels]
    return draw_views(rows, heat, path, mean=run.data.mean, std=run.data.std, titles=titles)
