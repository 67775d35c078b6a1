"""Train and evaluate re-identification: standard baseline, Bag of Tricks, the same with KeepRandomErasing.

    python tools/train_reid.py --config configs/reid/r101_bag_of_tricks_keep.yaml root=DATA weights=r101.pth
    torchrun --nproc-per-node 4 tools/train_reid.py --config ...      the same weights up to rounding
    python tools/train_reid.py --config ... --seeds 0 1 2     one run after the other, then mean and spread
    python tools/train_reid.py --config ... --eval-only --checkpoint runs/x/weights.pt rerank=true

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an
interruption and ends with the same weights; with `--seeds` it passes over the seeds that are complete.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from keepaug.runs.command import config_parser, run_seeds
from keepaug.runs.errors import ConfigError
from reid.config import ReidConfig
from reid.tool import TOOL


def build_parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__, ReidConfig, configs="configs/reid", output="runs/NAME-RECIPE-seedSEED")
    parser.add_argument(
        "--eval-only", action="store_true", help="no training: score weights, write evaluation.json"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="for --eval-only; default weights.pt of the run folder",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)

    def name(config: ReidConfig) -> str:
        stem = config.name or (args.config.stem if args.config else config.layout)
        return f"{stem}-{config.recipe}"

    def train(config: ReidConfig, output: Path, *, resume: bool) -> dict[str, float]:
        from reid.training.loop import train

        if args.checkpoint:
            raise ConfigError("--checkpoint is for --eval-only; weights=FILE starts from ImageNet weights")
        return train(config, output, resume=resume)

    def evaluate(config: ReidConfig, output: Path, *, resume: bool) -> dict[str, float]:
        from reid.evaluation.run import evaluate_weights
        from reid.models.weights import WEIGHTS

        if args.seeds:
            raise ConfigError("--seeds trains; give one --checkpoint to --eval-only")
        scores = evaluate_weights(config, args.checkpoint or output / WEIGHTS, output)
        return {f"{name}/{key}": value for name, found in scores.items() for key, value in found.items()}

    act = evaluate if args.eval_only else train
    return run_seeds(args, TOOL, name=name, train=act)
