"""Measure what KeepAugment costs and how faithful its approximations are, as ratios in one run.

    python tools/benchmark.py                       # all sections
    python tools/benchmark.py regions --shrink      # one section, small

Sections: `saliency` (cost of the saliency pass as a share of a train step, table 3 of the paper), `regions` (ways of choosing a
region below the quantile), `fidelity` (share of regions that an approximation allows and the exact map forbids).
The variants take turns, so that a change of the machine's speed hits all of them; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepaug import KeepCutout, region_scores, sample_regions
from keepaug.classify import SALIENCY
from keepaug.classify.methods import compute_saliency
from keepaug.models import EarlyHeadNetwork, build_network
from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.files import write_json_atomic
from keepaug.runs.result import _hardware, _packages
from keepaug.runs.timing import Table, interleaved


def saliency_section(args: argparse.Namespace, device: torch.device) -> tuple[Table, dict[str, Any]]:
    """Plain train step against the saliency passes, ResNet-18 at 32 pixels."""
    batch, side = (16, 32) if args.shrink else (args.batch, args.side)
    torch.manual_seed(0)
    stem = "cifar" if side <= 64 else "imagenet"
    model = EarlyHeadNetwork(build_network(args.arch, 10, stem=stem)).to(
        device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    plain = model.network.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    keep = KeepCutout(max(1, side // 2))
    heat = torch.rand(batch, side, side, device=device)

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)

    def step() -> None:
        with autocast():
            loss = F.cross_entropy(plain(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def pass_of(mode: str) -> Callable[[], object]:
        def run() -> Tensor:
            with autocast():
                return compute_saliency(model, images, labels, mode)

        return run

    variants: dict[str, Callable[[], object]] = {"train step": step}
    variants |= {mode: pass_of(mode) for mode in SALIENCY}
    variants["region selection and cut"] = lambda: keep(images, heat)
    seconds = interleaved(variants, 2 if args.shrink else args.rounds, device)
    base = seconds["train step"]
    rows = [[name, f"{1000 * value:.1f}", f"{value / base:.3f}"] for name, value in seconds.items()]
    figures = {name: value / base for name, value in seconds.items()} | {"train step (s)": base}
    title = f"{args.arch}, batch {batch}, {side} px{', bf16' if args.bf16 else ''}"
    return ([title, "ms", "share of a train step"], rows), figures


def _quantile(scores: Tensor, tau: float) -> Tensor:
    threshold = torch.quantile(scores, tau, dim=1, keepdim=True)
    return (scores <= threshold).double().multinomial(1)


def _kthvalue(scores: Tensor, tau: float) -> Tensor:
    threshold = scores.kthvalue(max(1, int(tau * scores.shape[1])), dim=1, keepdim=True).values
    return (scores <= threshold).double().multinomial(1)


def _argsort(scores: Tensor, tau: float) -> Tensor:
    order = scores.argsort(dim=1)
    place = (torch.rand(len(scores), 1, device=scores.device) * max(1, int(tau * scores.shape[1]))).long()
    return order.gather(1, place)


def regions_section(args: argparse.Namespace, device: torch.device) -> tuple[Table, dict[str, Any]]:
    """Ways of scoring all regions, and of choosing one below the quantile."""
    batch, side, size = (8, 64, 16) if args.shrink else (64, 224, 40)
    heat = torch.rand(batch, side, side, device=device)
    scores = region_scores(heat, size)[0].flatten(1)
    variants: dict[str, Callable[[], object]] = {
        "scores (integral image)": lambda: region_scores(heat, size),
        "scores and choice (ours)": lambda: sample_regions(heat, size),
        "choice: torch.quantile": lambda: _quantile(scores, 0.6),
        "choice: kthvalue": lambda: _kthvalue(scores, 0.6),
        "choice: argsort": lambda: _argsort(scores, 0.6),
    }
    if not args.shrink:
        variants["scores: dense average pooling"] = lambda: F.avg_pool2d(heat[:, None], size, stride=1)
    seconds = interleaved(variants, 2 if args.shrink else max(3, args.rounds // 2), device)
    base = seconds["scores and choice (ours)"]
    rows = [[name, f"{1000 * value:.1f}", f"{value / base:.2f}"] for name, value in seconds.items()]
    return ([f"batch {batch}, {side} px, regions of {size}", "ms", "of ours"], rows), {
        n: v / base for n, v in seconds.items()
    }


def fidelity_section(args: argparse.Namespace, device: torch.device) -> tuple[Table, dict[str, Any]]:
    """Share of regions drawn by an approximation that the exact map forbids; chance is 1 - tau."""
    side, size, tau = 32, 16, 0.6
    if args.weights is None:
        torch.manual_seed(0)
        network = build_network("resnet18", 10, stem="cifar")
        trained = "random weights (--weights takes a trained weights.pt)"
    else:
        content = read_weights_only(args.weights)
        network = build_network(content["arch"], content["num_classes"], stem=content["stem"])
        network.load_state_dict(content["state_dict"])
        trained = str(args.weights)
    model: nn.Module = network.to(device)
    generator = torch.Generator().manual_seed(0)
    batch = 16 if args.shrink else 128
    images = F.interpolate(torch.randn(batch, 3, 8, 8, generator=generator), size=side, mode="bicubic").to(
        device
    )
    labels = torch.randint(network.fc.out_features, (batch,), generator=generator).to(device)
    exact = compute_saliency(model, images, labels, "full")
    half = model.to(torch.bfloat16)
    maps = {
        "bfloat16": compute_saliency(half, images.to(torch.bfloat16), labels, "full"),
        "max logit": compute_saliency(model.float(), images, model(images).argmax(1), "full"),
        "low resolution": compute_saliency(model, images, labels, "low_resolution"),
        "uniform (chance)": torch.ones_like(exact),
    }
    scores = region_scores(exact, size)[0]
    columns = scores.shape[2]
    flat = scores.flatten(1)
    limit = max(1, int(tau * flat.shape[1] + 1e-9))
    figures = {}
    for name, heat in maps.items():
        wrong = []
        for _ in range(5 if args.shrink else 20):
            drawn = sample_regions(heat, size, tau=tau, generator=generator)
            own = flat.gather(1, (drawn.top * columns + drawn.left)[:, None])
            wrong.append(((flat < own).sum(dim=1) >= limit).double().mean())
        figures[name] = float(torch.stack(wrong).mean())
    rows = [[name, f"{value:.3f}"] for name, value in figures.items()]
    return ([f"approximation, {trained}", "share of forbidden regions"], rows), figures


SECTIONS = {"saliency": saliency_section, "regions": regions_section, "fidelity": fidelity_section}


def show(table: Table) -> str:
    head, rows = table
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}; default all")
    add("--shrink", action="store_true", help="small sizes: does it run?")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--arch", default="resnet18")
    add("--batch", type=int, default=128)
    add("--side", type=int, default=32, help="pixels")
    add("--rounds", type=int, default=7)
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--weights", type=Path, help="weights.pt for the fidelity section")
    add("--output", type=Path, help="also write the figures as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if unknown := set(args.sections) - set(SECTIONS):
        print(
            f"error: unknown section {', '.join(unknown)}; there are {', '.join(SECTIONS)}", file=sys.stderr
        )
        return 2
    device, figures = torch.device(args.device), {}
    for name in args.sections or SECTIONS:
        table, figures[name] = SECTIONS[name](args, device)
        print(f"{name}\n{show(table)}\n", flush=True)
    if args.output is not None:
        write_json_atomic(args.output, {"figures": figures, "hardware": _hardware(), "packages": _packages()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
