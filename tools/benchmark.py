"""Measure what KeepAugment costs and how faithful its approximations are, as ratios in one run.

    python tools/benchmark.py                       # the sections that need no other package
    python tools/benchmark.py regions --shrink      # one section, small

Sections: `saliency` (table 3 of the paper as ratios: a step with each saliency pass, and the augmentation calls alone), `pipeline`
(images per second of the input beside a step's), `regions` (ways of choosing a region below the quantile), `fidelity` (share of
regions that an approximation, or a map carried over from an earlier epoch, allows and the exact map forbids); and, only when
named, `uda` (what Keep adds to a UDA step, a minute), `reid_evaluation`, `reid_reranking` (3 minutes, 10 GB where torchreid is
installed) and `reid_large_gallery` (6 GB).
The variants take turns, so that a change of the machine's speed hits all of them; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug import region_scores, sample_regions
from keepaug.runs.files import write_json_atomic
from keepaug.runs.result import _hardware, _packages
from keepaug.runs.timing import Table, interleaved


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


def _lazily(module: str, name: str) -> Section:
    """A section that is imported when it runs, with what it compares with."""
    return lambda args, device: getattr(importlib.import_module(module), name)(args, device)


Section = Callable[[argparse.Namespace, torch.device], tuple[Table, dict[str, Any]]]
COMMON: dict[str, Section] = {
    "saliency": _lazily("keepaug.classify.benchmark", "saliency_section"),
    "pipeline": _lazily("keepaug.classify.benchmark", "pipeline_section"),
    "regions": regions_section,
    "fidelity": _lazily("keepaug.classify.fidelity", "fidelity_section"),
}
SECTIONS: dict[str, Section] = {
    **COMMON,
    "reid_evaluation": _lazily("reid.benchmark", "evaluation_section"),
    "reid_reranking": _lazily("reid.benchmark", "reranking_section"),
    "reid_large_gallery": _lazily("reid.benchmark", "large_gallery_section"),
    "uda": _lazily("ssl_uda.benchmark", "uda_section"),
}


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
    add(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"some of {', '.join(SECTIONS)}; default {', '.join(COMMON)}",
    )
    add("--shrink", action="store_true", help="small sizes: does it run?")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--arch",
        action="append",
        help="saliency, pipeline, uda: a network; may be repeated; default: those of table 3, and wrn28_2",
    )
    add("--batch", type=int, default=128)
    add("--side", type=int, default=32, help="pixels")
    add("--rounds", type=int, default=7)
    add(
        "--processor-time",
        action="store_true",
        help="saliency, pipeline, uda: of this process, where others run too",
    )
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--compile", action="store_true", help="saliency, pipeline: with torch.compile")
    add("--workers", type=int, default=0, help="pipeline: also with that many decoding processes")
    add(
        "--weights",
        type=Path,
        help="fidelity: weights.pt of tools/train_classifier.py, best with an early head",
    )
    add(
        "--data",
        type=Path,
        help="fidelity: CIFAR-10, whose validation images are looked at; default: drawn images",
    )
    add("--images", type=int, default=256, help="fidelity: how many")
    add(
        "--earlier",
        type=Path,
        nargs="+",
        default=[],
        help="fidelity: earlier checkpoint.pt of the run of --weights",
    )
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
    for name in args.sections or COMMON:
        table, figures[name] = SECTIONS[name](args, device)
        print(f"{name}\n{show(table)}\n", flush=True)
    if args.output is not None:
        write_json_atomic(args.output, {"figures": figures, "hardware": _hardware(), "packages": _packages()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
