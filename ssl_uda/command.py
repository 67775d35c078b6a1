"""Train on few labels and many unlabelled images: UDA or FixMatch, plain or with Keep, or the labelled images
alone.

    keepaug train-uda --config configs/ssl_uda/cifar10_4000.yaml root=DATA keep=true --seeds 0 1 2
    torchrun --nproc-per-node 4 -m keepaug train-uda --config configs/ssl_uda/cifar10_4000.yaml root=DATA

Every setting of the config can be changed by key=value (--help lists them). `--resume` goes on after an
interruption and ends with the same weights; with several seeds it goes on with those that are not finished.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from keepaug.runs.command import config_parser, run_seeds
from ssl_uda.config import UdaConfig, label
from ssl_uda.tool import TOOL


def build_parser() -> argparse.ArgumentParser:
    output = "runs/NAME-ALGORITHM-NUMlabels-seedSEED"
    return config_parser(__doc__, UdaConfig, configs="configs/ssl_uda", output=output)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    return run_seeds(args, TOOL, name=lambda config: (config.dataset, label(config)))
