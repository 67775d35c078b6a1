r"""What does an augmentation destroy, on your images and for your network? In minutes, without training.

    keepaug audit --model runs/r18/weights.pt --data photos/ \
        --augment cutout:24 rand_augment:2,9 my_transforms:train_transform
    keepaug audit --model torchvision:resnet50 --weights r50.pth --data COCO/val2017 \
        --boxes instances_val2017.json --augment random_erasing --limit-images 2000 --output audit

Writes OUTPUT/audit.html, a page that begins with a sentence of advice, and OUTPUT/audit.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keepaug.audit.choices import BOUND, NO_KEEP, SETTINGS, check_limits, check_name
from keepaug.choices import DEVICE_HELP
from keepaug.runs.command import DRY_RUN_HELP, CommandParser, exit_code


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    lines = []
    for name, defaults in SETTINGS.items():
        settings = ",".join(f"{key}={value}" for key, value in defaults(32).items())
        lines.append(f"  {'' if name in NO_KEEP else '[keep_]'}{name}:{settings}")
    parser = CommandParser(
        __doc__,
        epilog="augmentations, with their settings for images of 32 pixels:\n"
        + "\n".join(lines)
        + "\n  module:object  a transform of single images: torchvision, albumentations, kornia, timm, ...",
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="NETWORK",
        help="weights.pt or checkpoint.pt of a run; torchvision:NAME or timm:NAME (with --weights); a "
        "TorchScript or torch.export file; module:function",
    )
    add(
        "--weights",
        metavar="FILE",
        help="for torchvision: and timm:; DEFAULT downloads theirs, RANDOM is an untrained network",
    )
    add(
        "--data",
        required=True,
        metavar="IMAGES",
        help="image folder (CLASS/*, {val,test,train}/CLASS/*, or images alone), CIFAR-10's archive, or "
        "a text file that lists images",
    )
    add("--boxes", metavar="JSON", help="COCO annotations: boxes or masks of what may be destroyed")
    add(
        "--augment",
        required=True,
        nargs="+",
        metavar="AUGMENTATION",
        help="see below; keep_ names the Keep version for --fail-above",
    )
    add("--output", type=Path, default=Path("audit"), metavar="DIR", help="folder of the page")
    add("--limit-images", dest="images", type=int, default=2000, help="so many, sampled from the data")
    add(
        "--sweep",
        type=int,
        default=200,
        metavar="IMAGES",
        help="to try strengths and tau on; 0: no sweep",
    )
    add("--tau", type=float, default=0.6, help="quantile of the Keep versions")
    add("--bound", type=float, default=BOUND, help="least fidelity of a recommended setting")
    add("--seed", type=int, default=0, help="of images and augmentations")
    add(
        "--mean",
        type=numbers,
        metavar="R,G,B",
        help="of the normalisation in [0, 1], where the network does not say it",
    )
    add("--std", type=numbers, metavar="R,G,B", help="likewise")
    add("--side", dest="size", type=int, help="of the network's images in pixels; default: as they are")
    add(
        "--no-labels",
        action="store_true",
        help="leave class labels aside: the network's answer on the clean image counts as right",
    )
    add("--split", help="folder of the data; default the first of val, test, train")
    add("--device", default="cpu", help=DEVICE_HELP)
    add("--dry-run", action="store_true", help=DRY_RUN_HELP)
    add("--fresh", action="store_true", help="measure again what is known from earlier audits")
    add(
        "--fail-above",
        nargs="+",
        default=[],
        metavar="MEASURE=LIMIT",
        help="exit with 1 when a named augmentation exceeds it; shares in percent: destroyed=5",
    )
    return parser


def limits_of(items: Sequence[str]) -> dict[str, float]:
    limits = {}
    for item in items:
        name, equals, value = item.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            raise ValueError(
                f"--fail-above takes MEASURE=LIMIT, for example destroyed=5; got {item!r}"
            ) from None
        if not equals:
            raise ValueError(f"--fail-above takes MEASURE=LIMIT, got {item!r}")
    return limits


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def act() -> int:
        limits = limits_of(args.fail_above)
        check_limits(limits)
        for spec in args.augment:
            check_name(spec)
        from keepaug.audit.run import audit, rehearse_audit

        settings = {
            "weights": args.weights,
            "boxes": args.boxes,
            "images": args.images,
            "sweep": args.sweep,
            "tau": args.tau,
            "bound": args.bound,
            "seed": args.seed,
            "mean": args.mean,
            "std": args.std,
            "size": args.size,
            "use_labels": not args.no_labels,
            "split": args.split,
            "device": args.device,
            "cache": not args.fresh,
            "limits": limits,
        }
        if args.dry_run:
            said = rehearse_audit(args.model, args.data, args.augment, **settings)
            pages = args.output / "audit.html", args.output / "audit.json"
            print(f"dry run: nothing is written; {pages[0]} and {pages[1]} would be\n{said}")
            return 0
        result = audit(args.model, args.data, args.augment, output=args.output, **settings)
        failures = result.failures(limits)
        for line in (*result.content["warnings"], result.sentence, *result.content["advice"]):
            print(line)
        print(f"\n{result.table()}\n\n{args.output / 'audit.html'}")
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if failures else 0

    return exit_code(act)
