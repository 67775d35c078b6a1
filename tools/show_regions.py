"""Show what the saliency sees and what each augmentation does to an image, as in figure 1 of the paper.

    python tools/show_regions.py --image cat.jpg --weights weights.pt --output regions.png
    python tools/show_regions.py --image cat.jpg --weights resnet50.pth --label 281 --output regions.png

Columns, in figure 1's order: the image, Cutout, RandAugment, saliency, KeepCutout, KeepRandAugment. White:
the regions chosen. Cutout and KeepCutout draw from one seed, so that KeepCutout moves only where it must;
`--contrast` shows a Cutout that it would refuse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from detection.architecture import Architecture
from detection.classifier import open_classifier
from keepaug import (
    Cutout,
    KeepCutout,
    KeepPaste,
    Regions,
    TwoViews,
    rand_augment,
    saliency_map,
    sample_regions,
)
from keepaug.audit.pictures import enlarged, grey_map, labelled_sheet
from keepaug.data.batch_transforms import normalise
from keepaug.data.reading import read_image
from keepaug.models.networks import ARCHITECTURES
from keepaug.models.weights import ForeignFileError, load_classifier
from keepaug.runs.command import exit_code
from keepaug.runs.files import write_atomic
from keepaug.runs.seeds import make_generator

TITLES = ("image", "Cutout", "RandAugment", "saliency", "KeepCutout", "KeepRandAugment")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--image", type=Path, nargs="+", required=True, help="one or more images")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--weights",
        type=Path,
        help="weights.pt of a run, or a ResNet in any checkpoint that tools/convert_backbone.py reads",
    )
    weights.add_argument(
        "--torchvision", type=Path, metavar="W", help="torchvision state dict of a ResNet; see --arch"
    )
    add(
        "--arch",
        choices=tuple(ARCHITECTURES),
        help="of a file that is not of a run; with --torchvision resnet50",
    )
    add("--key", help="which part of such a file, where it holds several sets of weights (state_dict_ema)")
    add("--prefix", help="of the keys, where one part holds several networks (backbone.)")
    add("--output", type=Path, default=Path("regions.png"), help="the picture")
    add("--side", type=int, default=224, help="images are resized to this square for the network")
    add(
        "--size",
        type=int,
        default=0,
        help="side of the regions; default: side * 40 / 224, as the paper's for ImageNet",
    )
    add("--tau", type=float, default=0.6, help="quantile")
    add("--label", type=int, help="class whose logit counts; default: the largest logit")
    add("--magnitude", type=int, default=15, help="of RandAugment")
    add("--contrast", action="store_true", help="show a Cutout among the regions that KeepCutout refuses")
    add("--seed", type=int, default=0, help="of the regions and the policy")
    return parser


def load_network(args: argparse.Namespace) -> tuple[torch.nn.Module, Sequence[float], Sequence[float]]:
    path = args.weights or args.torchvision
    try:
        trained = load_classifier(path)
        return trained.network, trained.mean, trained.std
    except ForeignFileError:
        opened = open_classifier(path, key=args.key, prefix=args.prefix, arch=args.arch)
    wanted = args.arch or ("resnet50" if args.torchvision else None)
    if wanted and opened.architecture != Architecture(int(wanted.removeprefix("resnet"))):
        raise ValueError(
            f"{path} is no {wanted}; choose --arch (its tensors are {opened.architecture.name}'s)"
        )
    return opened.network, opened.mean, opened.std


def panels(
    path: Path, args: argparse.Namespace, network: torch.nn.Module, mean: object, std: object
) -> tuple[str, list[Image.Image]]:
    """The label of a row, and its pictures."""
    image = read_image(path).resize((args.side, args.side), Image.Resampling.BICUBIC)
    clean, strong = (
        pil_to_tensor(view)[None].float()
        for view in TwoViews(None, rand_augment(3, args.magnitude))(
            image, generator=make_generator(args.seed, "policy", path.name)
        )
    )
    label = None if args.label is None else torch.tensor([args.label])
    heat = saliency_map(network, normalise(clean, mean, std), label)  # type: ignore[arg-type]
    size = args.size or max(1, round(args.side * 40 / 224))

    def generator() -> torch.Generator:
        return make_generator(args.seed, "regions", path.name)

    cutout, keep = Cutout(size, placement="inside"), KeepCutout(size, tau=args.tau)
    paste = KeepPaste(size, args.tau)
    plain, kept = cutout.sample(clean, generator=generator()), keep.sample(clean, heat, generator=generator())
    if args.contrast:
        plain = sample_regions(heat, size, tau=args.tau, prefer="high", generator=generator())
    pasted = paste.sample(clean, heat, generator=generator())
    scale = max(1, round(192 / args.side))

    def shown(image: torch.Tensor, regions: Regions | None = None) -> Image.Image:
        return enlarged(image[0].clamp(0, 255).to(torch.uint8), scale, regions)

    named = "largest logit" if args.label is None else f"class {args.label}"
    return "\n".join([path.name, named, f"tau {args.tau:g}", f"size {size}"]), [
        shown(clean),
        shown(cutout(clean, regions=plain), plain),
        shown(strong),
        enlarged(grey_map(heat[0]), scale),
        shown(keep(clean, heat, regions=kept), kept),
        shown(paste(clean, strong, regions=pasted), pasted),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def act() -> int:
        network, mean, std = load_network(args)
        rows = [panels(path, args, network, mean, std) for path in args.image]
        picture = labelled_sheet(TITLES, rows)
        print(
            write_atomic(
                args.output,
                lambda file: picture.save(file, Image.registered_extensions().get(args.output.suffix, "PNG")),
            )
        )
        return 0

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main())
