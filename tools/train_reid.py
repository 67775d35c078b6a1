"""Train and evaluate re-identification: the standard baseline, Bag of Tricks, Bag of Tricks with KeepRandomErasing.

    python tools/train_reid.py --config configs/reid/r101_bag_of_tricks_keep.yaml root=Market-1501-v15.09.15 weights=r101.pth
    torchrun --nproc-per-node 4 tools/train_reid.py --config ... the same; ends in the same weights up to rounding
    python tools/train_reid.py --config ... --seeds 0 1 2           one run after the other, then mean and spread
    python tools/train_reid.py --config ... --eval-only --checkpoint runs/x/weights.pt rerank=true

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an interruption and ends with
the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from keepaug.runs.config import load_config
from keepaug.runs.distributed import Distributed, setup
from keepaug.runs.guard import NonFiniteLossError
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


def settings_help() -> str:
    lines = ["settings (key=value):"]
    for field in dataclasses.fields(ReidConfig):
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
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file, see configs/reid")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run folder; default runs/NAME-RECIPE-seedSEED"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument(
        "--seeds", nargs="+", default=[], metavar="SEED", help="one run per seed, in OUTPUT-seedN"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="no training: score weights, write evaluation.json"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="for --eval-only; default weights.pt of the run folder",
    )
    parser.add_argument("--shrink", action="store_true", help="two steps on a few identities: does it run?")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.2f}" for key, value in metrics.items())


def run_one(
    config: ReidConfig, output: Path, args: argparse.Namespace, world: Distributed | None = None
) -> dict[str, float]:
    from reid.loop import WEIGHTS, evaluate_weights, train

    if args.eval_only:
        results = evaluate_weights(config, args.checkpoint or output / WEIGHTS, output)
        for name, metrics in results.items():
            print(f"{name}: {shown(metrics)}")
        return {}
    metrics = train(config, output, resume=args.resume, world=world)
    if metrics:
        print(f"{output}: {shown(metrics)}", flush=True)
    return metrics


def run_seeds(args: argparse.Namespace, overrides: list[str]) -> None:
    """One run after the other; those that are complete are not run again with --resume."""
    configs = [load_config(ReidConfig, args.config, [*overrides, f"seed={seed}"]) for seed in args.seeds]
    world = setup(configs[0].device)
    try:
        all_metrics = [run_seed(config, args, world) for config in configs]
    finally:
        world.close()
    if not world.is_main:
        return
    for key in all_metrics[0]:
        values = [metrics[key] for metrics in all_metrics]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{key}: {statistics.mean(values):.2f} +- {spread:.2f} ({len(values)} seeds)")


def run_seed(config: ReidConfig, args: argparse.Namespace, world: Distributed) -> dict[str, float]:
    base = args.output or Path("runs") / f"{stem_of(config, args)}-{config.recipe}"
    output = base.with_name(f"{base.name}-seed{config.seed}")
    finished = output / "result.json"
    # Read by all before one of them could write it.
    done = json.loads(finished.read_text())["metrics"] if args.resume and finished.is_file() else None
    world.barrier()
    if done is None:
        return run_one(config, output, args, world)
    if world.is_main:
        print(f"{output}: {shown(done)} (done before)", flush=True)
    return dict(done)


def stem_of(config: ReidConfig, args: argparse.Namespace) -> str:
    return config.name or (args.config.stem if args.config else config.layout)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    args.overrides += [item for item in args.seeds if "=" in item]  # `--seeds 0 1 recipe=standard`
    args.seeds = [item for item in args.seeds if "=" not in item]
    overrides = (SHRINK if args.shrink else []) + args.overrides
    try:
        if args.seeds and args.eval_only:
            raise ValueError("--seeds trains; give one --checkpoint to --eval-only")
        if args.checkpoint and not args.eval_only:
            raise ValueError("--checkpoint is for --eval-only; weights=FILE starts from ImageNet weights")
        if args.seeds:
            run_seeds(args, overrides)
            return 0
        config = load_config(ReidConfig, args.config, overrides)
        output = args.output or Path("runs") / f"{stem_of(config, args)}-{config.recipe}-seed{config.seed}"
        run_one(config, output, args)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ImportError, NonFiniteLossError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
