"""Run all rows and columns of a table of the paper, over seeds; what is finished is skipped, what was
interrupted goes on.

    keepaug reproduce 1 root=CIFAR --output runs                  one run after the other here
    keepaug reproduce 6 root=IMAGENET --num-gpus 8 --slurm --partition gpu --hours 100    SLURM jobs
    keepaug reproduce 5 root=CIFAR --only "AugMix" --seeds 0 precision=bf16 channels_last=true
    keepaug reproduce 8 root=Market-1501-v15.09.15 weights=resnet101-63fe2227.pth
    keepaug reproduce 9 root=COCO imagenet=IMAGENET --num-gpus 8      backbones, conversion, detectors
    keepaug reproduce 1 --shrink                                  a step each on drawn images
    keepaug reproduce lab root=CIFAR --output runs --at-once 2    docs/evidence.md's pairs; --only a,b

Table 9's backbones are shared with table 6. key=value settings go to every run. `--dry-run` prints the
commands. `keepaug report table1 --runs runs` prints the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from keepaug.commands.known import results, tool
from keepaug.report.cells import Cell, load_cells, run_name
from keepaug.report.evidence import DATA, PlannedRun, load_evidence, of_run
from keepaug.runs.command import HOURS_HINT, CommandParser, add_seeds, exit_code
from keepaug.runs.configs import CONFIGS
from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.jobs import Command, Commands, slurm_executor
from keepaug.runs.planning import Job, command_of, settings_of, shrunk

KEPT = CONFIGS.parent / "docs" / "evidence"  # in a clone


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add(
        "table",
        help="1 (with its second half, 1b), 2, 4, 5, 6, 7, 8 or 9; or lab; table 3 is keepaug benchmark's",
    )
    add_seeds(parser, "default: as many as the paper averages over; with --shrink 0")
    add(
        "--only", metavar="TEXT", help='only cells whose "row / column" contains this; lab: questions, as a,b'
    )
    add("--output", type=Path, metavar="DIR", help="default runs; with --shrink runs-shrunk")
    add(
        "--shrink",
        action="store_true",
        help="a step each, on drawn data where no root is given; keeps results and what runs start from, no checkpoints",
    )
    add(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes of a run",
    )
    add("--at-once", type=int, default=1, metavar="N", help="runs at a time on this machine")
    add("--missing", action="store_true", help="lab: leave out what docs/evidence has pairs of")
    add("--dry-run", action="store_true", help="print what would run, and start nothing")
    slurm = parser.add_argument_group("SLURM (needs submitit)")
    slurm.add_argument("--slurm", action="store_true", help="submit one job per run and return")
    slurm.add_argument("--partition", help="default: the cluster's")
    slurm.add_argument(
        "--hours", type=float, default=24, help="time limit; a job that reaches it is queued again"
    )
    slurm.add_argument("--cpus", type=int, default=8, metavar="N", help="per GPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run")
    return parser


def cells_of(table: str) -> list[Cell]:
    table = table.removeprefix("table")
    return [cell for name in ([table, "1b"] if table == "1" else [table]) for cell in load_cells(name)]


def plan(args: argparse.Namespace) -> list[Job]:
    """The jobs of a table, each once, those that others need first.

    Raises:
        ValueError: nothing to run, or settings that cannot be meant.
    """
    if args.shrink and not args.seeds:
        args.seeds = [0]
    if args.table == "lab":
        return _lab(args)
    cells = [c for c in cells_of(args.table) if not args.only or args.only in f"{c.row} / {c.column}"]
    if not cells:
        raise ValueError(f"--only {args.only!r} fits no cell of table {args.table}")
    settings = settings_of(args.overrides)
    jobs: dict[str, Job] = {}
    for cell in cells:
        for seed in args.seeds or cell.seeds:
            for job in _jobs(cell, seed, settings, args.output, args):
                jobs.setdefault(job.name, job)
    return list(jobs.values())


def _lab(args: argparse.Namespace) -> list[Job]:
    """The paired experiments; says first what they cost."""
    evidence, settings = load_evidence(), settings_of(args.overrides)
    if clash := sorted(
        set(settings) & {"seed", *(key for run in evidence.runs.values() for key in run.settings)}
    ):
        raise ValueError(
            f"{', '.join(clash)}: that is what the runs differ in; --only and --seeds choose among them"
        )
    kept = results(KEPT) if args.missing and KEPT.is_dir() else []
    have = {name: of_run(kept, one) for name, one in evidence.wanted(tool, CONFIGS).items()}
    asked = args.only.split(",") if args.only else ()
    seeds = args.seeds or {seed for _, seed in evidence.order(asked)}
    jobs, minutes = [], 0.0
    for run, seed in evidence.missing(have, asked):
        if seed not in seeds:
            continue
        jobs.append(_planned(run, seed, settings, args))
        minutes += 0 if jobs[-1].state == "done" else run.core_minutes
    if not jobs:
        raise ValueError("nothing to run: no such seed is planned, or all results are kept in docs/evidence")
    print(f"{len(jobs)} runs; what is not done yet takes about {minutes / 60:.1f} core-hours", flush=True)
    return jobs


def _planned(run: PlannedRun, seed: int, settings: Mapping[str, str], args: argparse.Namespace) -> Job:
    """One of the paired experiments, after the run whose network it starts from."""
    own = {key: value for key, value in settings.items() if key not in ("root", *DATA.values())}
    data, given = DATA.get(run.tool, "root"), dict(run.settings)
    folder = settings.get(data)
    if folder is None and not args.shrink:
        raise ValueError(f"{data} is missing: give the folder of {run.name}'s images, as in {data}=FOLDER")
    before = args.output / f"{run.after}-seed{seed}"
    converted = before / "backbone.pth"
    if run.after:
        given |= (
            {"MODEL.WEIGHTS": converted}
            if run.tool == "train_detector"
            else {"weights": before / "weights.pt"}
        )
    if folder is not None and run.tool == "train_detector":
        given["data_root"] = folder
    elif folder is not None:
        own["root"] = folder
    elif run.tool == "train_detector":
        given["data_root"] = _drawn("coco", args.output)
    name = f"{run.name}-seed{seed}"
    job = _job(run.tool, run.config, given, seed, own, args.output, args, name=name)
    if not run.after:
        return job
    first = (_convert(before, converted),) if run.tool == "train_detector" else ()
    return dataclasses.replace(job, commands=(*first, *job.commands), after=(before.name,))


def _convert(classifier: Path, backbone: Path) -> Command:
    """From a classifier's run to a file that a detector starts from."""
    run = (sys.executable, "-m", "keepaug", "convert", "--weights", str(classifier / "weights.pt"))
    return Command((*run, "--output", str(backbone), "--verify"), backbone)


def _jobs(
    cell: Cell, seed: int, settings: Mapping[str, str], output: Path, args: argparse.Namespace
) -> list[Job]:
    """The run of a cell; for a detector the classifier (shared with table 6) before it."""
    if clash := sorted(set(settings) & ({*cell.overrides, "seed"})):
        raise ValueError(
            f"{', '.join(clash)}: that is what the cells of table {cell.table} are about; --only and --seeds "
            "choose among them"
        )
    if cell.backbone is None:
        return [_job(cell.tool, cell.config, cell.overrides, seed, settings, output, args)]
    root = settings.get("root") or (str(_drawn("coco", output)) if args.shrink else None)
    if root is None:
        raise ValueError("root is missing: give the folder of COCO, for example root=datasets/coco")
    below = {} if "imagenet" not in settings else {"root": settings["imagenet"]}
    backbone = _job("train_classifier", *cell.backbone, seed, below, output, args)
    converted = backbone.folder / "backbone.pth"
    own = {key: value for key, value in settings.items() if key not in ("root", "imagenet")}
    given = {"data_root": root, **own, "MODEL.WEIGHTS": str(converted)}
    detector = _job(cell.tool, cell.config, {}, seed, given, output, args, name=f"{cell.run}-seed{seed}")
    commands = (_convert(backbone.folder, converted), *detector.commands)
    return [backbone, dataclasses.replace(detector, commands=commands, after=(backbone.name,))]


def _job(
    name_of_tool: str,
    config: str,
    overrides: Mapping[str, Any],
    seed: int,
    settings: Mapping[str, str],
    output: Path,
    args: argparse.Namespace,
    *,
    name: str = "",
) -> Job:
    one = tool(name_of_tool)
    path, name = CONFIGS / config, name or f"{run_name(config, overrides)}-seed{seed}"
    given = dict(overrides)
    if args.shrink and one.name != "train_detector" and "root" not in settings:
        drawn = one.load(path, []).dataset if one.name == "train_classifier" else one.name
        given["root"] = str(_drawn(drawn, output))
    key = (
        {"SEED": seed + 1} if one.name == "train_detector" else {"seed": seed}
    )  # 0 or less: not seeded there
    pairs = [f"{key}={value}" for key, value in {**given, **settings, **key}.items()]
    pairs = shrunk(one, path, pairs) if args.shrink else pairs
    resolved = one.load(path, pairs)
    one.check(resolved)
    command = command_of(one, path, output / name, pairs, processes=args.num_gpus)
    root = str({**given, **settings}.get("data_root", ""))
    spent = one.spent if args.shrink else ()
    return Job(name, output / name, (command,), one, resolved, root, spent=spent)


def _drawn(what: str, output: Path) -> Path:
    """A small dataset drawn by the program in the real one's layout; results on it are marked synthetic."""
    from keepaug.data.synthetic import write_classification, write_detection

    root = output / "data" / what
    if what == "cifar10":
        return write_classification(root, num_train=20, num_val=10, num_classes=10, size=(24, 24))
    if what in ("imagenet", "image_folder"):
        return write_classification(root, num_train=8, num_val=4, num_classes=4, size=(56, 56))
    if what == "coco":
        return write_detection(root, num_train=4, num_val=2, num_classes=4)
    if what == "train_uda":
        return write_classification(root, num_train=60, num_val=20, num_classes=10, size=(32, 32))
    from keepaug.data.synthetic_reid import write_reid

    return write_reid(root)


def run_here(jobs: Sequence[Job], *, in_process: bool = True, at_once: int = 1) -> list[str]:
    """In their order, some of them at once; the names of those that failed. A failure stops only the jobs
    that need it.
    """
    failed: list[str] = []
    waiting = [(job, f"[{number}/{len(jobs)}] {job.name}") for number, job in enumerate(jobs, 1)]
    if at_once == 1:
        for job, head in waiting:
            _run(job, head, failed, in_process)
        return failed
    running: dict[Future[None], str] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            left = {*running.values(), *(job.name for job, _ in waiting)}
            ready = [one for one in waiting if left.isdisjoint(one[0].after)]
            for job, head in ready[: at_once - len(running)]:
                waiting.remove((job, head))
                running[pool.submit(_run, job, head, failed, False)] = job.name
            for one in wait(running, return_when=FIRST_COMPLETED).done:
                del running[one]
                one.result()
    return failed


def _run(job: Job, head: str, failed: list[str], in_process: bool) -> None:
    if (state := job.state) == "done":
        print(f"{head}: done before", flush=True)
        return
    if state.startswith("refused"):
        print(f"{head}: {state}", file=sys.stderr, flush=True)
        failed.append(job.name)
        return
    if lost := [name for name in job.after if name in failed]:
        print(f"{head}: left out, it needs {', '.join(lost)}", flush=True)
        failed.append(job.name)
        return
    print(f"{head}: {'going on' if state == 'begun' else 'starting'}", flush=True)
    try:
        if in_process and job.tool.name == "train_classifier":
            from keepaug.classify.loop import train

            train(job.settings, job.folder, resume=True)
        Commands(job.commands, job.spent)()  # without those that are done
    except (ValueError, OSError, ImportError, NonFiniteLossError, subprocess.CalledProcessError) as error:
        print(f"{head}: failed: {error}", file=sys.stderr, flush=True)
        failed.append(job.name)


def submit(jobs: Sequence[Job], args: argparse.Namespace, logs: Path, *, cluster: str = "slurm") -> list[Any]:
    """One submitit job per unfinished run; those that need another wait for it."""
    submitted: dict[str, Any] = {}
    for job in jobs:
        if (state := job.state) not in ("begun", "to do"):
            print(f"{job.name}: {'done before' if state == 'done' else state}", flush=True)
            continue
        executor = slurm_executor(
            logs / job.name,
            name=job.name,
            hours=args.hours,
            gpus=args.num_gpus,
            cpus=args.cpus,
            partition=args.partition,
            after=[submitted[name].job_id for name in job.after if name in submitted],
            cluster=cluster,
        )
        submitted[job.name] = executor.submit(Commands(job.commands, job.spent))
        print(f"{job.name}: job {submitted[job.name].job_id}", flush=True)
    return list(submitted.values())


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    args.output = (args.output or Path("runs-shrunk" if args.shrink else "runs")).resolve()

    def act() -> int:
        if args.at_once < 1:
            raise ValueError(f"--at-once must be 1 or more, got {args.at_once}")
        if args.num_gpus < 1:
            raise ValueError(f"--num-gpus counts the processes of a run, 1 or more, got {args.num_gpus}")
        jobs = plan(args)
        if args.dry_run:
            states = [job.state for job in jobs]
            for job, state in zip(jobs, states, strict=True):
                print(f"# {job.name}: {state}", *(shlex.join(one.argv) for one in job.commands), sep="\n")
            print(f"# {HOURS_HINT}")
            return 1 if any(state.startswith("refused") for state in states) else 0
        if args.slurm:
            submit(jobs, args, args.output / "slurm")
            return 0
        failed = run_here(jobs, in_process=args.num_gpus == 1, at_once=args.at_once)
        print(
            f"{len(jobs) - len(failed)} of {len(jobs)} runs of "
            f"{'lab' if args.table == 'lab' else f'table {args.table}'} are there"
        )
        if failed:
            print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
        return 1 if failed else 0

    return exit_code(act, goes_on="the same command goes on from the last checkpoint")
