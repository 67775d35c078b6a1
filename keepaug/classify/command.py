"""Train a classifier with KeepAugment or a baseline.

    keepaug train-classifier --config configs/classify/cifar10.yaml root=DATA method=keep_cutout
    torchrun --nproc-per-node 8 -m keepaug train-classifier --config configs/classify/imagenet.yaml root=DATA
    keepaug train-classifier --config ... --seeds 0 1 2    one run after the other, then mean, spread

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an
interruption and ends with the same weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from keepaug.classify.config import ClassifyConfig
from keepaug.classify.tool import TOOL
from keepaug.runs.command import config_parser, run_seeds


def build_parser() -> argparse.ArgumentParser:
    output = "runs/NAME-METHOD-seedSEED"
    return config_parser(__doc__, ClassifyConfig, configs="configs/classify", output=output)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    return run_seeds(args, TOOL, name=lambda config: (config.dataset, config.method))
