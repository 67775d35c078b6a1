"""What `keepaug show` draws."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

from detection.architecture import Architecture
from detection.classifier import open_classifier
from keepaug import (
    Cutout,
    KeepCutout,
    KeepPaste,
    Regions,
    TwoViews,
    aug_mix,
    auto_augment,
    rand_augment,
    saliency_map,
    sample_regions,
)
from keepaug.audit.networks import open_network
from keepaug.choices import MAGNITUDE_MAXIMA, OPERATIONS, RANGES
from keepaug.data.batch_transforms import change_colours, draw_colours, normalize
from keepaug.data.pictures import enlarged, grey_map, labelled_sheet
from keepaug.data.reading import read_image
from keepaug.models.early import EarlyHeadNetwork
from keepaug.models.weights import ForeignFileError, load_classifier
from keepaug.runs.files import write_atomic
from keepaug.runs.seeds import make_generator

SHARES = (0.2, 0.5, 0.7, 0.9, 1.0)  # of the largest magnitude
TITLES = ("image", "Cutout", "RandAugment", "saliency", "KeepCutout", "KeepRandAugment")

FIGURE4 = ("image", "half resolution", "its saliency", "KeepCutout", "early head's map", "KeepCutout")


def load_network(args: argparse.Namespace) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    if args.model:
        audited = open_network(args.model, weights=args.weights, mean=args.mean, std=args.std)
        return audited.module, audited.mean, audited.std
    if (path := args.weights or args.torchvision) is None:
        raise ValueError(f"--show {args.show} needs a network: give --weights or --model, or --show policies")
    try:
        trained = load_classifier(path)
        network = trained.network if trained.early_head is None else trained.with_early_head().eval()
        return network, trained.mean, trained.std
    except ForeignFileError:
        opened = open_classifier(path, key=args.key, prefix=args.prefix, arch=args.arch)
    wanted = args.arch or ("resnet50" if args.torchvision else None)
    if wanted and opened.architecture != Architecture(int(wanted.removeprefix("resnet"))):
        raise ValueError(f"{path} is no {wanted}; choose --arch (it has {opened.architecture.name}'s keys)")
    return opened.network, opened.mean, opened.std


def read(path: Path, args: argparse.Namespace) -> Image.Image:
    """The middle square, resized: no image is stretched."""
    image = read_image(path)
    return center_crop(image, [min(image.size)] * 2).resize((args.side, args.side), Image.Resampling.BICUBIC)


def figure4(
    path: Path, args: argparse.Namespace, network: nn.Module, mean: Sequence[float], std: Sequence[float]
) -> tuple[str, list[Image.Image]]:
    """KeepCutout by a half-resolution copy, and by the early head where the network has one."""
    clean = pil_to_tensor(read(path, args))[None].float()
    pixels = normalize(clean, mean, std)
    label = None if args.label is None else torch.tensor([args.label])
    size, scale = args.size or max(1, round(args.side * 40 / 224)), max(1, round(192 / args.side))
    keep = KeepCutout(size, tau=args.tau)
    half = F.interpolate(clean, scale_factor=0.5, mode="bicubic", antialias=True)
    small = F.interpolate(half, size=clean.shape[2:], mode="nearest")
    pictures = [enlarged(one[0].clamp(0, 255).to(torch.uint8), scale) for one in (clean, small)]
    maps = [saliency_map(network, pixels, label, scale=0.5)]
    if isinstance(network, EarlyHeadNetwork):
        maps.append(saliency_map(network, pixels, label, forward=network.forward_early))
    for heat in maps:
        kept = keep.sample(clean, heat, generator=make_generator(args.seed, "regions", path.name))
        cut_out = keep(clean, heat, regions=kept)[0].clamp(0, 255).to(torch.uint8)
        pictures += [enlarged(grey_map(heat[0]), scale), enlarged(cut_out, scale, kept)]
    without = "" if isinstance(network, EarlyHeadNetwork) else "no early head"
    return "\n".join([path.name, f"tau {args.tau:g}", f"size {size}", without]), pictures


def policies(args: argparse.Namespace) -> list[tuple[str, list[Callable[[Any], Any]]]]:
    """A label and five policies a row: the scales of one policy, or five draws of one without a scale."""
    fills = {"torchvision": None, "google": [128.0] * 3 if args.side >= 128 else [125.0, 123.0, 114.0]}
    rows: list[tuple[str, list[Callable[[Any], Any]]]] = []
    for operations, most, ranges in itertools.product(OPERATIONS, MAGNITUDE_MAXIMA, RANGES):
        scales = [round(most * share) for share in SHARES]
        options: dict[str, Any] = {"operations": operations, "ranges": ranges, "fill": fills[ranges]}
        rows.append(
            (
                f"RandAugment, 2 operations\n{operations}'s, {ranges}\n{', '.join(map(str, scales))} of "
                f"{most}",
                [rand_augment(2, scale, magnitude_max=most, **options) for scale in scales],
            )
        )
    for policy, ranges in itertools.product(("cifar10", "imagenet", "svhn"), RANGES):
        one = auto_augment(policy, ranges=ranges, fill=fills[ranges])
        rows.append((f"AutoAugment\n{policy}, {ranges}", [one] * len(SHARES)))
    for all_ops in (False, True):
        levels = [round(10 * share) for share in SHARES]
        named = f"AugMix{', all operations' if all_ops else ''}\nseverity {', '.join(map(str, levels))}"
        rows.append((named, [aug_mix(level, all_ops=all_ops) for level in levels]))
    return rows


def policy_sheet(path: Path, args: argparse.Namespace) -> list[tuple[str, list[Image.Image]]]:
    """Clean and five strong views for each policy, and the jitter and noise drawn once for all views."""
    image, scale = read(path, args), max(1, round(192 / args.side))
    rows = []
    for label, row in policies(args):
        views = [
            TwoViews(None, policy)(image, generator=make_generator(args.seed, "policy", number))
            for number, policy in enumerate(row)
        ]
        pictures = [views[0][0], *(strong for _, strong in views)]
        rows.append((label, [enlarged(pil_to_tensor(one), scale) for one in pictures]))
    pixels = pil_to_tensor(image)[None].expand(len(SHARES), -1, -1, -1)
    generator = make_generator(args.seed, "colours")
    drawn = draw_colours(len(SHARES), jitter=0.4, lighting=0.1, generator=generator)
    changed = change_colours(pixels, None, drawn)[0].round().clamp(0, 255).to(torch.uint8)
    cells = [enlarged(one, scale) for one in (pixels[0], *changed)]
    rows.append(("no policy\njitter 0.4, lighting 0.1", cells))
    return rows


def panels(
    path: Path, args: argparse.Namespace, network: nn.Module, mean: object, std: object
) -> tuple[str, list[Image.Image]]:
    """The label of a row, and its pictures."""
    image = read(path, args)
    clean, strong = (
        pil_to_tensor(view)[None].float()
        for view in TwoViews(None, rand_augment(3, args.magnitude))(
            image, generator=make_generator(args.seed, "policy", path.name)
        )
    )
    label = None if args.label is None else torch.tensor([args.label])
    scale = 0.5 if args.saliency == "low_resolution" else 1.0
    heat = saliency_map(network, normalize(clean, mean, std), label, scale=scale)  # type: ignore[arg-type]
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


def draw_sheet(args: argparse.Namespace) -> Path:
    """A row for each image or policy, under titles."""
    if args.show == "policies":
        titles = ("clean", *(f"strong {number + 1}" for number in range(len(SHARES))))
        rows = [row for path in args.image for row in policy_sheet(path, args)]
    else:
        network, mean, std = load_network(args)
        draw = panels if args.show == "figure1" else figure4
        rows = [draw(path, args, network, mean, std) for path in args.image]
        titles = TITLES if args.show == "figure1" else FIGURE4
    picture = labelled_sheet(titles, rows)
    suffix = Image.registered_extensions().get(args.output.suffix, "PNG")
    return write_atomic(args.output, lambda file: picture.save(file, suffix))
