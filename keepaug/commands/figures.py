"""Draw pictures for a paper: its figures 2 (accuracy against Cutout's length and RandAugment's magnitude) and 3
(against tau), what an audit found, differences of Keep and plain with intervals.

    keepaug figures audit AUDIT --output audit.pdf                 an audit's folder: one column wide
    keepaug figures pairs RUNS --output pairs.svg                  each task's runs with and without Keep
    keepaug figures 2 RUNS --output figure2.png                    from result.json files in RUNS
    keepaug figures 2 RUNS --dry-run root=CIFAR precision=bf16     the commands of missing runs
    keepaug figures 2 RUNS --run --seeds 0 1 2 root=CIFAR          run them here in turn, then draw
    keepaug figures 3 RUNS --run --shrink                          two steps each on drawn images

The paper's curves are Wide ResNet-28-10's and are printed as pictures; numbers of its tables 2 and 4 stand
beside ours, named. Figure 1's panels on any image: keepaug show. The ending of --output decides the format:
pdf and svg are drawn with lines, png has 300 dots an inch; letters have 8 points.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keepaug.commands.known import results, tool
from keepaug.commands.reproduce import run_here
from keepaug.report.aggregate import aggregate
from keepaug.report.charts import draw_audit, draw_pairs
from keepaug.report.figures import FIGURES, draw_figure, find_points, wanted_settings
from keepaug.report.page import sections
from keepaug.runs.command import HOURS_HINT, CommandParser, add_seeds, exit_code
from keepaug.runs.configs import CONFIGS
from keepaug.runs.planning import Job, command_of, shrunk

TOOL = "train_classifier"
POLICY_CONFIG = "cifar10_auto_augment.yaml"  # what RandAugment's panels start from
CONFIG_OF = {"wrn28_10": "cifar10_wrn28_10.yaml"}  # others: cifar10.yaml with arch=


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("figure", choices=[*sorted(FIGURES), "audit", "pairs"], help="of the paper; or of your results")
    add("runs", type=Path, metavar="RUNS", help="folder with the runs; --run adds to it; audit: its folder")
    add("--output", type=Path, help="default figureN.png, audit.pdf, pairs.pdf")
    add("--arch", default=None, help="default wrn28_10, the paper's; with --shrink resnet8")
    add("--shortened", action="store_true", help="draw shortened runs, without the paper's numbers")
    add("--dry-run", action="store_true", help="print the commands of what is missing, and draw nothing")
    add("--run", action="store_true", help="run what is missing first")
    add_seeds(parser, "with --run or --dry-run: a run each; default 0")
    add("--shrink", action="store_true", help="with --run or --dry-run: two steps each; implies --shortened")
    add("overrides", nargs="*", metavar="key=value", help="for every run, for example root=CIFAR")
    return parser


def config_of(arch: str, settings: Mapping[str, Any]) -> Path:
    policy = "rand_augment" in str(settings["method"])
    name = POLICY_CONFIG if policy else CONFIG_OF.get(arch, "cifar10.yaml")
    return CONFIGS / "classify" / name


def given_of(args: argparse.Namespace, settings: Mapping[str, Any], seed: int) -> list[str]:
    own = {**settings, "arch": args.arch, "seed": seed}
    given = [*(f"{key}={value}" for key, value in own.items()), *args.overrides]
    return shrunk(tool(TOOL), config_of(args.arch, settings), given) if args.shrink else given


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """The runs of the figure that are not finished, seeds outermost."""
    if args.shrink and args.run and not any(item.startswith("root=") for item in args.overrides):
        from keepaug.data.synthetic import write_classification

        root = args.runs / "drawn"
        if not root.is_dir():
            write_classification(root, num_train=24, num_val=8, num_classes=2, size=(32, 32))
        args.overrides += ["dataset=image_folder", "loading=memory", f"root={root}"]
    jobs = {}
    for seed in args.seeds or [0]:
        for _, _, settings in wanted_settings(args.figure):
            parts = [f"{key}_{value}" for key, value in settings.items()]
            name = "-".join([args.arch, *parts, f"seed{seed}"])
            config, given = config_of(args.arch, settings), given_of(args, settings, seed)
            command = command_of(tool(TOOL), config, args.runs / name, given)
            one, spent = tool(TOOL), tool(TOOL).spent if args.shrink else ()
            jobs[name] = Job(name, args.runs / name, (command,), one, one.load(config, given), spent=spent)
    return [job for job in jobs.values() if job.state != "done"]


def _audit(folder: Path) -> dict[str, Any]:
    path = folder / "audit.json" if folder.is_dir() else folder
    try:
        content = json.loads(path.read_text())
        return {key: content[key] for key in ("rows", "data")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no audit.json, which keepaug audit writes: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    args.arch = args.arch or ("resnet8" if args.shrink else "wrn28_10")
    comparable = not (args.shortened or args.shrink)

    def act() -> int:
        if args.figure == "audit":
            print(draw_audit(_audit(args.runs), args.output or Path("audit.pdf")))
            return 0
        if args.figure == "pairs":
            own = sections(aggregate(results(args.runs)))
            print(draw_pairs(own, args.output or Path("pairs.pdf")))
            return 0
        if args.dry_run:
            for command in (one for job in jobs_of(args) for one in job.commands):
                print(shlex.join(command.argv))
            print(f"# {HOURS_HINT}")
            return 0
        if args.run and (failed := run_here(jobs_of(args), in_process=False)):
            raise ValueError(f"failed: {', '.join(failed)}; the same command tries them again")
        groups = aggregate(results(args.runs))
        points = find_points(args.figure, groups, arch=args.arch, comparable=comparable)
        for point in points:
            if point.group is None:
                print("not run: " + " ".join(f"{key}={value}" for key, value in point.settings.items()))
            elif "train" in "".join(c.metric for c in point.panel.curves) and not point.group.values(
                "train_accuracy"
            ):
                print(f"no train accuracy in {point.group.first['folder']}")
        output = args.output or Path(f"figure{args.figure}.png")
        print(draw_figure(args.figure, points, output, arch=args.arch, comparable=comparable))
        return 0

    return exit_code(act, goes_on="the same command goes on")
