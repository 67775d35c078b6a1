"""Train and evaluate re-identification: the standard baseline, Bag of Tricks, Bag of Tricks with KeepRandomErasing.

    python tools/train_reid.py --config configs/reid/r101_bag_of_tricks_keep.yaml root=Market-1501-v15.09.15 weights=r101.pth
    torchrun --nproc-per-node 4 tools/train_reid.py --config ... the same; ends in the same weights up to rounding
    python tools/train_reid.py --config ... --seeds 0 1 2     one run after the other, then mean and spread
    python tools/train_reid.py --config ... --eval-only --checkpoint runs/x/weights.pt rerank=true features=true onnx=true

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an interruption and ends with
the same weights; with `--seeds` it passes over the seeds that are complete.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keepaug.runs.command import config_parser, is_main, shown, split_settings, summary
from keepaug.runs.config import ConfigError, load_config
from keepaug.runs.distributed import Distributed, setup
from keepaug.runs.guard import NonFiniteLossError
from keepaug.runs.result import FILE_NAME, read_result
from reid.config import ReidConfig

SHRINK = [
    "max_steps=2",
    "epochs=1",
    "height=64",
    "width=32",
    "identities=2",
    "images=2",
    "limit_identities=4",
    "ranked=2",
    "padding=2",
]


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


def load(args: argparse.Namespace, settings: list[str], seed: int | None) -> tuple[ReidConfig, Path]:
    """The settings and the run folder."""
    config = load_config(ReidConfig, args.config, settings + ([] if seed is None else [f"seed={seed}"]))
    stem = config.name or (args.config.stem if args.config else config.layout)
    base = args.output or Path("runs") / f"{stem}-{config.recipe}"
    named = seed is None and args.output is not None
    return config, base if named else base.with_name(f"{base.name}-seed{config.seed}")


def run_seed(
    config: ReidConfig, output: Path, args: argparse.Namespace, world: Distributed, *, skip: bool
) -> dict[str, float]:
    from reid.loop import train

    finished = output / FILE_NAME
    # Read by all processes before one of them could write it.
    done = read_result(finished)["metrics"] if skip and finished.is_file() else None
    world.barrier()
    metrics: dict[str, float] = (
        train(config, output, resume=args.resume, world=world) if done is None else done
    )
    if is_main():
        print(f"{output}: {shown(metrics)}{' (done before)' if done else ''}", flush=True)
    return metrics


def evaluate(config: ReidConfig, output: Path, args: argparse.Namespace) -> None:
    from reid.loop import WEIGHTS, evaluate_weights

    for name, metrics in evaluate_weights(config, args.checkpoint or output / WEIGHTS, output).items():
        print(f"{name}: {shown(metrics)}")


def run(args: argparse.Namespace) -> None:
    seeds, settings = split_settings(args.seeds, (SHRINK if args.shrink else []) + args.overrides)
    if args.checkpoint and not args.eval_only:
        raise ConfigError("--checkpoint is for --eval-only; weights=FILE starts from ImageNet weights")
    if args.eval_only:
        if seeds:
            raise ConfigError("--seeds trains; give one --checkpoint to --eval-only")
        evaluate(*load(args, settings, None), args)
        return
    runs = [load(args, settings, seed) for seed in seeds or [None]]
    world = setup(runs[0][0].device)  # one process group for all seeds
    try:
        results = [
            run_seed(config, output, args, world, skip=bool(seeds) and args.resume) for config, output in runs
        ]
    finally:
        world.close()
    if seeds and is_main():
        print(summary(results))


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ImportError, NonFiniteLossError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
