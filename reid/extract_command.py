"""Features of new images by a trained re-identification network, as an npz file.

    keepaug extract-reid --weights runs/x/weights.pt --data FOLDER --output features.npz

The file holds images_features (N, D), images_paths (N texts, relative to the folder), and identities and
cameras of -1; `reid.evaluation.features.load_features` reads it, and `describe_images` is the function.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from keepaug.choices import DEVICE_HELP
from keepaug.runs.command import DRY_RUN_HELP, CommandParser, exit_code


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="weights.pt or best.pt of a run")
    add("--data", type=Path, required=True, metavar="DIR", help="images, in folders below too")
    add("--output", type=Path, required=True, metavar="FILE", help="an npz file")
    add("--feature", choices=("after", "before"), default="after", help="taken before or after the neck")
    add("--flip-test", action="store_true", help="mean with the mirror image's features")
    add("--batch-size", type=int, default=128, help="images")
    add("--num-workers", type=int, default=4, help="threads that decode")
    add("--device", default="auto", help=DEVICE_HELP)
    add("--dry-run", action="store_true", help=DRY_RUN_HELP)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = vars(build_parser().parse_args(argv))
    output, weights, images, dry = (options.pop(key) for key in ("output", "weights", "data", "dry_run"))

    def act() -> int:
        from reid.evaluation.features import describe_images, rehearse_images, save_features

        options["threads"] = options.pop("num_workers")
        if dry:
            said = rehearse_images(weights, images, **options)
            print(f"dry run: nothing is written; {output} would be\n{said}")
            return 0
        found = describe_images(weights, images, **options)
        save_features(output, images=found)
        number, size = found.features.shape
        print(f"{output}: {size} numbers for each of {number} images")
        return 0

    return exit_code(act)
