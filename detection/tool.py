"""The detectors' tool, for planning and report; and what of a Detectron2 config decides a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from detection.config import defaults, flat, load_config
from detection.sidecar import started_from
from keepaug.runs.planning import Tool
from keepaug.runs.result import plain

# Keys or beginnings of keys. Detectron2's config has no fields of ours to say it on. What the training starts
# from is compared by its contents (`started_from` of a result), not by its path.
BOOKKEEPING = (
    "MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD",
    "DATALOADER.NUM_WORKERS", "VIS_PERIOD", "VERSION", "SEED",
)  # fmt: skip
_PRECISION = ("SOLVER.AMP.", "CUDNN_BENCHMARK", "FLOAT32_PRECISION")


def recipe_of(cfg: CfgNode | Mapping[str, Any]) -> dict[str, Any]:
    """What decides the figures of a run but its seed, by dotted key.

    Keys of Detectron2 that its engine knows and this project does not are a part where they are not
    Detectron2's default: so the same YAML is the same recipe whoever has read it.
    """
    found = {key: one for key, one in flat(cfg).items() if not key.startswith((*BOOKKEEPING, *_PRECISION))}
    if not (beyond := found.keys() - flat(defaults()).keys()):
        return found
    from detectron2.config import get_cfg

    usual = plain(flat(get_cfg()))  # as a result file gives it back, or it is none of its keys' defaults
    return {key: value for key, value in found.items() if key not in beyond or plain(value) != usual.get(key)}


def precision_of(cfg: CfgNode | Mapping[str, Any]) -> dict[str, Any]:
    """How numbers are computed, by dotted key."""
    return {key: value for key, value in flat(cfg).items() if key.startswith(_PRECISION)}


def changed_settings(before: Mapping[str, Any], cfg: CfgNode) -> list[str]:
    """What a continuation would change of the run that wrote `before`; training longer is allowed."""
    was, now = plain(flat(before)), plain(flat(cfg))
    may = (*(set(BOOKKEEPING) - {"SEED"}), *_PRECISION, "SOLVER.MAX_ITER", "TEST.")
    return [
        f"{key} (was {was[key]!r}, is {value!r})"
        for key, value in now.items()
        if key in was
        and was[key] not in (value, *([-1] if key == "SEED" else []))
        and not key.startswith(may)
    ]


def checkpoints(output: str | Path) -> list[Path]:
    """A detector's checkpoints, of either engine, the newest first.

    That is the one that `last_checkpoint` names; a run that was killed between the two files, or has lost
    the second, goes on from the newest there is.
    """
    mark = Path(output) / "last_checkpoint"
    named = [Path(output) / mark.read_text(errors="replace").strip()] if mark.is_file() else []
    others = set(Path(output).glob("model_*.pth")) - set(named)
    return [*named, *sorted(others, key=lambda path: path.name, reverse=True)]


def has_run(output: Path) -> bool:
    """Whether a folder holds a detector's checkpoints, of either engine."""
    return bool(checkpoints(output))


_OWN = ("data_root=", "tracker=")


def _arguments(config: Path, output: Path, given: Sequence[str]) -> list[str]:
    """`data_root=COCO` and `tracker=NAME` are the tool's own, everything else a key of the config."""
    own = [item.removeprefix("data_") for item in given if item.startswith(_OWN)]
    keys = [part for item in given if not item.startswith(_OWN) for part in item.partition("=")[::2]]
    return ["--resume", "--config-file", str(config), "OUTPUT_DIR", str(output), *keys, *own]


def _load(path: Path | None, given: Sequence[str]) -> CfgNode:
    keys = [item.partition("=")[::2] for item in given if not item.startswith(_OWN)]
    return load_config(path, [part for pair in keys for part in pair])


def _origin(weights: str) -> Mapping[str, str] | None:
    """Of a backbone that is still to be converted the name alone."""
    if weights and not Path(weights).expanduser().is_file():
        return {"file": Path(weights).name, "sha256": ""}
    return started_from(weights)


TOOL = Tool(
    "train_detector",
    "detection",
    _load,
    dict,
    recipe_of,
    precision_of,
    lambda cfg: None,  # done by load
    _arguments,
    {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": "(1,)",
        "SOLVER.IMS_PER_BATCH": 1,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MAX_SIZE_TRAIN": 64,
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.MAX_SIZE_TEST": 64,
        "MODEL.ROI_HEADS.NUM_CLASSES": 4,
        "MODEL.RETINANET.NUM_CLASSES": 4,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 16,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 8,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
        "DATALOADER.NUM_WORKERS": 0,
    },
    origin=lambda cfg: _origin(str(cfg.MODEL.WEIGHTS)),
    root=lambda cfg: "",
    seed=lambda cfg: int(cfg["SEED"]),
    processes="--num-gpus",
    spent=("model_*.pth", "last_checkpoint"),
    has_run=has_run,
)
