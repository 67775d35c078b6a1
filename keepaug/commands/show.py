"""Show what the saliency sees and what each augmentation does to an image, as in figures 1 and 4 of the
paper.

    keepaug show --image cat.jpg --weights weights.pt --output regions.png
    keepaug show --image cat.jpg --weights resnet50.pth --label 281 --output regions.png
    keepaug show --image cat.jpg --weights weights.pt --show figure4    low-res, early head
    keepaug show --image cat.jpg --side 32 --show policies              all policies, scales
    keepaug show --image cat.jpg --model my_networks:build --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5

Columns, in figure 1's order: the image, Cutout, RandAugment, saliency, KeepCutout, KeepRandAugment. White:
the regions chosen. Cutout and KeepCutout draw from one seed, so that KeepCutout moves only where it must;
`--contrast` shows a Cutout that it would refuse.
`--show policies` needs no network: per row a policy, the clean view and five strong ones of one seed each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from keepaug.audit.command import numbers
from keepaug.models.networks import ARCHITECTURES
from keepaug.runs.command import CommandParser, exit_code

SHOWN = ("figure1", "figure4", "policies")


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("--image", type=Path, nargs="+", required=True, help="one or more images")
    add("--show", choices=SHOWN, default="figure1", help="what is drawn")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=Path,
        help="weights.pt of a run, or a ResNet in any checkpoint that keepaug convert reads; with --model its file",
    )
    weights.add_argument("--torchvision", type=Path, metavar="W", help="a ResNet's state dict; see --arch")
    add("--arch", choices=ARCHITECTURES, help="of a file that is not of a run; with --torchvision resnet50")
    add("--key", help="which part of such a file, where it holds several sets of weights (state_dict_ema)")
    add("--prefix", help="of the keys, where one part holds several networks (backbone.)")
    add(
        "--model",
        metavar="NETWORK",
        help="any network, as for keepaug audit: torchvision:NAME or timm:NAME with --weights; a TorchScript or "
        "torch.export file; module:function",
    )
    add("--mean", type=numbers, metavar="R,G,B", help="of the normalisation, where --model does not say it")
    add("--std", type=numbers, metavar="R,G,B", help="likewise")
    add("--output", type=Path, default=Path("regions.png"), help="the picture")
    add("--side", type=int, default=224, help="the middle of the images is resized to this square")
    add(
        "--size",
        type=int,
        default=0,
        help="of the regions; default: side * 40 / 224, the paper's for ImageNet",
    )
    add("--tau", type=float, default=0.6, help="quantile")
    add("--saliency", choices=("full", "low_resolution"), default="full", help="of figure 1; half resolution")
    add("--label", type=int, help="class whose logit counts; default: the largest logit")
    add("--magnitude", type=int, default=15, help="of RandAugment")
    add("--contrast", action="store_true", help="show a Cutout among the regions that KeepCutout refuses")
    add("--seed", type=int, default=0, help="of the regions and the policy")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def act() -> int:
        from keepaug.commands.panels import draw_sheet

        print(draw_sheet(args))
        return 0

    return exit_code(act)
