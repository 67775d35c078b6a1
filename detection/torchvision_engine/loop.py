"""Training and prediction of the torchvision engine."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from torchvision.ops import FrozenBatchNorm2d

from detection.checks import load_detectron2_file, newest_checkpoint
from detection.coco import CocoDataset
from detection.evaluation import coco_results
from detection.tool import checkpoints
from detection.torchvision_engine.build import Detector, RetinaNet, build_model
from detection.torchvision_engine.data import EvaluationImages, Sample, TrainingBatches, usable
from detection.torchvision_engine.weights import load_backbone, load_detectron2_state, to_detectron2_state
from keepaug.runs.checkpoint import checked, first_non_finite, restoring
from keepaug.runs.distributed import fix_order_if_asked
from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.files import write_atomic, write_text_atomic
from keepaug.runs.guard import check_finite
from keepaug.runs.progress import RunBar, progress
from keepaug.runs.recorder import Clock, Recorder
from keepaug.runs.rehearsal import Rehearsal
from keepaug.runs.rehearsal import rehearse as rehearse_steps
from keepaug.runs.seeds import derive_seed, seed_everything
from keepaug.runs.shapes import check_shape
from keepaug.runs.stopping import iterate

LOG_EVERY = 20
CHECKPOINT = {
    "model": {str: Tensor},
    "iteration": int,
    "engine_state": {"optimizer": {str: Any}, "normaliser": (float, None), "seed": int},
    "counters": {str: Tensor},
}
"""What model_*.pth of this engine holds."""
_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def build_optimizer(cfg: Any, model: nn.Module) -> SGD:
    """SGD with Detectron2's groups: no weight decay on norms, its own factors for biases."""
    solver = cfg.SOLVER
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rate, decay = 1.0, solver.WEIGHT_DECAY
            if isinstance(module, _NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            if name == "bias":
                rate = solver.BIAS_LR_FACTOR
                decay = decay if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
            groups.setdefault((rate, decay), []).append(parameter)
    return SGD(
        [
            {"params": parameters, "weight_decay": decay, "factor": rate}
            for (rate, decay), parameters in groups.items()
        ],
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
    )


def learning_rate(cfg: Any, iteration: int) -> float:
    """Detectron2's warm-up, then steps or cosine."""
    solver = cfg.SOLVER

    def multiplier(step: float) -> float:
        if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
            end = solver.BASE_LR_END / solver.BASE_LR
            return float(end + 0.5 * (1 - end) * (1 + math.cos(math.pi * step / solver.MAX_ITER)))
        return float(solver.GAMMA ** sum(milestone <= step for milestone in solver.STEPS))

    length = min(solver.WARMUP_ITERS, solver.MAX_ITER)
    if iteration >= length:
        return float(solver.BASE_LR * multiplier(iteration))
    start = solver.WARMUP_FACTOR * multiplier(0)
    if solver.WARMUP_METHOD == "constant":
        return float(solver.BASE_LR * start)
    # A straight line to what the schedule says where the warm-up ends.
    share = iteration / length
    return float(solver.BASE_LR * (start * (1 - share) + multiplier(length) * share))


def _save(path: Path, model: Detector, optimizer: SGD, iteration: int, seed: int, clock: Clock) -> None:
    """A file that Detectron2 can evaluate too: its names under "model"."""
    normaliser = float(model.head.normaliser) if isinstance(model, RetinaNet) else None
    content = {
        "model": to_detectron2_state(model),
        "iteration": iteration,
        "engine_state": {"optimizer": optimizer.state_dict(), "normaliser": normaliser, "seed": seed},
        "counters": {key: v for key, v in model.state_dict().items() if key.endswith("num_batches_tracked")},
    }
    if bad := first_non_finite(content):
        raise NonFiniteLossError(
            f"{bad} is no longer finite after iteration {iteration}, so it is not saved; lower "
            f"SOLVER.BASE_LR or raise "
            f"SOLVER.WARMUP_ITERS, then --resume from {next(iter(checkpoints(path.parent)), 'the beginning')}"
        )
    write_atomic(path, lambda file: torch.save(content, file))
    write_text_atomic(path.with_name("last_checkpoint"), path.name)
    clock.keep()


def _restore(path: Path, content: dict[str, Any], model: Detector, optimizer: SGD) -> tuple[int, int]:
    """Number of iterations done, and the seed."""
    if "engine_state" not in content:
        raise ValueError(f"{path} was written by Detectron2; resume it with --engine detectron2")
    check_shape(content, CHECKPOINT, path)
    state = content["engine_state"]
    with restoring(path, "state"):
        load_detectron2_state(model, content["model"])
        model.load_state_dict(content["counters"], strict=False)
        with checked(optimizer):
            optimizer.load_state_dict(state["optimizer"])
        if isinstance(model, RetinaNet):
            model.head.normaliser.fill_(state["normaliser"])
    return content["iteration"] + 1, state["seed"]


def _clip(cfg: Any, model: nn.Module) -> None:
    """Each tensor's gradient on its own, as Detectron2 does."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        if clip.CLIP_TYPE == "norm":
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
        else:
            nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)


@dataclass
class _Run:
    """A run before its first step; `checkpoint` is the last one that was read or written."""

    model: Detector
    optimizer: SGD
    batches: Iterator[list[Sample]]
    start: int
    seed: int
    checkpoint: Path | None

    def step(self, cfg: Any, iteration: int) -> dict[str, Tensor]:
        """With the next batch; its losses."""
        batch = next(self.batches)
        torch.manual_seed(derive_seed(self.seed, "samples", iteration))  # anchors and proposals are sampled
        return _iterate(cfg, self.model, self.optimizer, batch, iteration, self.checkpoint)


def train(cfg: Any, dataset: CocoDataset, recorder: Recorder, *, resume: bool = False) -> Detector:
    """Train the config's detector; checkpoints go to OUTPUT_DIR.

    Stopped at any moment and called again with `resume`, it ends with the same weights: on a CPU bit for bit,
    as long as the number of threads (OMP_NUM_THREADS) is the same, because it decides the order of sums.

    Args:
        cfg: the config, device decided.
        dataset: the training split.
        recorder: of OUTPUT_DIR, which the run has claimed.
        resume: go on from the last checkpoint, if there is one.

    Returns:
        The trained detector in evaluation mode.

    Raises:
        ValueError: no usable image, weights that do not fit.
        NonFiniteLossError: the loss is no longer a number.
    """
    run = _begin(cfg, dataset, recorder, resume=resume)
    output = Path(cfg.OUTPUT_DIR)
    with RunBar(cfg.SOLVER.MAX_ITER, run.start) as bar:
        shown: dict[str, float] = {}
        for iteration in range(run.start, cfg.SOLVER.MAX_ITER):
            losses = run.step(cfg, iteration)
            done = iteration + 1
            last = done == cfg.SOLVER.MAX_ITER
            if done % LOG_EVERY == 0 or last:
                values = {name: float(value) for name, value in losses.items()}
                recorder.log(done, {**values, "lr": learning_rate(cfg, iteration)})
                shown = {"loss": values["total_loss"]}
            bar.step(**shown)
            path = output / ("model_final.pth" if last else f"model_{iteration:07d}.pth")
            save = functools.partial(
                _save, path, run.model, run.optimizer, iteration, run.seed, recorder.clock
            )
            if done % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or last:
                run.checkpoint = path
                save()
            if not last:
                recorder.stop_if_asked(done, save)
    return run.model.eval()


def rehearse(cfg: Any, dataset: CocoDataset, recorder: Recorder, *, resume: bool = False) -> Rehearsal:
    """Begin as `train` does, and take a few steps; nothing is written.

    Raises:
        ValueError: what `train` raises.
    """
    run = _begin(cfg, dataset, recorder, resume=resume)
    left, device = cfg.SOLVER.MAX_ITER - run.start, torch.device(cfg.MODEL.DEVICE)
    return rehearse_steps(lambda: run.step(cfg, run.start), left, device)


def _begin(cfg: Any, dataset: CocoDataset, recorder: Recorder, *, resume: bool) -> _Run:
    """Build, restore and announce."""
    output = Path(cfg.OUTPUT_DIR)
    if not (records := usable(dataset, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)):
        raise ValueError(f"{dataset.json_path}: no image has a box to learn from")
    seed = cfg.SEED if cfg.SEED >= 0 else torch.seed() % 2**31
    seed_everything(seed)
    _set_precision(cfg)
    model = build_model(cfg).to(cfg.MODEL.DEVICE)
    optimizer = build_optimizer(cfg, model)
    start, checkpoint = 0, None
    if resume and (found := newest_checkpoint(output)) is not None:
        checkpoint = found[0]
        start, seed = _restore(*found, model, optimizer)
        if start > cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"{checkpoint} has done {start} iterations, more than SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: "
                "give that many or more, or start a new run in another OUTPUT_DIR"
            )
    elif cfg.MODEL.WEIGHTS:
        number = load_backbone(model, load_detectron2_file(cfg.MODEL.WEIGHTS), cfg.MODEL.WEIGHTS)
        print(f"loaded {number} tensors from {cfg.MODEL.WEIGHTS}", flush=True)
    recorder.forget_after(start)
    data = TrainingBatches(records, cfg, seed, start)
    loader = iterate(DataLoader(data, batch_size=None, num_workers=cfg.DATALOADER.NUM_WORKERS))
    images = f"{cfg.SOLVER.IMS_PER_BATCH} images, {cfg.MODEL.META_ARCHITECTURE}"
    work = f"{cfg.SOLVER.MAX_ITER} iterations of {images}"
    recorder.announce(model, torch.device(cfg.MODEL.DEVICE), start, work)
    model.train()
    return _Run(model, optimizer, loader, start, seed, checkpoint)


def _set_precision(cfg: Any) -> None:
    """CUDA's settings; Detectron2 makes the same."""
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"
    fix_order_if_asked()


def _iterate(
    cfg: Any,
    model: Detector,
    optimizer: SGD,
    batch: list[Sample],
    iteration: int,
    checkpoint: Path | None,
) -> dict[str, Tensor]:
    device = torch.device(cfg.MODEL.DEVICE)
    targets = [{"boxes": sample.boxes.to(device), "labels": sample.labels.to(device)} for sample in batch]
    try:
        losses = model.losses([sample.image for sample in batch], targets)
    except FloatingPointError:  # the proposals are not finite: no loss can be
        check_finite(math.nan, iteration, checkpoint)
        raise
    total = torch.stack(list(losses.values())).sum()
    check_finite(float(total.detach()), iteration, checkpoint)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    _clip(cfg, model)
    rate = learning_rate(cfg, iteration)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.step()
    return {"total_loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}


def restore_model(cfg: Any, weights: str | Path) -> Detector:
    """The config's detector with a trained detector's weights (of either engine), in evaluation mode.

    Raises:
        WeightsError: not this detector's weights.
    """
    model = build_model(cfg).to(cfg.MODEL.DEVICE)
    load_detectron2_state(model, load_detectron2_file(weights))
    return model.eval()


@torch.no_grad()
def predict(cfg: Any, model: Detector, dataset: CocoDataset) -> list[dict[str, Any]]:
    """Detections on every image as COCO results (bbox x, y, width, height in the original's pixels).

    Args:
        cfg: the config.
        model: in evaluation mode.
        dataset: the images.
    """
    model.eval()
    data, workers = EvaluationImages(dataset.records, cfg), cfg.DATALOADER.NUM_WORKERS
    images = DataLoader(data, batch_size=None, num_workers=workers)
    results: list[dict[str, Any]] = []
    bar = progress(iterate(images), "evaluating", total=len(dataset.records))
    for record, image in zip(dataset.records, bar, strict=True):
        found = model.detect([image])[0]
        scale = record["width"] / image.shape[2], record["height"] / image.shape[1]
        results += _coco_results(found, record, scale, dataset)
    return results


def _coco_results(
    found: dict[str, Tensor], record: dict[str, Any], scale: tuple[float, float], dataset: CocoDataset
) -> list[dict[str, Any]]:
    boxes = found["boxes"].cpu().reshape(-1, 4) * torch.tensor([*scale, *scale])
    limit = torch.tensor([record["width"], record["height"]] * 2, dtype=torch.float32)
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    return coco_results(boxes, found["scores"], found["labels"], record["image_id"], dataset)
