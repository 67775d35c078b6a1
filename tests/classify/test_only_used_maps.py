"""The classifier's step computes maps of the images that it augments, and draws what all maps would have
given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from keepaug.classify import ClassifyConfig, loop
from keepaug.classify.datasets import Datasets
from keepaug.data.images import MemoryImages
from keepaug.runs.distributed import Distributed

CASES: list[tuple[dict[str, Any], bool]] = [
    ({"method": "keep_random_erasing", "p": 0.5}, True),
    ({"method": "keep_cutout", "p": 0.5, "size": 8}, True),
    ({"method": "keep_cutmix", "p": 0.5}, True),
    ({"method": "keep_random_erasing", "p": 0.5, "saliency": "early_head"}, True),
    ({"method": "keep_cutout", "p": 0.5, "size": 8, "saliency": "other"}, False),  # a neighbour's map is used
    ({"method": "keep_cutout", "p": 0.5, "size": 8, "reuse_every": 2}, False),  # a later epoch uses it
    ({"method": "keep_cutout", "size": 8}, False),
]


def one_step(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, fewer: bool
) -> tuple[Any, Any, list]:
    config = ClassifyConfig(arch="resnet8", stem="cifar", batch_size=32, **settings)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=generator)
    train = MemoryImages(pixels, torch.arange(32) % 10, list("abcdefghij"), padding=4, flip=True)
    data = Datasets(train, train, (0.5,) * 3, (0.25,) * 3, {}, True)
    torch.manual_seed(0)
    run = loop._prepare(config, Distributed(0, 1, 0, torch.device("cpu")), data)
    chosen: list[torch.Tensor | None] = []
    inputs: list[torch.Tensor] = []
    compute, forward = loop.compute_saliency, loop._forward

    def spy(model: Any, images: Any, labels: Any, mode: str, *, only: Any = None, **more: Any) -> Any:
        chosen.append(only)
        return compute(model, images, labels, mode, only=only if fewer else None, **more)

    def kept(run: Any, images: Any, targets: Any) -> Any:
        inputs.append(images.detach())
        return forward(run, images, targets)

    monkeypatch.setattr(loop, "compute_saliency", spy)
    monkeypatch.setattr(loop, "_forward", kept)
    batch = train.load(torch.arange(32), torch.arange(32) * 10**12)
    loss = loop._step(run, batch, Path("nowhere"))
    monkeypatch.undo()
    return loss, inputs[0], chosen


@pytest.mark.parametrize(("settings", "fewer"), CASES, ids=lambda value: str(value))
def test_a_step_looks_at_what_it_augments(
    settings: dict[str, Any], fewer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, images, chosen = one_step(settings, monkeypatch, fewer=True)
    whole, expected, _ = one_step(settings, monkeypatch, fewer=False)
    assert [only is not None for only in chosen] == [fewer]
    assert (images == expected).all()
    assert loss == whole
    if fewer:
        assert 4 < int(chosen[0].sum()) < 28
