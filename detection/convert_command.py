"""Turn a classifier's ResNet into a Detectron2 backbone, and prove that nothing was lost.

keepaug convert --weights weights.pt --output backbone.pth --verify --report
keepaug convert --reverse --weights model_final.pth --output resnet.pth
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from keepaug.runs.command import CommandParser, exit_code


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add(
        "--weights", type=Path, required=True, metavar="W", help="a classifier: .pth, .pt, .tar, .safetensors"
    )
    add("--output", type=Path, required=True, metavar="OUT", help="the backbone; its sidecar is OUT.json")
    add("--format", choices=("pth", "pkl"), help="default: by the suffix of OUT")
    add("--key", help="which part of the file, where it holds several sets of weights (state_dict_ema)")
    add("--prefix", help="of the keys, where one part holds several networks (backbone.); '' for none")
    add("--arch", help="what the network is, where the file calls it something else (resnet50)")
    add("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="its own, in [0, 1]; default ImageNet's")
    add("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="the same")
    add("--color-order", choices=("RGB", "BGR"), help="the classifier's; default RGB")
    add(
        "--verify", action="store_true", help="compare features with torchvision's and Detectron2's, if there"
    )
    add("--image", type=Path, help="the picture for --verify; default: a drawn one")
    add("--report", action="store_true", help="print what was done")
    add("--reverse", action="store_true", help="from Detectron2 to torchvision")
    add("--dry-run", action="store_true", help="check, convert and report, and write nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def act() -> int:
        from detection.convert import convert, reverse

        if args.dry_run:
            print(f"dry run: nothing is written; {args.weights} is read, {args.output} would be written")
        if args.reverse:
            architecture, notes = reverse(args.weights, args.output, dry_run=args.dry_run)
            print(f"{args.output}: {architecture.name}", *(f"  note: {note}" for note in notes), sep="\n")
            return 0
        done = convert(
            args.weights,
            args.output,
            format=args.format,
            key=args.key,
            prefix=args.prefix,
            arch=args.arch,
            mean=args.mean,
            std=args.std,
            color_order=args.color_order,
            verify_features=args.verify,
            image=args.image,
            dry_run=args.dry_run,
        )
        print(
            done.report()
            if args.report or args.dry_run
            else f"{done.output}: {done.sidecar.architecture}, {done.num_tensors} tensors"
        )
        return 0

    return exit_code(act)
