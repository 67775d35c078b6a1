"""A run of seconds of each training loop, and what must be the same when it was interrupted."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from keepaug.__main__ import commands
from keepaug.data.synthetic import write_classification, write_detection
from keepaug.data.synthetic_reid import write_reid
from keepaug.runs.restricted import read_file

DETECTOR = Path(__file__).resolve().parents[2] / "configs" / "quickstart" / "detector.yaml"


class Run(NamedTuple):
    """A training run.

    Attributes:
        name: row of the table.
        tool: command that runs it.
        arguments: without the folder.
        processes: how it takes several: by the environment, or its own option.
    """

    name: str
    tool: str
    arguments: tuple[str, ...]
    option: str | None = None

    def argv(self, output: Path, *more: str) -> list[str]:
        """The command line."""
        place = ["OUTPUT_DIR", str(output)] if self.tool == "train-detector" else ["--output", str(output)]
        options = [item for item in more if item.startswith("--")]
        return [*options, *self.arguments, *place, *(item for item in more if item not in options)]

    @property
    def main(self) -> Callable[[Sequence[str]], int]:
        """The tool."""
        return main_of(self.tool)


@functools.cache
def main_of(tool: str) -> Callable[[Sequence[str]], int]:
    """What `keepaug TOOL` calls."""
    return commands()[tool].load()  # type: ignore[no-any-return]


def write_data(root: Path) -> None:
    """Images for all of them."""
    write_classification(root / "classes", num_train=24, num_val=9, num_classes=2, size=(16, 16))
    write_detection(root / "objects", num_train=4, num_val=2, num_classes=4)
    write_reid(root / "people", num_train_identities=4, num_test_identities=3, distractors=2, junk=1)


def all_runs(root: Path) -> dict[str, Run]:
    """By name: the four loops and both detection engines."""
    quiet = ("tensorboard=false", "pictures=false", "log_every=1")
    classes = ("dataset=image_folder", f"root={root / 'classes'}", "arch=wrn10_1", *quiet)
    detector = (
        "--config-file", str(DETECTOR), "--data-root", str(root / "objects"), "SOLVER.MAX_ITER", "5",
        "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "(4,)", "SOLVER.IMS_PER_BATCH", "2",
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0",
        "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM",
        "16", "MODEL.RESNETS.RES2_OUT_CHANNELS",
    )  # fmt: skip
    runs = [
        Run(
            "classifier",
            "train-classifier",
            (*classes, "batch_size=8", "epochs=2", "method=keep_cutmix", "checkpoint_every=2", "lr=0.05",
             "tensorboard=true"),
        ),
        Run(
            "few labels",
            "train-uda",
            (*classes, "num_labels=6", "split=balanced", "batch_size=4", "steps=5", "lr=0.01", "ema=0.9",
             "unlabelled_ratio=2", "cutout=8", "confidence=0.3", "keep=true", "size=8", "eval_every=2",
             "checkpoint_every=2"),
        ),
        Run(
            "re-identification",
            "train-reid",
            (f"root={root / 'people'}", "arch=torchreid:osnet_x0_25", "height=48", "width=32", "padding=2",
             "identities=2", "images=2", "epochs=2", "lr=0.001", "warmup_epochs=1", "ranked=0",
             "num_workers=1", "device=cpu", "max_steps=6", "checkpoint_every=2", *quiet),
        ),
        Run("detector (torchvision)", "train-detector", ("--engine", "torchvision", *detector, "256")),
        Run("detector (Detectron2)", "train-detector", ("--engine", "detectron2", *detector, "32"),
            "--num-gpus"),
    ]  # fmt: skip
    return {run.name: run for run in runs}


def digest(folder: Path) -> dict[str, Any]:
    """What of a finished run must not depend on interruptions: weights, figures, lines of the metrics."""
    result = json.loads((folder / "result.json").read_text())
    kept = {key: result[key] for key in ("kind", "metrics", "seed", "config", "recipe", "dataset")}
    kept["history"] = result["extra"].get("history")
    (kept["config"] or {}).pop("OUTPUT_DIR", None)
    for name in ("weights.pt", "best.pt", "model_final.pth"):
        if (folder / name).is_file():
            kept[name] = _of_tensors(read_file(folder / name))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept["lines"] = [json.loads(line) for line in lines]
    theirs = folder / "metrics.json"
    if theirs.is_file():  # Detectron2's, with times
        kept["iterations"] = [json.loads(line)["iteration"] for line in theirs.read_text().splitlines()]
    return kept


def _of_tensors(content: Any) -> str:
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                if key not in ("provenance", "engine_state", "trainer"):
                    found.update(str(key).encode())
                    add(value[key])

    add(content)
    return found.hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Names of what differs; "" where all is equal."""
    keys = sorted(found.keys() | wanted.keys())
    return ", ".join(key for key in keys if found.get(key) != wanted.get(key))


def broken_files(folder: Path) -> str:
    """What in a run's folder no program could read: half-written files, and what was to become one."""
    found = [str(path.relative_to(folder)) for path in folder.rglob("*.partial")]
    for path in folder.rglob("*"):
        try:
            if path.suffix == ".json" and path.name != "metrics.json":
                json.loads(path.read_text())
            elif path.suffix in (".pt", ".pth"):
                read_file(path)
        except ValueError as error:
            found.append(f"{path.relative_to(folder)} ({error})"[:200])
    return ", ".join(found)
