"""Train and evaluate a detector, with the command line of Detectron2's own script.

    python tools/train_detector.py --config-file configs/detection/faster_rcnn_R_50_FPN_3x.yaml --num-gpus 8 \
        --data-root COCO MODEL.WEIGHTS converted.pth SOLVER.BASE_LR 0.02

`--resume` goes on after an interruption; `--eval-only MODEL.WEIGHTS model_final.pth` only evaluates;
`--eval-only --results-json FILE` scores earlier results again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from detection.coco import CocoPaths
from detection.driver import run
from detection.prepare import BACKENDS, ENGINES, DetectorJob
from keepaug.runs.command import exit_code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config-file", type=Path, metavar="FILE", help="a YAML file in Detectron2's form")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS (with --resume: the last checkpoint)"
    )
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
    add("--data-root", type=Path, help="folder with train2017, val2017 and annotations/instances_*2017.json")
    add("--train-json", type=Path, help="annotations of coco_2017_train")
    add("--train-images", type=Path, help="images of coco_2017_train")
    add("--val-json", type=Path, help="annotations of coco_2017_val")
    add("--val-images", type=Path, help="images of coco_2017_val")
    add("--max-images", type=int, help="only the first N annotated images of each split; marked as shortened")
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
        metavar="KEY VALUE",
        help="config overrides: SOLVER.BASE_LR 0.01 ...; options may stand before and after them",
    )
    return parser


def job_from(args: argparse.Namespace, parser: argparse.ArgumentParser) -> DetectorJob:
    splits = {}
    for split in ("train", "val"):
        json_path, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if (json_path is None) != (images is None):
            parser.error(f"--{split}-json and --{split}-images go together")
        splits[split] = CocoPaths(json_path, images) if json_path is not None else None
    if args.config_file is None and args.results_json is None:
        parser.error("--config-file is needed (see configs/detection)")
    return DetectorJob(
        config_file=args.config_file,
        opts=tuple(args.opts),
        engine=args.engine,
        resume=args.resume,
        eval_only=args.eval_only,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        data_root=args.data_root,
        train=splits["train"],
        val=splits["val"],
        max_images=args.max_images,
        strict_boxes=args.strict_boxes,
        results_json=args.results_json,
        backend=args.evaluator,
        draw=args.draw,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    job = job_from(args, parser)

    def act() -> int:
        run(job)
        return 0

    return exit_code(act)
