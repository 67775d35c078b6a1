"""Train on few labels and many unlabelled images: UDA with RandAugment or KeepRandAugment, or the labelled images alone.

    python tools/train_uda.py --config configs/ssl_uda/cifar10_4000.yaml root=DATA method=keep_rand_augment --seeds 0 1 2
    torchrun --nproc-per-node 4 tools/train_uda.py --config configs/ssl_uda/cifar10_4000.yaml root=DATA

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an interruption and
ends with the same weights; with several seeds it goes on with those that are not finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keepaug.runs.command import config_parser, is_main, shown, split_settings, summary
from keepaug.runs.config import load_config
from keepaug.runs.guard import NonFiniteLossError
from keepaug.runs.result import FILE_NAME, read_result
from ssl_uda import UdaConfig, train

SHRINK = [
    "steps=2",
    "batch_size=4",
    "unlabelled_ratio=2",
    "num_labels=20",
    "split=balanced",
    "limit_train=40",
    "limit_val=20",
    "arch=wrn10_1",
]


def build_parser() -> argparse.ArgumentParser:
    return config_parser(
        __doc__, UdaConfig, configs="configs/ssl_uda", output="runs/NAME-METHOD-NUMlabels-seedSEED"
    )


def run_one(args: argparse.Namespace, settings: list[str], seed: int | None) -> dict[str, float]:
    config = load_config(UdaConfig, args.config, settings + ([] if seed is None else [f"seed={seed}"]))
    stem = config.name or (args.config.stem if args.config else config.dataset)
    base = args.output or Path("runs") / f"{stem}-{config.method}-{config.num_labels}labels"
    named = seed is None and args.output is not None
    output = base if named else base.with_name(f"{base.name}-seed{config.seed}")
    if args.resume and (output / FILE_NAME).is_file():
        metrics: dict[str, float] = read_result(output / FILE_NAME)["metrics"]
    else:
        metrics = train(config, output, resume=args.resume)
    if is_main():
        print(f"{output}: {shown(metrics)}", flush=True)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    try:
        seeds, settings = split_settings(args.seeds, (SHRINK if args.shrink else []) + args.overrides)
        results = [run_one(args, settings, seed) for seed in seeds or [None]]
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ImportError, NonFiniteLossError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if seeds and is_main():
        print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
