"""A UDA step on a GPU waits for its loss alone, at its end; checked without a GPU, on shapes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from fake_gpu import fake_gpu

from keepaug.runs.distributed import Distributed
from ssl_uda import loop
from ssl_uda.config import UdaConfig
from ssl_uda.data import CIFAR_MEAN, CIFAR_STD, Data
from ssl_uda.split import split_labels


@pytest.mark.parametrize(
    ("algorithm", "keep", "crops"),
    [
        ("supervised", False, "shared"),
        ("uda", False, "shared"),
        ("uda", False, "independent"),
        ("uda", True, "shared"),
        ("fixmatch", True, "shared"),
    ],
)
@pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:Accessing the data pointer")
def test_a_step_waits_for_its_loss_alone(algorithm: str, keep: bool, crops: str) -> None:
    config = UdaConfig(
        arch="wrn10_1",
        algorithm=algorithm,
        keep=keep,
        crops=crops,
        num_labels=20,
        batch_size=4,
        unlabelled_ratio=3,
        precision="bf16",
        p=1.0,
    )
    labels = torch.arange(60) % 10
    events: list[str] = []

    def start(values: Tensor) -> Any:
        events.append("start")
        return lambda: events.append("read") or torch.ones(())

    with fake_gpu() as watch, mock.patch.object(loop, "start_reading", start):
        images = torch.zeros(60, 3, 32, 32, dtype=torch.uint8, device="cuda")
        split = split_labels(labels, 20, 10, config.split, seed=0, unlabelled=config.unlabelled)
        data = Data(
            images,
            labels.to("cuda"),
            split,
            images,
            labels,
            list("abcdefghij"),
            CIFAR_MEAN,
            CIFAR_STD,
            {},
            True,
        )
        run = loop._prepare(config, Distributed(0, 1, 0, torch.device("cuda")), data)
        watch.waits.clear()  # of building the network
        with (
            mock.patch.object(run.optimizer, "step", side_effect=lambda: events.append("optimizer")),
            mock.patch("keepaug.runs.guard.start_reading", start),
        ):
            loop._step(run, 0, 0.1, mock.Mock(last_checkpoint=None))
    assert watch.waits == []
    number = 2 if keep else 1
    assert events == ["start"] * number + ["optimizer"] + ["read"] * number
