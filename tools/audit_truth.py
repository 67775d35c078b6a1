"""Is the audit true? On drawn data, whose objects are known, and against the accuracy that training gave.

    python tools/audit_truth.py maps --weights weights.pt --data DRAWN
    python tools/audit_truth.py runs RUNS --weights RUNS/none/weights.pt --data DATA

`maps` compares importance lost with the object's hidden share, for the full, low-resolution and early-head
maps (where the network has an early head), a constant map, and an untrained network. `runs` compares the
audit's figures of each setting with the accuracy of the runs below RUNS trained with it, by rank correlation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepaug.audit import audit
from keepaug.audit.images import Sample, open_source
from keepaug.audit.measures import hidden_share, importance_lost
from keepaug.data.batch_transforms import normalize
from keepaug.models.weights import load_classifier
from keepaug.regions import random_regions, region_mask
from keepaug.runs.result import read_results
from keepaug.runs.seeds import make_generator
from keepaug.saliency import saliency_map

TAU = 0.6
MEASURES = ("fidelity", "importance_lost", "destroyed", "flipped", "logit_drop", "diversity")


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's, in [-1, 1]; NaN where one of them is constant."""
    first, second = first.double() - first.double().mean(), second.double() - second.double().mean()
    scale = first.norm() * second.norm()
    return float((first * second).sum() / scale) if scale > 0 else float("nan")


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, in [-1, 1]: Pearson's of the ranks, ties sharing their mean rank."""
    return correlation(_ranks(first), _ranks(second))


def _ranks(values: Tensor) -> Tensor:
    below = (values[None] < values[:, None]).sum(dim=1)
    equal = (values[None] == values[:, None]).sum(dim=1)
    return below.double() + (equal.double() - 1) / 2


def calibration(told: Tensor, truth: Tensor, *, bins: int = 5) -> list[tuple[float, float, int]]:
    """Mean told, mean true, and their number, in equal bins over [0, 1]; empty ones left out."""
    place = (told.double() * bins).long().clamp(0, bins - 1)
    rows = []
    for number in range(bins):
        inside = place == number
        if bool(inside.any()):
            rows.append((float(told[inside].mean()), float(truth[inside].mean()), int(inside.sum())))
    return rows


def judge_maps(
    maps: Mapping[str, Tensor], masks: Tensor, *, size: int, draws: int, generator: torch.Generator
) -> dict[str, dict[str, Any]]:
    """How well the importance that a cut loses tells the share of the object that it hides, image by image.

    Args:
        maps: saliency (N, H, W) by name.
        masks: (N, H, W) bool, the object of each image.
        size: side of the squares that are cut, anywhere within the image; the same for all maps.
        draws: squares per image.
        generator: of the draws.

    Returns:
        By map: "correlation" and "rank_correlation" over all images and draws, "within" (mean correlation
        over the draws of one image, the image alone deciding nothing), "object" (share of the map's mass on
        the object) and "calibration" (mean importance lost, mean share hidden, number; five bins).
    """
    num, height, width = masks.shape
    cuts = [random_regions(num, (height, width), size, generator=generator) for _ in range(draws)]
    visible = [1 - region_mask(regions, (height, width)).float() for regions in cuts]
    everyone = torch.arange(num)
    truth = torch.stack([hidden_share(one, masks, everyone) for one in visible], dim=1)
    found = {}
    for name, heat in maps.items():
        lost = torch.stack([importance_lost(heat, one) for one in visible], dim=1)
        own = [correlation(lost[row], truth[row]) for row in range(num)]
        told = [value for value in own if value == value]
        found[name] = {
            "correlation": correlation(lost.flatten(), truth.flatten()),
            "rank_correlation": rank_correlation(lost.flatten(), truth.flatten()),
            "within": sum(told) / len(told) if told else float("nan"),
            "object": float(importance_lost(heat, 1 - masks.float()).mean()),
            "calibration": calibration(lost.flatten(), truth.flatten()),
        }
    return found


def maps(args: argparse.Namespace) -> dict[str, Any]:
    loaded = load_classifier(args.weights)
    sample = Sample(open_source(args.data), args.images, None, args.seed)
    pixels, labels, masks, _, _ = sample.load(0, len(sample))
    if labels is None or len(masks) != len(pixels):
        raise ValueError(f"{args.data} must be drawn data: classes, and one object an image (boxes.json)")
    inputs = normalize(pixels, loaded.mean, loaded.std)

    def heat(network: torch.nn.Module, **options: Any) -> Tensor:
        parts = zip(inputs.split(64), labels.split(64), strict=True)
        return torch.cat([saliency_map(network, some, own, **options) for some, own in parts])

    torch.manual_seed(args.seed)
    found = {"full": heat(loaded.network), "low resolution": heat(loaded.network, scale=0.5)}
    if loaded.early_head is not None:
        early = loaded.with_early_head()
        found["early head"] = heat(early, forward=early.forward_early)
        found["low resolution and early head"] = heat(early, forward=early.forward_early, scale=0.5)
    found["full, untrained network"] = heat(loaded.spec.build())
    found["constant map"] = torch.ones_like(found["full"])
    size = args.size or pixels.shape[2] * 3 // 8
    generator = make_generator(args.seed, "audit", "truth")
    return judge_maps(found, masks, size=size, draws=args.draws, generator=generator)


def named(config: dict[str, Any], arch: str) -> tuple[str, bool] | None:
    """The audit's name of what a run was trained with, and whether that is its Keep version.

    None of what the audit does not measure: another network, map or tau.
    """
    keep, method = config["method"].startswith("keep_"), config["method"].removeprefix("keep_")
    if config["arch"] != arch or (keep and (config["saliency"], config["tau"]) != ("full", TAU)):
        return None
    if method == "cutout":
        return f"cutout:{config['size']},{config['placement']}", keep
    if method == "random_erasing":
        low, high = config["area"]
        return f"random_erasing:p={config['p']},area_low={low},area_high={high}", keep
    if method == "rand_augment":
        return f"rand_augment:{config['num_ops']},{config['magnitude']},{config['size']}", keep
    return (f"cutmix:{config['alpha']},{config['placement']}", keep) if method == "cutmix" else None


def runs(args: argparse.Namespace) -> dict[str, Any]:
    accuracies: dict[tuple[str, bool], list[float]] = {}
    arch = load_classifier(args.weights).spec.arch
    for result in read_results(args.runs):
        if result["kind"] == "classify" and (name := named(result["config"], arch)) is not None:
            accuracies.setdefault(name, []).append(result["metrics"]["accuracy"])
    specs = sorted({spec for spec, _ in accuracies})
    if len(accuracies) < 3:
        known = f"runs of {len(accuracies)} settings that can be audited"
        raise ValueError(f"{args.runs} holds {known}; a correlation needs more")
    measured = audit(
        args.weights, args.data, specs, images=args.images, sweep=0, tau=TAU, seed=args.seed, quiet=True
    )
    rows = [row for row in measured.rows if (row["augmentation"], row["keep"]) in accuracies]
    table = []
    for row in rows:
        reached = accuracies[row["augmentation"], row["keep"]]
        told = {name: None if row[name] is None else row[name]["mean"] for name in MEASURES}
        entry = {"accuracy": statistics.mean(reached), "runs": len(reached)}
        table.append({"augmentation": row["augmentation"], "keep": row["keep"], **entry, **told})
    pairs = [
        {
            name: None if None in (plain[name], keep[name]) else keep[name] - plain[name]
            for name in ("accuracy", *MEASURES)
        }
        for plain, keep in itertools.product(table, table)
        if plain["augmentation"] == keep["augmentation"] and keep["keep"] and not plain["keep"]
    ]
    return {
        "settings": table,
        "correlations": _correlations(table, args.seed),
        "correlations of Keep - plain": _correlations(pairs, args.seed),
    }


def _correlations(table: Sequence[Mapping[str, Any]], seed: int) -> dict[str, dict[str, float]]:
    """Rank correlation of each measure with the accuracy, and its interval over resampled rows."""
    correlations = {}
    for measure in MEASURES:
        known = [entry for entry in table if entry[measure] is not None]
        if len(known) < 3:
            continue
        first = torch.tensor([entry[measure] for entry in known])
        second = torch.tensor([entry["accuracy"] for entry in known])
        generator = make_generator(seed, "audit", "runs")
        picked = torch.randint(len(known), (1000, len(known)), generator=generator)
        again = torch.tensor([rank_correlation(first[rows], second[rows]) for rows in picked])
        again = again[~again.isnan()].sort().values
        if not len(again):  # all alike
            continue
        correlations[measure] = {
            "rows": len(known),
            "rank_correlation": rank_correlation(first, second),
            "low": float(again[int(0.025 * len(again))]),
            "high": float(again[int(0.975 * (len(again) - 1))]),
        }
    return correlations


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("maps", "runs"):
        command = commands.add_parser(name, allow_abbrev=False)
        add = command.add_argument
        if name == "runs":
            add("runs", type=Path, help="folder of run folders")
        add(
            "--weights",
            type=Path,
            required=True,
            help="weights.pt whose saliency is judged; for runs: trained without augmentation",
        )
        add("--data", type=Path, required=True, help="image folder")
        add("--limit-images", dest="images", type=int, default=500)
        add("--seed", type=int, default=0)
        if name == "maps":
            add("--size", type=int, help="side of the cut squares; default 3/8 of the image's")
            add("--draws", type=int, default=20, help="squares per image")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        found = maps(args) if args.command == "maps" else runs(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
