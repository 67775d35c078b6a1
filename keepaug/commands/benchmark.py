"""Measure what KeepAugment costs and how faithful its approximations are, as ratios in one run.

    keepaug benchmark                       # the sections that need no other package
    keepaug benchmark regions --shrink      # one section, small

Sections: `saliency` (table 3 of the paper as ratios: a step with each saliency pass, and the augmentation
calls alone), `pipeline` (images per second of the input beside a step's), `regions` (ways of choosing a
region below the quantile), `fidelity` (share of regions that an approximation, or a map carried over from an
earlier epoch, allows and the exact map forbids); and, only when named, `step` (float32 and bf16, eager and
compiled, and the parts of a step), `imagenet` (its input beside timm's), `uda` and `reid` (what Keep adds to
a step, a minute each), `reid_evaluation`, `reid_reranking` (3 minutes, 10 GB where torchreid is installed),
`coco_evaluation` (every evaluator that is installed) and `scale` (10 minutes, 6 GB of disk: evaluations and
starting on a folder, at several sizes). The variants take turns, so that a change of the machine's speed hits
all of them; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepaug.choices import DEVICE_HELP
from keepaug.runs.command import CommandParser, exit_code
from keepaug.runs.errors import ConfigError
from keepaug.runs.files import write_json_atomic
from keepaug.runs.result import _hardware, _packages

if TYPE_CHECKING:
    import torch

    from keepaug.runs.timing import Table

Section = tuple[str, str]
COMMON: dict[str, Section] = {
    "saliency": ("keepaug.commands.benchmarks.classifier_step", "saliency_section"),
    "pipeline": ("keepaug.commands.benchmarks.classifier_step", "pipeline_section"),
    "regions": ("keepaug.commands.benchmarks.region_choice", "regions_section"),
    "fidelity": ("keepaug.commands.benchmarks.map_fidelity", "fidelity_section"),
}
SECTIONS: dict[str, Section] = {
    **COMMON,
    "step": ("keepaug.commands.benchmarks.training_step", "step_section"),
    "imagenet": ("keepaug.commands.benchmarks.imagenet_input", "imagenet_section"),
    "reid": ("keepaug.commands.benchmarks.reid_step", "reid_section"),
    "reid_evaluation": ("keepaug.commands.benchmarks.reid_evaluation", "evaluation_section"),
    "reid_reranking": ("keepaug.commands.benchmarks.reid_evaluation", "reranking_section"),
    "coco_evaluation": ("keepaug.commands.benchmarks.coco_evaluation", "coco_evaluation_section"),
    "uda": ("keepaug.commands.benchmarks.uda_step", "uda_section"),
    "scale": ("keepaug.commands.benchmarks.scale", "scale_section"),
}
"""Module and function of each; imported when it runs, with what it compares with."""


def run_section(name: str, options: dict[str, Any], device: torch.device) -> tuple[Table, dict[str, Any]]:
    """A section takes those of the options that it has a keyword for."""
    module, function = SECTIONS[name]
    section = getattr(importlib.import_module(module), function)
    wanted = inspect.signature(section).parameters
    return section(device, **{key: options[key] for key in wanted if key in options})


def show(table: Table) -> str:
    head, rows = table
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    names = f"some of {', '.join(SECTIONS)}; default {', '.join(COMMON)}"
    add("sections", nargs="*", metavar="SECTION", help=names)
    add("--shrink", action="store_true", help="small sizes: does it run?")
    add("--device", default="auto", help=DEVICE_HELP)
    add(
        "--arch",
        action="append",
        help="saliency, pipeline, step, uda: a network; may be repeated; default: those of table 3, and wrn28_2",
    )
    add("--batch-size", dest="batch", type=int, default=128, help="images")
    add("--side", type=int, default=32, help="of the images, in pixels")
    add("--rounds", type=int, default=7, help="in which each variant has its turn; their median counts")
    add("--processor-time", action="store_true", help="saliency, pipeline, step, uda: of this process alone")
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--compile", dest="compiled", action="store_true", help="saliency, pipeline: with torch.compile")
    workers = "pipeline: also with that many decoding processes"
    add("--num-workers", dest="workers", type=int, default=0, help=workers)
    add("--weights", type=Path, help="fidelity: weights.pt of train-classifier, best with an early head")
    add("--data", type=Path, help="fidelity: CIFAR-10, its validation images; default: drawn images")
    add("--limit-images", dest="images", type=int, default=256, help="fidelity: so many images")
    earlier = "fidelity: earlier checkpoint.pt of the run of --weights"
    add("--earlier", type=Path, nargs="+", default=[], help=earlier)
    add("--output", type=Path, help="also write the figures as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def act() -> int:
        if unknown := [name for name in args.sections if name not in SECTIONS]:
            raise ConfigError(f"unknown section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
        from keepaug.runs.distributed import setup

        options = {**vars(args), "arch": args.arch or ()}
        device, figures = setup(options.pop("device")).device, {}
        for name in args.sections or COMMON:
            table, figures[name] = run_section(name, options, device)
            print(f"{name}\n{show(table)}\n", flush=True)
        if args.output is not None:
            content = {"figures": figures, "hardware": _hardware(), "packages": _packages()}
            write_json_atomic(args.output, content)
        return 0

    return exit_code(act)
