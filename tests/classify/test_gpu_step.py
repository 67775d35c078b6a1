"""A training step on a GPU waits for nothing but its loss, at its end; checked without a GPU, on shapes."""

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

from keepaug.classify import ClassifyConfig, loop
from keepaug.classify.datasets import Datasets
from keepaug.classify.methods import METHODS, build_batch_policy
from keepaug.data.images import MemoryImages
from keepaug.runs.distributed import Distributed


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "none", "ema": 0.99, "clip_norm": 5.0, "lighting": 0.1},
        {"method": "cutout"},
        {"method": "grid_mask"},
        {"method": "mixup"},
        {"method": "manifold_mixup"},
        {"method": "attentive_cutmix"},
        {"method": "drop_block", "drop_block": 0.1},
        {"method": "aug_mix"},
        {"method": "keep_cutmix"},
        {"method": "keep_random_erasing"},
        {"method": "keep_rand_augment", "cutout_after": 8},
        *({"method": "keep_cutout", "saliency": mode} for mode in ("full", "low_resolution", "early_head")),
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
@pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:Accessing the data pointer")
def test_a_step_waits_for_its_loss_alone(settings: dict[str, Any]) -> None:
    config = ClassifyConfig(arch="resnet18", stem="cifar", batch_size=8, precision="bf16", **settings)
    pixels, labels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 10
    policy = build_batch_policy(config)
    train = MemoryImages(pixels, labels, list("abcdefghij"), padding=4, flip=True, policy=policy)
    data = Datasets(train, train, (0.5,) * 3, (0.25,) * 3, {}, True)
    events: list[str] = []

    def start(loss: Tensor) -> Any:
        events.append("start")
        return lambda: events.append("read") or torch.ones(())

    world = Distributed(0, 1, 0, torch.device("cuda"))
    reading = mock.patch.object(loop, "start_reading", start)
    with fake_gpu() as watch, reading, mock.patch("keepaug.runs.guard.start_reading", start):
        run = loop._prepare(config, world, data)
        batch = train.load(torch.arange(8), torch.arange(8) * 10**12)
        watch.waits.clear()  # of building the network
        with mock.patch.object(run.optimizer, "step", side_effect=lambda: events.append("optimizer")):
            loop._step(run, batch, Path("nowhere"))
    assert watch.waits == []
    number = 2 if METHODS[config.method].needs_saliency else 1
    assert events == ["start"] * number + ["optimizer"] + ["read"] * number
