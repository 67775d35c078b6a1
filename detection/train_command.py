"""Train and evaluate a detector: our names of settings, or the command line of Detectron2's own script.

    keepaug train-detector --config detection/faster_rcnn_R_50_FPN_3x root=COCO weights=converted.pth --num-gpus 8
    keepaug train-detector --config-file FILE --num-gpus 8 --data-root COCO MODEL.WEIGHTS converted.pth
    keepaug train-detector --config ... --seeds 1 2 3      one run after the other, then mean and spread
    keepaug train-detector --eval-only runs/detection/x root=COCO          a run's last weights, with its config

`--resume` goes on after an interruption; `--eval-only weights=model_final.pth` only evaluates;
`--eval-only --results-json FILE` scores earlier results again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detection.coco import CocoPaths
from detection.config import defaults, flat
from detection.driver import run
from detection.prepare import BACKENDS, ENGINES, DetectorJob, choose_engine, load_settings
from detection.tool import TOOL
from keepaug.runs.command import (
    DRY_RUN_HELP,
    RESUMES,
    CommandParser,
    Run,
    add_seeds,
    do_all,
    exit_code,
    of_seed,
    refuse_to_rehearse,
    split_settings,
    whose,
)
from keepaug.runs.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add(
        "--config",
        "--config-file",
        dest="config_file",
        type=Path,
        metavar="FILE",
        help="a YAML file in Detectron2's form, or a name that `keepaug configs detection` lists",
    )
    add("--output", type=Path, metavar="DIR", help="run folder; the same as OUTPUT_DIR=DIR")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add_seeds(parser)
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS (--resume: the last checkpoint)")
    add("--shrink", action="store_true", help="two small steps on a few images: does it run?")
    add("--dry-run", action="store_true", help=DRY_RUN_HELP)
    add("--num-gpus", type=int, default=1, help="GPUs per machine; without a GPU, processes")
    add("--num-machines", type=int, default=1, help="number of machines")
    add("--machine-rank", type=int, default=0, help="this machine's number, from 0")
    # One port per user: a run left over is noticed, because the port is taken.
    port = 2**15 + 2**14 + hash(os.getuid() if hasattr(os, "getuid") else 1) % 2**14
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", help="where the processes meet")
    add("--engine", choices=ENGINES, default="auto", help="auto: detectron2 where it is installed")
    data = parser.add_argument_group(
        "data", "default: $DETECTRON2_DATASETS/coco or datasets/coco; explicit files go before --data-root"
    )
    add = data.add_argument
    add(
        "--data-root",
        type=Path,
        help="folder with train2017, val2017 and annotations/instances_*2017.json, or with train, val and annotations/{train,val}.json",
    )
    add("--train-json", type=Path, help="annotations of coco_2017_train")
    add("--train-images", type=Path, help="images of coco_2017_train")
    add("--val-json", type=Path, help="annotations of coco_2017_val")
    add("--val-images", type=Path, help="images of coco_2017_val")
    add(
        "--limit-images",
        dest="max_images",
        type=int,
        metavar="N",
        help="only the first N annotated images of each split; marked as shortened",
    )
    add("--strict-boxes", action="store_true", help="refuse boxes that would be dropped or clipped")
    output = parser.add_argument_group("evaluation")
    add = output.add_argument
    add(
        "--evaluator",
        choices=BACKENDS,
        default="auto",
        help="auto: the fastest that is installed; the same figures",
    )
    add("--results-json", type=Path, help="with --eval-only: score this COCO results file, run no network")
    add("--draw", type=int, default=0, metavar="N", help="draw N images with predictions and ground truth")
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings: SOLVER.BASE_LR=0.01, or KEY VALUE as Detectron2 takes them; and under the names of the "
        "other commands root, weights, seed, device, num_workers, tracker",
    )
    return parser


OURS = {
    "weights": "MODEL.WEIGHTS",
    "seed": "SEED",
    "device": "MODEL.DEVICE",
    "num_workers": "DATALOADER.NUM_WORKERS",
}
"""Settings that the other commands have too, and Detectron2's names for them."""


def settings_of(items: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """`root` and `tracker`, as far as they are given, and KEY VALUE pairs of what was given in either form.

    Raises:
        ConfigError: a name that neither we nor Detectron2 have.
    """
    own, opts = dict[str, str](), list[str]()
    for item in items:
        key, equals, value = item.partition("=")
        waiting = len(opts) % 2  # a value, whatever it looks like
        if waiting or not equals:
            opts.append(item)
        elif key in ("root", "tracker"):
            own[key] = value
        elif key in OURS or re.fullmatch(r"[A-Z][A-Z0-9_]*|\w+(\.\w+)+", key):
            opts += [OURS.get(key, key), value]
        else:
            raise ConfigError(
                f"{key} is no setting of train-detector{whose(key)}; its own are Detectron2's, such as "
                f"SOLVER.BASE_LR=0.01, and root, tracker, {', '.join(OURS)}"
            )
    return own, opts


def own_config(given: Sequence[str]) -> list[str]:
    """`--eval-only RUN` as the run's own config and weights, before what else is given.

    Raises:
        ConfigError: that is no run.
    """
    option = "--eval-only"
    given = [part for one in given for part in (one.split("=", 1) if one.startswith(f"{option}=") else [one])]
    place = given.index(option) + 1 if option in given else 0
    if not 0 < place < len(given) or re.match(r"-|[\w.]+=", given[place]):
        return given
    run = Path(given[place])
    if not (run / "config.yaml").is_file():
        if re.fullmatch(r"[A-Z][A-Z0-9_.]*", given[place]) and not run.exists():  # KEY VALUE
            return given
        raise ConfigError(
            f"{option} takes a run's folder, and {run} has no config.yaml; weights alone are evaluated by "
            f"--config FILE {option} weights=FILE"
        )
    own = ["--config", str(run / "config.yaml"), "--resume", f"OUTPUT_DIR={run}"]
    return [*given[: place - 1], option, *own, *given[place + 1 :]]


def job_from(args: argparse.Namespace, parser: argparse.ArgumentParser) -> DetectorJob:
    splits = {}
    for split in ("train", "val"):
        json_path, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if (json_path is None) != (images is None):
            parser.error(f"--{split}-json and --{split}-images go together")
        splits[split] = CocoPaths(json_path, images) if json_path is not None else None
    if args.config_file is None and args.results_json is None:
        parser.error("--config is needed (`keepaug configs detection` lists what there is)")
    own, opts = settings_of(args.opts)
    if args.shrink:
        small = {**TOOL.shrink, "SOLVER.IMS_PER_BATCH": args.num_gpus * args.num_machines}
        theirs = {key for key in small if key.endswith("NUM_CLASSES")}  # the data's
        opts = [str(part) for key in small.keys() - theirs for part in (key, small[key])] + opts
    if args.output is not None:
        opts += ["OUTPUT_DIR", str(args.output)]
    return DetectorJob(
        config_file=args.config_file,
        opts=tuple(opts),
        engine=args.engine,
        resume=args.resume,
        eval_only=args.eval_only,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        data_root=args.data_root or (Path(own["root"]) if own.get("root") else None),
        train=splits["train"],
        val=splits["val"],
        max_images=4 if args.shrink and args.max_images is None else args.max_images,
        strict_boxes=args.strict_boxes,
        results_json=args.results_json,
        backend=args.evaluator,
        draw=args.draw,
        tracker=own.get("tracker", "none"),
    )


def _seeds(args: argparse.Namespace) -> list[int]:
    """Of `--seeds 1 2 KEY VALUE`, where the rest goes to the other settings."""
    first = next((place for place, one in enumerate(args.seeds) if not one.isdecimal()), len(args.seeds))
    args.opts = [*args.opts, *args.seeds[first:]]
    return split_settings(args.seeds[:first] or args.seeds, [])[0]


def _not_usual(cfg: Any) -> Mapping[str, Any]:
    usual = flat(defaults())
    return {key: value for key, value in flat(cfg).items() if value != usual.get(key)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    try:
        given = own_config(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        parser.error(str(error))
    args = parser.parse_intermixed_args(given)

    def act() -> int:
        args.seeds = _seeds(args)
        job = job_from(args, parser)
        if job.eval_only:
            refuse_to_rehearse(args)
            run(job)
            return 0
        cfg = load_settings(job, choose_engine(job.engine)[0])

        def of(seed: int) -> Run:
            own = cfg.clone()
            own.defrost()
            own.SEED = seed
            return Run(own, of_seed(Path(cfg.OUTPUT_DIR), seed))

        def job_of(one: Run, dry_run: int = 0) -> DetectorJob:
            own = ("SEED", str(one.config.SEED), "OUTPUT_DIR", str(one.output))
            return dataclasses.replace(job, opts=(*job.opts, *own), dry_run=dry_run)

        def train(one: Run) -> Mapping[str, float]:
            found = run(job_of(one))
            return {} if found is None else found.metrics

        def rehearse(one: Run, number: int) -> None:
            run(job_of(one, number))

        do_all(
            args,
            TOOL,
            [of(seed) for seed in args.seeds] or [Run(cfg, Path(cfg.OUTPUT_DIR))],
            train=train,
            rehearse=rehearse,
            settings=_not_usual,
            root=str(job.data_root or ""),
            says=job.machine_rank == 0,
        )
        return 0

    return exit_code(act, goes_on=RESUMES)
