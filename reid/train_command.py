"""Train and evaluate re-identification: standard baseline, Bag of Tricks, the same with KeepRandomErasing.

    keepaug train-reid --config configs/reid/r101_bag_of_tricks_keep.yaml root=DATA weights=r101.pth
    torchrun --nproc-per-node 4 -m keepaug train-reid --config ...      the same weights up to rounding
    keepaug train-reid --config ... --seeds 0 1 2     one run after the other, then mean and spread
    keepaug train-reid --eval-only runs/x root=DATA rerank=true     with the run's own settings

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an
interruption and ends with the same weights; with `--seeds` it passes over the seeds that are complete.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from keepaug.runs.command import config_parser, run_seeds
from reid.config import ReidConfig
from reid.tool import TOOL


def build_parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__, ReidConfig, configs="configs/reid", output="runs/NAME-RECIPE-seedSEED")
    parser.add_argument(
        "--eval-only",
        type=Path,
        metavar="RUN",
        help="no training: score a run's weights.pt, or the file that is named, with the run's own settings; "
        "writes evaluation.json",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    if args.eval_only is not None and "=" in args.eval_only.name:
        parser.error(f"--eval-only takes a run before the settings: --eval-only RUN {args.eval_only}")

    def name(config: ReidConfig) -> tuple[str, str]:
        return config.layout, config.recipe

    def evaluate(config: ReidConfig, output: Path, *, resume: bool) -> dict[str, float]:
        from reid.evaluation.run import evaluate_weights
        from reid.models.weights import WEIGHTS

        run = args.eval_only
        scores = evaluate_weights(config, run / WEIGHTS if run.is_dir() else run, output)
        return {f"{name}/{key}": value for name, found in scores.items() for key, value in found.items()}

    if args.eval_only is None:
        return run_seeds(args, TOOL, name=name)
    folder = args.eval_only if args.eval_only.is_dir() else args.eval_only.parent
    if args.config is None and (folder / "config.yaml").is_file():
        args.config = folder / "config.yaml"
    args.output = args.output or folder
    return run_seeds(args, TOOL, name=name, evaluate=evaluate)
