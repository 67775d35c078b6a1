"""The whole job on data drawn by the program: backbones, conversion, detectors, re-identification, few images,
few labels, report.

    keepaug quickstart --output quickstart

Every stage leaves its result in the output folder; called again, finished stages are not repeated and
interrupted ones go on where they stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from keepaug.commands.known import recipes, results, tool
from keepaug.report import aggregate, write_report
from keepaug.report.charts import draw_audit, draw_pairs
from keepaug.report.page import sections
from keepaug.runs.command import CommandParser, exit_code, of_seed
from keepaug.runs.configs import CONFIGS
from keepaug.runs.jobs import Command
from keepaug.runs.planning import Job, command_of

METHODS = ("none", "cutmix", "keep_cutmix")
AUDITED = ("cutout:24", "random_erasing:p=1", "cutmix", "rand_augment:2,9")
RECIPES = ("bag_of_tricks", "bag_of_tricks_keep")
FEW_IMAGES = ("none", "rand_augment", "keep_rand_augment")
FEW_LABELS = {
    "supervised": ("algorithm=supervised",),
    "uda": ("algorithm=uda",),
    "uda-keep": ("algorithm=uda", "keep=true"),
}


@dataclass(frozen=True)
class Scale:
    """How much is drawn and trained; the small one is for tests."""

    num_train: int
    num_val: int
    num_detection: int
    num_detection_val: int
    num_people: int
    num_few_images: int
    num_few_labels: int
    seeds: int  # of what is cheap: few images, few labels
    backbone: tuple[str, ...] = ()
    detector: tuple[str, ...] = ()
    reid: tuple[str, ...] = ()
    few_images: tuple[str, ...] = ()
    uda: tuple[str, ...] = ()


FULL = Scale(1200, 300, 160, 60, num_people=60, num_few_images=60, num_few_labels=1200, seeds=3)
SHRUNK = Scale(
    *(64, 32, 8, 4, 8, 20, 60, 1),
    backbone=("epochs=1", "max_steps=2"),
    detector=("SOLVER.MAX_ITER=2", "SOLVER.STEPS=(1,)"),
    reid=(
        "epochs=1",
        "max_steps=2",
        "milestones=[1]",
        "warmup_epochs=1",
        "identities=4",
        "images=2",
        "ranked=2",
    ),
    few_images=("epochs=1", "max_steps=2", "warmup_epochs=0.5"),
    uda=("steps=2", "batch_size=4"),
)


class StageError(ValueError):
    """A stage failed; its log says why."""


@dataclass(frozen=True)
class Batch:
    """The runs of one process.

    Attributes:
        name: folder of the run, or of its seeds without their number.
        runs: one for each seed.
        command: that trains them.
        log: file of what the command prints.
    """

    name: str
    runs: tuple[Job, ...]
    command: Command
    log: Path

    @property
    def finished(self) -> bool:
        """All of them are."""
        return all(run.finished for run in self.runs)


@dataclass(frozen=True)
class Quickstart:
    """The stages, in the order they run."""

    output: Path
    scale: Scale
    jobs: int

    @property
    def classes(self) -> Path:
        """Where the classification images are."""
        return self.output / "data" / "classes"

    @property
    def objects(self) -> Path:
        """Where the detection images are."""
        return self.output / "data" / "objects"

    @property
    def people(self) -> Path:
        """Where the re-identification images are."""
        return self.output / "data" / "people"

    @property
    def few_images(self) -> Path:
        """Where the images are of which there are few."""
        return self.output / "data" / "few-images"

    @property
    def few_labels(self) -> Path:
        """Where the images are of which few are labelled."""
        return self.output / "data" / "few-labels"

    def stages(self) -> list[tuple[str, Callable[[], None]]]:
        """Title and action of each stage."""
        return [
            ("draw the datasets", self.draw),
            (
                f"train {len(METHODS)} backbones, {len(RECIPES)} re-identification, "
                f"{len(FEW_IMAGES) * self.scale.seeds} few-image and "
                f"{len(FEW_LABELS) * self.scale.seeds} few-label networks",
                self.train_networks,
            ),
            ("convert them to Detectron2's format and verify the features", self.convert),
            (
                "measure what the augmentations destroy, and train a detector from each backbone "
                "(torchvision engine)",
                self.measure_and_train_detectors,
            ),
            ("write the report", self.report),
        ]

    def draw(self) -> None:
        """Classification as image folders, detection as COCO, re-identification as Market-1501."""
        from keepaug.data.synthetic import write_classification, write_detection
        from keepaug.data.synthetic_reid import write_reid

        look = {"num_classes": 4, "colour_cue": 0.8, "noise": 0.03}
        write_classification(
            self.classes,
            num_train=self.scale.num_train,
            num_val=self.scale.num_val,
            object_share=(0.3, 0.42),
            **look,  # type: ignore[arg-type]
        )
        write_detection(
            self.objects,
            num_train=self.scale.num_detection,
            num_val=self.scale.num_detection_val,
            objects=(1, 3),
            object_sides=(30.0, 46.0),
            **look,  # type: ignore[arg-type]
        )

        small = {"size": (32, 32), "object_share": (0.4, 0.5), "noise": 0.03}
        write_classification(
            self.few_images,
            num_train=self.scale.num_few_images,
            num_val=self.scale.num_val,
            num_classes=4,
            **small,  # type: ignore[arg-type]
        )
        write_classification(
            self.few_labels,
            num_train=self.scale.num_few_labels,
            num_val=self.scale.num_val,
            # the hues of four are exchanged by inverting the colours, which is one of the augmentations
            num_classes=3,
            colour_cue=0.8,
            **small,  # type: ignore[arg-type]
        )
        num = self.scale.num_people
        write_reid(self.people, num_train_identities=num, num_test_identities=num // 2)

    def train_networks(self) -> None:
        """Long ones first, so that no core waits at the end."""
        self._run_all(
            [
                *(self._uda(name) for name in ("uda-keep", "uda")),
                *(self._backbone(method) for method in reversed(METHODS)),
                *(self._few_images(method) for method in reversed(FEW_IMAGES)),
                *(self._reid(recipe) for recipe in reversed(RECIPES)),
                self._uda("supervised"),
            ]
        )

    def _backbone(self, method: str) -> Batch:
        given = [f"root={self.classes}", f"method={method}", "name=quickstart-backbone", *self.scale.backbone]
        return self._batch("train_classifier", "backbone.yaml", f"backbones/{method}", given)

    def _reid(self, recipe: str) -> Batch:
        given = [f"root={self.people}", f"recipe={recipe}", *self.scale.reid]
        return self._batch("train_reid", "reid.yaml", f"reid/{recipe}", given)

    def _few_images(self, method: str) -> Batch:
        given = [f"root={self.few_images}", f"method={method}", *self.scale.few_images]
        seeds = range(self.scale.seeds)
        return self._batch("train_classifier", "few_images.yaml", f"few-images/{method}", given, seeds=seeds)

    def _uda(self, name: str) -> Batch:
        given = [f"root={self.few_labels}", *FEW_LABELS[name], *self.scale.uda]
        return self._batch("train_uda", "uda.yaml", f"uda/{name}", given, seeds=range(self.scale.seeds))

    def _batch(
        self,
        name: str,
        config: str,
        folder: str,
        given: Sequence[str],
        *options: str,
        seeds: Sequence[int] = (),
    ) -> Batch:
        one, path, output = tool(name), CONFIGS / "quickstart" / config, self.output / folder
        command = command_of(one, path, output, given)
        options = (*options, *(("--seeds", *map(str, seeds)) if seeds else ()))
        command = Command((*command.argv[:4], *options, *command.argv[4:]), command.done)
        each = [(of_seed(output, seed), [*given, f"seed={seed}"]) for seed in seeds] or [(output, [*given])]
        runs = tuple(Job(run.name, run, (), one, one.load(path, its)) for run, its in each)
        return Batch(folder, runs, command, output.with_name(f"{output.name}.log"))

    def convert(self) -> None:
        """weights.pt to backbone.pth with its sidecar."""

        def one(method: str) -> None:
            folder = self.output / "backbones" / method
            command = [
                *("-m", "keepaug", "convert"),
                *("--weights", str(folder / "weights.pt"), "--output", str(folder / "backbone.pth")),
                *("--verify", "--report"),
            ]
            self._run(f"convert {method}", command, folder / "convert.log", show=True)

        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(one, METHODS))

    def measure(self) -> None:
        """The audit of the plainly trained backbone, which no method has an advantage in."""
        from keepaug.audit import audit
        from keepaug.audit.record import record
        from keepaug.models.weights import identity_of, load_classifier

        started = time.monotonic()
        weights, output = self.output / "backbones" / "none" / "weights.pt", self.output / "audit"
        result = audit(weights, self.classes, AUDITED, output=output, images=300, sweep=60, quiet=True)
        origin = identity_of(weights, load_classifier(weights).provenance)
        record(result, output, synthetic=True, wall_time_s=time.monotonic() - started, started_from=origin)
        print(f"  {result.sentence}", flush=True)

    def measure_and_train_detectors(self) -> None:
        """Beside each other: the audit takes one core. One run folder for each backbone."""
        self._run_all([self._detector(method) for method in METHODS], beside=self.measure)

    def _detector(self, method: str) -> Batch:
        weights = self.output / "backbones" / method / "backbone.pth"
        given = [f"data_root={self.objects}", f"MODEL.WEIGHTS={weights}", *self.scale.detector]
        options = ("--engine", "torchvision", "--draw", "6")
        return self._batch("train_detector", "detector.yaml", f"detectors/{method}", given, *options)

    def report(self) -> None:
        """Markdown, HTML, and the two charts for a paper."""
        title = "KeepAugment quickstart"
        for path in write_report(self.output, self.output, recipes=recipes, read=results, title=title):
            print(f"  {path}", flush=True)
        content = json.loads((self.output / "audit" / "audit.json").read_text())
        print(f"  {draw_audit(content, self.output / 'audit.pdf')}", flush=True)
        if self.scale.seeds > 1:
            own = sections(aggregate(results(self.output)))
            print(f"  {draw_pairs(own, self.output / 'pairs.pdf')}", flush=True)

    def _run_all(self, batches: Sequence[Batch], *, beside: Callable[[], None] | None = None) -> None:
        """Several processes beside each other, one thread each; what is finished is not repeated."""

        def one(batch: Batch) -> None:
            if batch.finished:
                print(f"  {batch.name}: done before", flush=True)
                return
            self._run(batch.name, list(batch.command.argv[1:]), batch.log)

        with ThreadPoolExecutor(self.jobs) as pool:
            work = [*([beside] if beside else []), *(partial(one, batch) for batch in batches)]
            list(pool.map(lambda do: do(), work))

    def _run(self, name: str, command: list[str], log: Path, *, show: bool = False) -> None:
        started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            done = subprocess.run(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, check=False
            )
        text = log.read_text()
        if done.returncode:
            raise StageError(f"{name} failed (exit code {done.returncode}); end of {log}:\n{text[-2000:]}")
        lines = text.replace("\r", "\n").strip().splitlines()
        if show:
            print("\n".join(f"  {line}" for line in lines if "->" in line or "verified" in line), flush=True)
        print(f"  {name}: done in {time.monotonic() - started:.0f} s", flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("quickstart"), help="folder for everything")
    parser.add_argument("--at-once", type=int, default=min(3, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--shrink", action="store_true", help="a few images and steps: does it run?")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def act() -> int:
        work = Quickstart(args.output.resolve(), SHRUNK if args.shrink else FULL, args.at_once)
        stages, started = work.stages(), time.monotonic()
        for number, (title, action) in enumerate(stages, start=1):
            print(f"[{number}/{len(stages)}, {time.monotonic() - started:.0f} s] {title}", flush=True)
            action()
        print(
            f"finished in {time.monotonic() - started:.0f} s: open {work.output / 'audit' / 'audit.html'}, then "
            f"{work.output / 'report.html'}"
        )
        return 0

    return exit_code(act)
