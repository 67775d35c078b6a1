"""Train on few labels and many unlabelled images: UDA with RandAugment or KeepRandAugment, or the labelled images alone.

    python tools/train_uda.py --config configs/ssl_uda/cifar10_4000.yaml root=DATA method=keep_rand_augment --seeds 0 1 2
    torchrun --nproc-per-node 4 tools/train_uda.py --config configs/ssl_uda/cifar10_4000.yaml root=DATA

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an interruption and
ends with the same weights; with several seeds it goes on with those that are not finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

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


def settings_help() -> str:
    lines = ["settings (key=value):"]
    for field in dataclasses.fields(UdaConfig):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        choices = field.metadata.get("choices")
        notes = [field.metadata.get("help") or "", " | ".join(map(str, choices)) if choices else ""]
        lines.append(f"  {field.name}={default}  {'; '.join(note for note in notes if note)}".rstrip())
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file, see configs/ssl_uda")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="run folder (with several seeds: DIR/seedN); default runs/NAME-METHOD-NUMlabels-seedSEED",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument("--shrink", action="store_true", help="a few steps on a few images: does it run?")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="one run each; then mean and spread"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def run_one(args: argparse.Namespace, overrides: list[str], several: bool) -> dict[str, float]:
    config = load_config(UdaConfig, args.config, overrides)
    stem = config.name or (args.config.stem if args.config else config.dataset)
    output = Path("runs") / f"{stem}-{config.method}-{config.num_labels}labels-seed{config.seed}"
    if args.output is not None:
        output = args.output / f"seed{config.seed}" if several else args.output
    if args.resume and (output / FILE_NAME).is_file():
        metrics: dict[str, float] = read_result(output / FILE_NAME)["metrics"]
    else:
        metrics = train(config, output, resume=args.resume)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{output}: " + ", ".join(f"{key} {value:.2f}" for key, value in metrics.items()), flush=True)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    overrides = (SHRINK if args.shrink else []) + args.overrides
    if given := [item for item in args.overrides if "=" not in item]:
        print(f"error: a setting must be key=value, got {', '.join(given)}", file=sys.stderr)
        return 2
    try:
        if args.seeds is None:
            run_one(args, overrides, several=False)
            return 0
        results = [run_one(args, [*overrides, f"seed={seed}"], several=True) for seed in args.seeds]
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ImportError, NonFiniteLossError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if int(os.environ.get("RANK", 0)) == 0:
        print(summary(results))
    return 0


def summary(results: Sequence[dict[str, float]]) -> str:
    """Mean and sample standard deviation of each metric."""
    parts = []
    for key in results[0]:
        values = [result[key] for result in results]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        parts.append(f"{key} {statistics.mean(values):.2f}{spread}")
    return f"{len(results)} seed(s): " + ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
