"""Train a classifier with KeepAugment or a baseline.

    python tools/train_classifier.py --config configs/classify/cifar10.yaml root=DATA method=keep_cutout seed=1
    torchrun --nproc-per-node 8 tools/train_classifier.py --config configs/classify/imagenet.yaml root=IMAGENET

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an interruption and
ends with the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from keepaug.classify import ClassifyConfig, train
from keepaug.runs.config import load_config
from keepaug.runs.guard import NonFiniteLossError

SHRINK = [
    "epochs=1",
    "max_steps=2",
    "batch_size=4",
    "limit_train=16",
    "limit_val=16",
    "image_size=32",
    "lr=0.01",
]


def settings_help() -> str:
    lines = ["settings (key=value):"]
    for field in dataclasses.fields(ClassifyConfig):
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
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file, see configs/classify")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run folder; default runs/NAME-METHOD-seedSEED"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument("--shrink", action="store_true", help="a few steps on a few images: does it run?")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    try:
        config = load_config(ClassifyConfig, args.config, (SHRINK if args.shrink else []) + args.overrides)
        stem = config.name or (args.config.stem if args.config else config.dataset)
        output = args.output or Path("runs") / f"{stem}-{config.method}-seed{config.seed}"
        metrics = train(config, output, resume=args.resume)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ImportError, NonFiniteLossError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{output}: " + ", ".join(f"{key} {value:.2f}" for key, value in metrics.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
