"""Train a classifier with KeepAugment or a baseline.

    python tools/train_classifier.py --config configs/classify/cifar10.yaml root=DATA method=keep_cutout seed=1
    torchrun --nproc-per-node 8 tools/train_classifier.py --config configs/classify/imagenet.yaml root=IMAGENET
    python tools/train_classifier.py --config ... --seeds 0 1 2     one run after the other, then mean and spread

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an interruption and
ends with the same weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keepaug.classify import ClassifyConfig, train
from keepaug.runs.command import config_parser, is_main, shown, split_settings, summary
from keepaug.runs.config import load_config
from keepaug.runs.guard import NonFiniteLossError
from keepaug.runs.result import FILE_NAME, read_result

SHRINK = [
    "epochs=1",
    "max_steps=2",
    "batch_size=4",
    "limit_train=16",
    "limit_val=16",
    "image_size=32",
    "lr=0.01",
]


def build_parser() -> argparse.ArgumentParser:
    return config_parser(
        __doc__, ClassifyConfig, configs="configs/classify", output="runs/NAME-METHOD-seedSEED"
    )


def run_one(args: argparse.Namespace, settings: list[str], seed: int | None) -> dict[str, float]:
    config = load_config(ClassifyConfig, args.config, settings + ([] if seed is None else [f"seed={seed}"]))
    stem = config.name or (args.config.stem if args.config else config.dataset)
    base = args.output or Path("runs") / f"{stem}-{config.method}"
    named = seed is None and args.output is not None
    output = base if named else base.with_name(f"{base.name}-seed{config.seed}")
    if args.resume and seed is not None and (output / FILE_NAME).is_file():
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
