"""Detectron2 as the engine: its trainer, data loaders, evaluator and checkpoints under our checks.

This is the reference engine. What differs from Detectron2's own training script: images are read by the
project's one reader, what is drawn depends on the seed and the iteration alone, so that a resumed run is the
uninterrupted one, checkpoints are replaced atomically, several CPU processes work, and loaded backbones are
compared with their file, because Detectron2 only warns when nothing was loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import logging
import random
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.utils.data import DataLoader, Dataset, Sampler
from yacs.config import CfgNode

from detection.architecture import bare_key
from detection.checks import load_detectron2_file, newest_checkpoint, read_for_detectron2
from detection.coco import CocoDataset
from detection.config import ConfigError
from detection.evaluation import coco_results, evaluate, save_results
from detection.tool import checkpoints
from keepaug.data.reading import read_image
from keepaug.runs.checkpoint import checked, first_non_finite, restoring
from keepaug.runs.distributed import Distributed, fix_order_if_asked
from keepaug.runs.errors import EXIT_STOPPED, LostProcessError, StopRequestedError
from keepaug.runs.files import write_atomic, write_text_atomic
from keepaug.runs.loggers import Logger
from keepaug.runs.progress import RunBar, say
from keepaug.runs.recorder import Clock
from keepaug.runs.rehearsal import rehearse
from keepaug.runs.seeds import derive_seed
from keepaug.runs.shapes import check_shape
from keepaug.runs.stopping import StopSignals, iterate

try:
    import detectron2.utils.comm as comm
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.data import (
        DatasetCatalog,
        DatasetFromList,
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
    )
    from detectron2.data import transforms as T
    from detectron2.data.build import _train_loader_from_config  # the only way to the sampler of a config
    from detectron2.engine import (
        AMPTrainer,
        DefaultTrainer,
        SimpleTrainer,
        TrainerBase,
        create_ddp_model,
        default_setup,
    )
    from detectron2.engine import launch as launch_processes
    from detectron2.engine.hooks import PeriodicCheckpointer, PeriodicWriter
    from detectron2.evaluation import DatasetEvaluator
    from detectron2.structures import BoxMode
    from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
    from detectron2.utils.logger import setup_logger
except ImportError as error:
    raise ImportError(
        "the detectron2 engine needs Detectron2 (python tools/install_detectron2_wheel.py, or build it from "
        "https://github.com/facebookresearch/detectron2); --engine torchvision does without"
    ) from error

RESULTS_FILE = "inference/coco_instances_results.json"
_TRAINER = {
    "iteration": int,
    "hooks?": {"LRScheduler?": {"base_lrs": [float], "last_epoch": int, str: Any}, str: Any},
    "_trainer?": {"iteration": int, "optimizer": {str: Any}, str: Any},
    "loss_normalizer?": (float, None),
    str: Any,
}
CHECKPOINT = {"model": {str: torch.Tensor}, "trainer?": _TRAINER, str: Any}
"""What model_*.pth of this engine holds; without "trainer" it is another's."""
_NOT_WEIGHTS = ("num_batches_tracked", "pixel_mean", "pixel_std", "cell_anchors")


class WeightsNotLoadedError(RuntimeError):
    """Tensors of the model are not those of the weights file."""


@dataclass(frozen=True)
class LoadReport:
    """What a weights file left in a model.

    Attributes:
        loaded: model keys whose tensors equal the file's.
        unequal: model keys that the file has, with another shape or other values.
        missing: model keys that the file lacks.
        unused: file keys that no model key took.
    """

    loaded: list[str]
    unequal: list[str]
    missing: list[str]
    unused: list[str]

    def __str__(self) -> str:
        def some(keys: list[str]) -> str:
            return f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""

        return (
            f"{len(self.loaded)} tensors loaded, {len(self.missing)} not in the file{some(self.missing)}, "
            f"{len(self.unequal)} unequal{some(self.unequal)}, {len(self.unused)} of the file unused"
            f"{some(self.unused)}"
        )


def compare_loaded(model: Mapping[str, torch.Tensor], file: Mapping[str, torch.Tensor]) -> LoadReport:
    """Hold a loaded model's state against the weights file, tensor by tensor.

    Args:
        model: the detector's `state_dict`.
        file: keys of a detector (`backbone.bottom_up.res2...`) or of a bare backbone (`res2...`).
    """
    loaded: list[str] = []
    unequal: list[str] = []
    missing: list[str] = []
    used: set[str] = set()
    for key, value in model.items():
        if key.endswith(_NOT_WEIGHTS):
            continue
        if (name := next((name for name in (key, bare_key(key)) if name in file), None)) is None:
            missing.append(key)
            continue
        used.add(name)
        tensor = torch.as_tensor(file[name])
        same = tensor.shape == value.shape and torch.equal(tensor.to(value.dtype), value.cpu())
        (loaded if same else unequal).append(key)
    unused = [key for key in file if key not in used and not key.endswith(_NOT_WEIGHTS)]
    return LoadReport(loaded, unequal, missing, unused)


_RESNET = ("stem.", "res2.", "res3.", "res4.", "res5.")


def check_loaded(report: LoadReport, weights: str | Path, *, whole_detector: bool) -> None:
    """Raise unless all backbone tensors (or all tensors, for an evaluation) came from the file.

    Raises:
        WeightsNotLoadedError: names the first tensors that did not.
    """
    wanted = report.missing + report.unequal
    if not whole_detector:
        wanted = [key for key in wanted if bare_key(key).startswith(_RESNET)]
    if wanted:
        what = "the detector" if whole_detector else "the backbone"
        remedy = (
            "give the checkpoint of a trained detector with the same configuration"
            if whole_detector
            else "convert the classifier with keepaug convert and check MODEL.RESNETS against it"
        )
        raise WeightsNotLoadedError(
            f"{len(wanted)} tensors of {what} were not loaded from {weights} ({', '.join(wanted[:3])}"
            f"{', ...' if len(wanted) > 3 else ''}); {remedy}"
        )


def register(name: str, dataset: CocoDataset) -> None:
    """Put a dataset into Detectron2's catalogue in place of its own of that name."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    records = [
        {
            **record,
            "annotations": [
                {**annotation, "bbox_mode": BoxMode.XYWH_ABS} for annotation in record["annotations"]
            ],
        }
        for record in dataset.records
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=dataset.thing_classes, normalised=dataset)


class _Mapper(DatasetMapper):
    """Detectron2's, with pixels from the project's one reader of images."""

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        record = copy.deepcopy(record)
        image = np.asarray(read_image(record["file_name"], size=(record["height"], record["width"])))
        if self.image_format == "BGR":
            image = np.ascontiguousarray(image[:, :, ::-1])
        seen = T.AugInput(image)
        transforms = self.augmentations(seen)
        record["image"] = torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        if self.is_train:
            self._transform_annotations(record, transforms, seen.image.shape[:2])
        else:
            record.pop("annotations", None)
        return record


class _Batches(Sampler[list[tuple[int, int]]]):
    """Batches of (number of the draw, position) from a sampler's stream, from batch `start` on.

    Args:
        stream: Detectron2's sampler of this process.
        size: of a batch.
        wide: of each image, whether wide and tall ones come apart.
    """

    def __init__(self, stream: Iterable[int], size: int, wide: Sequence[bool]) -> None:
        self.stream, self.size, self.wide, self.start = stream, size, wide, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        number = 0
        for draw, position in enumerate(self.stream):
            bucket = buckets[self.wide[position]]
            bucket.append((draw, position))
            if len(bucket) == self.size:
                if number >= self.start:
                    yield list(bucket)
                number += 1
                bucket.clear()


class _Samples(Dataset[dict[str, Any]]):
    """Mapped images; what an augmentation draws depends on the seed and the number of the draw alone."""

    def __init__(self, records: Sequence[dict[str, Any]], mapper: _Mapper, seed: int) -> None:
        self.records, self.mapper, self.seed = DatasetFromList(records, copy=False), mapper, seed

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        draw, position = item
        seed = derive_seed(self.seed, "images", comm.get_rank(), draw) % 2**32
        random.seed(seed)
        np.random.seed(seed)  # Detectron2's augmentations draw from it
        return self.mapper(self.records[position])


class _Checkpointer(DetectionCheckpointer):
    """Writes to a temporary file, then renames: a kill while saving leaves the previous checkpoint usable."""

    clock: Clock | None = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Everything that is loaded comes through here: Detectron2's own loader runs what a pickle says."""
        return read_for_detectron2(filename)

    def save(self, name: str, **extra: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        state = {"model": self.model.state_dict(), **extra}
        state.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        path = Path(self.save_dir) / f"{name}.pth"
        if bad := first_non_finite(state):
            raise FloatingPointError(f"{bad} is no longer finite, so {path} is not written")
        write_atomic(path, lambda file: torch.save(state, file))
        self.tag_last_checkpoint(path.name)
        if self.clock is not None:
            self.clock.keep()
        self.logger.info("Saved %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text_atomic(Path(self.save_dir) / "last_checkpoint", last_filename_basename)


class _Evaluator(DatasetEvaluator):
    """Collects detections of all processes, writes them as COCO results and scores them."""

    def __init__(self, dataset: CocoDataset, path: Path) -> None:
        self._dataset, self._path = dataset, path

    def reset(self) -> None:
        self._results: list[dict[str, Any]] = []

    def process(self, inputs: Any, outputs: Any) -> None:
        for record, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            self._results += coco_results(
                found.pred_boxes.tensor, found.scores, found.pred_classes, record["image_id"], self._dataset
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        parts = comm.gather(self._results)
        if not comm.is_main_process():
            return {}
        results = [result for part in parts for result in part]
        save_results(self._path, results)
        return {"bbox": evaluate(self._dataset, results).metrics}


class _Figures(EventWriter):
    """Sends what Detectron2 logs to the run's other loggers.

    Args:
        loggers: of the run.
        max_iter: its iterations; with fewer it has failed.
    """

    def __init__(self, loggers: Sequence[Logger], max_iter: int) -> None:
        self.loggers, self.max_iter, self.written = loggers, max_iter, -1

    def write(self) -> None:
        steps: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(20).items():
            if iteration > self.written:
                steps.setdefault(iteration, {})[name] = value
        for iteration, values in sorted(steps.items()):
            self.written = iteration
            for logger in self.loggers:
                logger.log(min(iteration + 1, self.max_iter), values)  # the last evaluation comes after it

    def close(self) -> None:
        for logger in self.loggers:
            logger.close(failed=get_event_storage().iter + 1 < self.max_iter)


class _Stop(BaseException):
    """Ends Detectron2's loop, which prints the traceback of every Exception, after a step.

    Attributes:
        said: what the user is told.
    """

    def __init__(self, said: StopRequestedError) -> None:
        self.said = said


class Trainer(DefaultTrainer):
    """Detectron2's default trainer with our checkpointer, COCO evaluator and CPU processes.

    Args:
        cfg: the config.
        clock: of the run.
        signals: that ask to stop.
        loggers: opens those that figures go to besides Detectron2's own.
        writes: logs; False for a dry run.
    """

    def __init__(
        self,
        cfg: Any,
        clock: Clock | None = None,
        signals: StopSignals | None = None,
        *,
        loggers: Callable[[], list[Logger]] = list,
        writes: bool = True,
    ) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own builds the parts below with fixed choices
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        placement = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        parallel = create_ddp_model(model, broadcast_buffers=False, **placement)
        step = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step(parallel, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # This trainer's own state_dict holds optimizer, scheduler and iteration.
        self.checkpointer = _Checkpointer(parallel, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.clock, self.signals = clock, signals
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg, self.writes, self.open_loggers = cfg, writes, loggers
        self.register_hooks(self.build_hooks())
        self.bar = RunBar(self.max_iter, disable=True)

    @classmethod
    def build_model(cls, cfg: Any) -> Any:
        """Detectron2's model.

        Raises:
            ConfigError: the parts that the config names do not exist or do not fit.
        """
        try:
            return super().build_model(cfg)
        except (AssertionError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line  # a bare assert
            raise ConfigError(
                f"Detectron2 cannot build the network of this config ({type(error).__name__}: {reason})"
            ) from error

    @classmethod
    def build_train_loader(cls, cfg: Any) -> DataLoader[dict[str, Any]]:
        """The config's sampler and augmentations; its batches can begin anywhere."""
        parts = _train_loader_from_config(cfg, mapper=_Mapper(cfg, is_train=True))
        grouped, records = parts["aspect_ratio_grouping"], parts["dataset"]
        wide = [bool(grouped and record["width"] > record["height"]) for record in records]
        size = parts["total_batch_size"] // comm.get_world_size()
        return DataLoader(
            _Samples(records, parts["mapper"], cfg.SEED),
            batch_sampler=_Batches(parts["sampler"], size, wide),
            num_workers=parts["num_workers"],
            collate_fn=list,  # as it is
            generator=torch.Generator(),  # else it would take a number from those of the first step
        )

    def build_hooks(self) -> list[Any]:
        """Detectron2's, the checkpoint last: no line of metrics is missing of what it has done."""
        return sorted(super().build_hooks(), key=lambda hook: isinstance(hook, PeriodicCheckpointer))

    def build_writers(self) -> list[Any]:
        """Detectron2's, and the run's tracker."""
        if not self.writes:
            return []
        return [*super().build_writers(), _Figures(self.open_loggers(), self.max_iter)]

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
        """Detectron2's, with our mapper."""
        return build_detection_test_loader(cfg, dataset_name, mapper=_Mapper(cfg, is_train=False))

    def train(self) -> Any:
        """From where the checkpoint left the batches."""
        self._start_loading()
        with RunBar(self.max_iter, self.start_iter, disable=not comm.is_main_process()) as self.bar:
            return super().train()

    def _start_loading(self) -> None:
        self._trainer.data_loader.batch_sampler.start = self.start_iter
        self._trainer._data_loader_iter_obj = iterate(self._trainer.data_loader)

    def rehearse(self, runs: int) -> str:
        """A few steps, and what they say of so many runs; nothing is written."""
        self._start_loading()
        self.iter = self.start_iter
        with EventStorage(self.start_iter):
            left, device = self.max_iter - self.start_iter, torch.device(self.cfg.MODEL.DEVICE)
            return rehearse(self.run_step, left, device).lines(runs)

    def run_step(self) -> None:
        """One step; anchors and proposals are sampled from a seed of its own."""
        torch.manual_seed(derive_seed(self.cfg.SEED, "samples", comm.get_rank(), self.iter))
        # RetinaNet's focal loss is scripted: a process's third call would compile it, with other rounding.
        with torch.jit.optimized_execution(False):
            super().run_step()

    def after_train(self) -> None:
        """Detectron2's hooks; where a run is interrupted, without the line of metrics for the last step,
        which the whole run does not have.
        """
        if self.iter < self.max_iter:
            for hook in [one for one in self._hooks if isinstance(one, PeriodicWriter)]:
                self._hooks.remove(hook)
                for writer in hook._writers:
                    writer.close()
        self.iter = min(self.iter, self.max_iter)  # one more where there was only the evaluation to do
        super().after_train()

    def after_step(self) -> None:
        """Detectron2's hooks; then stop where that is asked for."""
        super().after_step()
        done = self.iter + 1
        loss = self.storage.histories().get("total_loss")
        self.bar.step(**({} if loss is None else {"loss": loss.latest()}))
        if self.signals is None or done == self.max_iter:
            return
        rank, size = comm.get_rank(), comm.get_world_size()
        world = Distributed(rank, size, comm.get_local_rank(), torch.device(self.cfg.MODEL.DEVICE))
        save = functools.partial(self.checkpointer.save, f"model_{self.iter:07d}", iteration=self.iter)
        if not comm.is_main_process():
            save = comm.synchronize
        try:
            self.signals.stop_if_asked(Path(self.cfg.OUTPUT_DIR), done, save, world)
        except StopRequestedError as error:
            if comm.is_main_process():
                comm.synchronize()
            raise _Stop(error) from error

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, and the moving average that its RetinaNet divides losses by."""
        average = getattr(self.checkpointer.model, "loss_normalizer", None)
        return {**super().state_dict(), "loss_normalizer": average}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        super().load_state_dict(state_dict)
        if (average := state_dict.get("loss_normalizer")) is not None:
            self.checkpointer.model.loss_normalizer = average

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> _Evaluator:
        """On the normalised set, its results JSON under OUTPUT_DIR."""
        return _Evaluator(MetadataCatalog.get(dataset_name).normalised, Path(cfg.OUTPUT_DIR) / RESULTS_FILE)


def run(
    cfg: CfgNode,
    train: CocoDataset | None,
    val: CocoDataset,
    *,
    resume: bool = False,
    eval_only: bool = False,
    dry_run: int = 0,
    clock: Clock | None = None,
    header: Callable[..., str] | None = None,
    signals: StopSignals | None = None,
    loggers: Callable[[], list[Logger]] = list,
) -> None:
    """Train and evaluate (or only evaluate) in this process; one of several under `launch`.

    Leaves `RESULTS_FILE` and Detectron2's logs, metrics and checkpoints under `cfg.OUTPUT_DIR`.

    Args:
        cfg: Detectron2's own config, its device decided.
        train: the training split; None with `eval_only`.
        val: the split to evaluate on.
        resume: go on from the last checkpoint in `cfg.OUTPUT_DIR`; with `eval_only`, evaluate it.
        eval_only: evaluate `cfg.MODEL.WEIGHTS`, which must be a whole detector.
        dry_run: only a few steps, to say what so many runs will take; nothing is written.
        clock: of the run, kept with every checkpoint.
        header: see `keepaug.runs.recorder.Recorder.header`.
        signals: that ask to stop; None under `launch`, where each process has its own.
        loggers: opens those that figures go to besides Detectron2's own, in the process that writes.

    Raises:
        StopRequestedError: the run was asked to stop, and has written a checkpoint.
        WeightsNotLoadedError: the backbone (or with `eval_only` the detector) did not come from the file.
        RuntimeError: a loss became infinite or NaN; names the last good checkpoint.
    """
    register(cfg.DATASETS.TEST[0], val)
    if train is not None:
        register(cfg.DATASETS.TRAIN[0], train)
    _set_up(cfg, eval_only=eval_only, dry_run=bool(dry_run))
    fix_order_if_asked()  # in each process, whatever CUDNN_BENCHMARK says
    if eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = _Checkpointer(model, cfg.OUTPUT_DIR)
        last = newest_checkpoint(cfg.OUTPUT_DIR) if resume else None
        _load_and_check(checkpointer, str(last[0]) if last else cfg.MODEL.WEIGHTS, whole_detector=True)
        Trainer.test(cfg, model)
        return
    several = comm.get_world_size() > 1
    if (found := newest_checkpoint(cfg.OUTPUT_DIR) if resume else None) is not None:
        _refuse_other_engine(*found)
    if comm.is_main_process() and not dry_run:  # before the trainer opens the file
        start = 0 if found is None else found[1]["trainer"]["iteration"] + 1
        _forget_after(Path(cfg.OUTPUT_DIR) / "metrics.json", start)
    comm.synchronize()
    signals = StopSignals() if several else signals
    trainer = Trainer(cfg, clock, signals, loggers=loggers, writes=not dry_run)
    if found is not None:
        with restoring(found[0], "state"), checked(trainer.optimizer):
            trainer.checkpointer.load(str(found[0]))
        trainer.start_iter = trainer.iter + 1
        if trainer.start_iter > cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"{cfg.OUTPUT_DIR} has done {trainer.start_iter} iterations, more than SOLVER.MAX_ITER "
                f"{cfg.SOLVER.MAX_ITER}: give that many or more, or start a new run in another OUTPUT_DIR"
            )
    elif cfg.MODEL.WEIGHTS:
        _load_and_check(trainer.checkpointer, cfg.MODEL.WEIGHTS, whole_detector=False)
    if header is not None and comm.is_main_process():
        images = f"{cfg.SOLVER.IMS_PER_BATCH} images, {cfg.MODEL.META_ARCHITECTURE}"
        model, device = trainer.checkpointer.model, torch.device(cfg.MODEL.DEVICE)
        say(header(model, device, trainer.start_iter, f"{cfg.SOLVER.MAX_ITER} iterations of {images}"))
    if dry_run:
        said = trainer.rehearse(dry_run)
        if comm.is_main_process():
            say(said)
        return
    # It would print the traceback of what is said in one line, and raised, anyway.
    logging.getLogger(TrainerBase.__module__).addFilter(lambda record: record.exc_info is None)
    try:
        trainer.train()
    except _Stop as stop:
        if several:  # a process can tell its parent no more than a number
            raise SystemExit(EXIT_STOPPED) from None
        raise stop.said from None
    except FloatingPointError as error:
        good = next(iter(checkpoints(cfg.OUTPUT_DIR)), "none")
        raise RuntimeError(
            f"{error}; last good checkpoint: {good}. Lower SOLVER.BASE_LR or raise "
            "SOLVER.WARMUP_ITERS, then --resume"
        ) from error


def _set_up(cfg: CfgNode, *, eval_only: bool, dry_run: bool) -> None:
    """Detectron2's logs, whose file has everything and whose lines on the screen are the warnings; its
    seeds and speed. A dry run's log goes to a folder that is removed.
    """
    with tempfile.TemporaryDirectory() if dry_run else contextlib.nullcontext(cfg.OUTPUT_DIR) as folder:
        cfg, rank = cfg.clone(), comm.get_rank()
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
        cfg.freeze()
        setup_logger.cache_clear()
        for name in ("fvcore", "detectron2"):  # of an earlier run of this process
            logging.getLogger(name).handlers.clear()
        for logger in (
            setup_logger(folder, distributed_rank=rank, name="fvcore"),
            setup_logger(folder, distributed_rank=rank),
        ):
            for handler in logger.handlers:
                if getattr(handler, "stream", None) in (sys.stdout, sys.__stdout__):
                    handler.setLevel(logging.WARNING)
        default_setup(cfg, argparse.Namespace(config_file="", eval_only=eval_only))


def launch(work: Any, processes: int, *, output: Path, **where: Any) -> None:
    """Detectron2's `launch`, which tells of what happened in its processes in one line.

    Args:
        work: to do in each.
        processes: on this machine.
        output: the run's folder.
        where: `num_machines`, `machine_rank` and `dist_url`.

    Raises:
        StopRequestedError: they were asked to stop, and have written a checkpoint.
        LostProcessError: one of them has ended.
    """
    try:
        launch_processes(work, processes, **where)
    except ProcessExitedException as error:
        if error.exit_code == EXIT_STOPPED:
            raise StopRequestedError(
                f"stopped, with a checkpoint in {output}; the same command with --resume goes on"
            ) from error
        raise LostProcessError(
            f"{error}; the others were ended, the same command with --resume goes on from the last checkpoint"
        ) from error
    except ProcessRaisedException as error:
        raise LostProcessError(
            f"process {error.error_index}: {str(error).strip().splitlines()[-1]}"
        ) from error


def _forget_after(path: Path, start: int) -> None:
    """Leave what Detectron2 logged before iteration `start`: what came after it is done again."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else []
    kept, damaged = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["iteration"] < start:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += number < len(lines)  # the last was cut short
    if damaged:
        print(f"note: {path} is damaged, {damaged} of its {len(lines)} lines are lost", flush=True)
    if lines:
        write_text_atomic(path, "".join(kept))


def _refuse_other_engine(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Detectron2 would go on without optimizer and iteration, and say nothing."""
    check_shape(content, CHECKPOINT, checkpoint)
    if "trainer" not in content:
        raise ValueError(
            f"{checkpoint} was not written by Detectron2's trainer; resume it with --engine torchvision, or "
            "start a new run from it with MODEL.WEIGHTS"
        )


def _load_and_check(checkpointer: DetectionCheckpointer, weights: str, *, whole_detector: bool) -> None:
    logger = logging.getLogger("fvcore.common.checkpoint")
    logger.addFilter(_for_the_file)  # a backbone has no heads: no warning, and the report says it
    try:
        checkpointer.load(weights, checkpointables=[])
    finally:
        logger.removeFilter(_for_the_file)
    report = compare_loaded(checkpointer.model.state_dict(), load_detectron2_file(weights))
    check_loaded(report, weights, whole_detector=whole_detector)
    if comm.is_main_process():
        say(f"{weights}: {report}")


def _for_the_file(record: logging.LogRecord) -> bool:
    record.levelno, record.levelname = logging.INFO, "INFO"
    return True
