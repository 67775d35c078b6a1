"""Everything about a job that can be wrong without a GPU: config, data, weights, engine, folder.

`prepare` looks for it before anything is trained; `detection.driver` runs what it returns.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from detection.coco import CocoDataError, CocoDataset, CocoPaths, check_same_categories, find_coco, load_coco
from detection.config import ConfigError, NotCarriedError, load_config, unfreeze
from detection.tool import has_run
from keepaug.runs.loggers import check_tracker

ENGINES = ("auto", "detectron2", "torchvision")
BACKENDS = ("auto", "hotcoco", "faster", "pycocotools")  # of the evaluation
FULL_COCO = {"train": 118_287, "val": 5_000}


@dataclass(frozen=True)
class DetectorJob:
    """One call of the tool; the fields are its options (see `keepaug train-detector --help`)."""

    config_file: Path | None
    opts: Sequence[str] = ()
    engine: str = "auto"
    resume: bool = False
    eval_only: bool = False
    num_gpus: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    data_root: Path | None = None
    train: CocoPaths | None = None
    val: CocoPaths | None = None
    max_images: int | None = None
    strict_boxes: bool = False
    results_json: Path | None = None
    backend: str = "auto"
    draw: int = 0
    tracker: str = "none"
    dry_run: int = 0
    """How many such runs a dry run speaks of; 0: it is none."""


@dataclass(frozen=True)
class Prepared:
    """A job whose config, data, weights and engine have been checked."""

    cfg: CfgNode
    engine: str
    train: CocoDataset | None
    val: CocoDataset
    dataset: dict[str, Any]
    shortened: bool
    notes: list[str] = field(default_factory=list)


def prepare(job: DetectorJob) -> Prepared:
    """Check config, engine, data and weights; nothing is trained or written.

    Raises:
        ConfigError: config, options and files do not fit together.
        CocoDataError: the annotations cannot be used.
    """
    check_tracker(job.tracker)
    engine, notes = choose_engine(job.engine)
    cfg = unfreeze(load_settings(job, engine))
    notes += _decide_device(cfg)
    if engine == "torchvision":
        _refuse_unhonoured(cfg)
    _check_processes(job, cfg, engine)
    notes += _check_output(job, cfg)
    notes += _decide_seed(job, cfg)
    notes += _check_weights(job, cfg)

    train_name, val_name = _only(cfg, "TRAIN"), _only(cfg, "TEST")
    names = [val_name] if job.eval_only else [train_name, val_name]
    paths = _find(job, names)
    key = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    splits = {
        name: load_coco(
            paths[name].json_path,
            paths[name].image_root,
            max_images=job.max_images,
            num_classes=cfg.MODEL[key].NUM_CLASSES,
            num_classes_key=f"MODEL.{key}.NUM_CLASSES",
            strict_boxes=job.strict_boxes,
            images=True,
        )
        for name in dict.fromkeys(names)
    }
    for name, split in splits.items():
        notes += [f"{name}: {line}" for line in split.notes]
    check_same_categories(splits[names[0]], splits[names[-1]])
    cfg.freeze()
    return Prepared(
        cfg=cfg,
        engine=engine,
        train=None if job.eval_only else splits[train_name],
        val=splits[val_name],
        dataset=describe(splits, train_name, val_name),
        shortened=_is_shortened(job, cfg, splits, engine),
        notes=notes,
    )


def scored_split(job: DetectorJob) -> CocoDataset:
    """The split that `--results-json` is scored on; its images need not be there."""
    assert job.results_json is not None
    cfg = load_settings(job, choose_engine(job.engine)[0])
    name = _only(cfg, "TEST") if cfg.DATASETS.TEST else "coco_2017_val"  # without --config-file
    paths = _find(job, [name])[name]
    return load_coco(
        paths.json_path, paths.image_root, max_images=job.max_images, strict_boxes=job.strict_boxes
    )


def choose_engine(engine: str) -> tuple[str, list[str]]:
    """`auto` is Detectron2 where it is installed.

    Raises:
        ConfigError: unknown engine, or Detectron2 is asked for and not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"--engine is {engine!r}; expected one of {', '.join(ENGINES)}")
    installed = importlib.util.find_spec("detectron2") is not None
    if engine == "detectron2" and not installed:
        raise ConfigError(
            "--engine detectron2, but Detectron2 is not installed: python "
            "tools/install_detectron2_wheel.py, or "
            "build it from https://github.com/facebookresearch/detectron2; --engine torchvision does without"
        )
    if engine != "auto":
        return engine, []
    if installed:
        return "detectron2", ["engine: detectron2 (installed; --engine torchvision is the other one)"]
    return "torchvision", [
        "engine: torchvision (Detectron2 is not installed); its training differs in small ways, so its "
        "results are labelled and never stand beside the paper's"
    ]


def describe(splits: dict[str, CocoDataset], train_name: str, val_name: str) -> dict[str, Any]:
    """Name, sizes and checksum of the data, as a result file records them."""
    sizes = {"val": len(splits[val_name].records)}
    if train_name in splits:
        sizes["train"] = len(splits[train_name].records)
    from keepaug.data.identity import data_name

    val = splits[val_name]
    card = _dataset_card(val)
    name = "coco" if _has_coco_classes(val) else data_name(val.json_path.with_suffix(""), val.thing_classes)
    return {
        "name": card.get("name", name),
        "sizes": sizes,
        "checksum": "+".join(splits[name].checksum for name in sorted(splits)),
        "synthetic": bool(card.get("synthetic", False)),
    }


def load_settings(job: DetectorJob, engine: str) -> CfgNode:
    """The job's config with its options, as the engine reads it."""
    cfg = _load(job, engine, job.opts)
    if job.max_images is not None and job.max_images < 1:
        raise ConfigError(f"--limit-images is {job.max_images}; expected 1 or more")
    return cfg


def _load(job: DetectorJob, engine: str, opts: Sequence[str] = (), *, check: bool = True) -> CfgNode:
    """Detectron2 knows more keys than we do, and is asked when there is nothing else to refuse."""
    try:
        cfg = load_config(job.config_file, opts, check=check)
        if engine != "detectron2":
            return cfg
    except NotCarriedError:
        if engine != "detectron2":
            raise
    from detectron2.config import get_cfg

    return load_config(job.config_file, opts, known=get_cfg(), check=check)


def _only(cfg: CfgNode, split: str) -> str:
    names = cfg.DATASETS[split]
    if len(names) != 1:
        raise ConfigError(f"DATASETS.{split} is {names}; exactly one data set is supported")
    return str(names[0])


def _find(job: DetectorJob, names: Sequence[str]) -> dict[str, CocoPaths]:
    data_root = job.data_root
    if data_root is None and (job.train is None or job.val is None):
        # Detectron2's own place
        data_root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"
    found = find_coco(data_root, train=job.train, val=job.val)
    for name in names:
        if name not in found:
            raise ConfigError(
                f"DATASETS names {name!r}; known are {', '.join(found)}, whose files --data-root or "
                "--train-json, --train-images, --val-json and --val-images name"
            )
        if not found[name].json_path.is_file():
            raise CocoDataError(
                f"{name}: no annotation file {found[name].json_path}; give --data-root with "
                "annotations/instances_*2017.json, or --train-json and --val-json"
            )
    return found


def _decide_device(cfg: CfgNode) -> list[str]:
    import torch

    from keepaug.runs.distributed import choose_device

    notes = []
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        notes.append("no CUDA device: training on the CPU (MODEL.DEVICE cpu)")
    chosen = choose_device(cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = chosen.type  # "cuda" is each process's own, and "cuda:0" would be everybody's
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED:
        cfg.SOLVER.AMP.ENABLED = False
        notes.append("mixed precision is off: it needs a CUDA device")
    return notes


def _decide_seed(job: DetectorJob, cfg: CfgNode) -> list[str]:
    """SEED -1 is any, and then the run's for good: a result must name it."""
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if cfg.SEED >= 0:
        return []
    if job.resume and saved.is_file():
        cfg.SEED = int(load_config(saved, known=cfg, check=False).SEED)
    if cfg.SEED < 0:
        cfg.SEED = secrets.randbelow(2**31)
    return [f"SEED is {cfg.SEED}"]


def _refuse_unhonoured(cfg: CfgNode) -> None:
    from detection.config import defaults
    from detection.torchvision_engine.honoured import unhonoured

    if keys := unhonoured(cfg, defaults()):
        raise ConfigError("the torchvision engine does not honour: " + "; ".join(map(str, keys)))


def _check_processes(job: DetectorJob, cfg: CfgNode, engine: str) -> None:
    processes = job.num_gpus * job.num_machines
    if job.num_gpus < 1 or job.num_machines < 1 or not 0 <= job.machine_rank < job.num_machines:
        raise ConfigError(
            f"--num-gpus {job.num_gpus} --num-machines {job.num_machines} --machine-rank {job.machine_rank}: "
            "the first two must be 1 or more, the rank below the number of machines (on a CPU, --num-gpus "
            "counts processes)"
        )
    import torch

    available = torch.cuda.device_count()
    if cfg.MODEL.DEVICE.startswith("cuda") and job.num_gpus > available:
        raise ConfigError(f"--num-gpus {job.num_gpus}, but this machine has {available}")
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is the batch of all processes together and "
            f"cannot be split over {processes}"
        )
    if engine == "torchvision" and processes > 1:
        raise ConfigError("the torchvision engine trains in one process: --num-gpus 1 or --engine detectron2")


def _check_output(job: DetectorJob, cfg: CfgNode) -> list[str]:
    """What the recorder cannot say, since checkpoints are the engines' own."""
    output = Path(cfg.OUTPUT_DIR)
    if not job.resume or has_run(output):
        return []
    if job.eval_only:
        raise ConfigError(f"--eval-only --resume, but there is no checkpoint in {output}")
    return [f"nothing to resume in {output}: starting from the beginning"]


def _check_weights(job: DetectorJob, cfg: CfgNode) -> list[str]:
    from detection.checks import check_weights_against_config

    output = Path(cfg.OUTPUT_DIR)
    if job.resume and has_run(output):
        return []  # WEIGHTS is not used
    weights = cfg.MODEL.WEIGHTS
    model = cfg.MODEL
    if not weights:
        if job.eval_only:
            raise ConfigError("--eval-only needs MODEL.WEIGHTS (a trained detector), or --resume")
        if model.RESNETS.NORM == "FrozenBN" or model.BACKBONE.FREEZE_AT > 0:
            raise ConfigError(
                "MODEL.WEIGHTS is empty, but frozen layers cannot learn (MODEL.RESNETS.NORM "
                f"{model.RESNETS.NORM!r}, MODEL.BACKBONE.FREEZE_AT {model.BACKBONE.FREEZE_AT}): give "
                "weights, or MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0 to learn from random ones"
            )
        return ["MODEL.WEIGHTS is empty: learning from random weights"]
    if "://" in weights:
        raise ConfigError(f"MODEL.WEIGHTS is {weights!r}; download the file and give its path")
    if not Path(weights).is_file():
        raise ConfigError(
            f"MODEL.WEIGHTS: there is no file {weights}; keepaug convert --weights CLASSIFIER --output "
            f"{weights} makes it"
        )
    if job.eval_only:
        return []
    c4 = model.META_ARCHITECTURE == "GeneralizedRCNN" and model.ROI_HEADS.NAME == "Res5ROIHeads"
    if c4 and model.RESNETS.DEPTH in (18, 34):
        raise ConfigError(
            f"MODEL.WEIGHTS cannot be used for a C4 detector with MODEL.RESNETS.DEPTH {model.RESNETS.DEPTH}: "
            "its head is a res5 of bottleneck blocks, which ResNet-18 and 34 do not have; take depth 50 or "
            "FPN"
        )
    return check_weights_against_config(weights, cfg)


def _has_coco_classes(dataset: CocoDataset) -> bool:
    names = dataset.thing_classes
    return len(names) == 80 and (names[0], names[-1]) == ("person", "toothbrush")


def _dataset_card(dataset: CocoDataset) -> dict[str, Any]:
    """The `dataset.json` that drawn data sets carry in their root."""
    for folder in (
        *list(dataset.image_root.parents)[:1],
        dataset.image_root,
        *list(dataset.json_path.parents)[:2],
    ):
        from keepaug.data.identity import read_card

        if card := read_card(folder):
            return card
    return {}


def _is_shortened(job: DetectorJob, cfg: CfgNode, splits: dict[str, CocoDataset], engine: str) -> bool:
    """Less than the config or COCO itself asks for: such a figure must not stand beside a full one."""
    if job.max_images is not None:
        return True
    recipe = _load(job, engine, check=False)
    if cfg.SOLVER.MAX_ITER < recipe.SOLVER.MAX_ITER:
        return True
    for name, dataset in splits.items():
        split = "train" if name == cfg.DATASETS.TRAIN[0] else "val"
        if _has_coco_classes(dataset) and len(dataset.records) < FULL_COCO[split]:
            return True
    return False
