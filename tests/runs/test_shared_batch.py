"""BatchNorm and gathered rows over the processes, against one process that has the whole batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import multiprocessing as mp

from keepaug.runs.distributed import SynchronizedBatchNorm, gather_all, setup, synchronize_batchnorm

LAYERS: dict[str, Any] = {
    "images": lambda: nn.BatchNorm2d(3),
    "features": lambda: nn.BatchNorm1d(3),
    "plain mean of all batches": lambda: nn.BatchNorm2d(3, momentum=None),
    "no parameters": lambda: nn.BatchNorm2d(3, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
}
PARTS = (3, 5)  # uneven


def batch(name: str, turn: int) -> Tensor:
    generator = torch.Generator().manual_seed(turn)
    shape = (sum(PARTS), 3) if name == "features" else (sum(PARTS), 3, 4, 2)
    return torch.randn(shape, generator=generator) * 2 + 5


def passes(layer: nn.Module, name: str, part: slice) -> dict[str, Any]:
    """Two steps: outputs, gradients of a loss that weighs images differently, statistics."""
    found: dict[str, Any] = {}
    for turn in range(2):
        inputs = batch(name, turn)[part].requires_grad_()
        weights = torch.arange(1.0, sum(PARTS) + 1)[part].view(-1, *[1] * (inputs.ndim - 1))
        outputs = layer(inputs)
        (outputs.pow(3) * weights).sum().backward()
        found |= {f"output {turn}": outputs.detach(), f"gradient {turn}": inputs.grad}
    found["parameters"] = [parameter.grad for parameter in layer.parameters()]
    found["statistics"] = list(layer.buffers())
    return found


def process(rank: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = setup("cpu")
    part = slice(0, PARTS[0]) if rank == 0 else slice(PARTS[0], None)
    found: dict[str, Any] = {}
    for name, make in LAYERS.items():
        network = synchronize_batchnorm(nn.Sequential(make()))
        assert isinstance(network[0], SynchronizedBatchNorm)
        found[name] = passes(network, name, part)
    rows = torch.arange(4.0)[2 * rank : 2 * rank + 2].requires_grad_()
    (gather_all(rows) ** 2 * torch.arange(1.0, 5)).sum().backward()
    found["rows"] = rows.grad
    torch.save(found, Path(root) / f"{rank}.pt")
    world.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("shared")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.spawn(process, args=(port, str(root)), nprocs=2)
    return [torch.load(root / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", LAYERS)
def test_two_processes_are_one(name: str, both: list[dict[str, Any]]) -> None:
    whole = passes(nn.Sequential(LAYERS[name]()), name, slice(None))
    first, second = (one[name] for one in both)
    for key in ("output 0", "gradient 0", "output 1", "gradient 1"):
        torch.testing.assert_close(torch.cat([first[key], second[key]]), whole[key], rtol=1e-4, atol=1e-4)
    for mine, theirs, expected in zip(
        first["parameters"], second["parameters"], whole["parameters"], strict=True
    ):
        torch.testing.assert_close(mine + theirs, expected, rtol=1e-4, atol=1e-4)
    for one in (first, second):
        torch.testing.assert_close(one["statistics"], whole["statistics"], rtol=1e-4, atol=1e-5)


def test_gathered_rows_have_their_gradient_from_every_process(both: list[dict[str, Any]]) -> None:
    # The loss is the same on both; each adds its gradient, whose mean DistributedDataParallel takes.
    expected = 2 * torch.arange(4.0) * torch.arange(1.0, 5) * 2
    assert torch.equal(torch.cat([one["rows"] for one in both]), expected)


def test_what_is_more_than_batchnorm_stays() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    network = synchronize_batchnorm(nn.Sequential(Activated(3), nn.Sequential(nn.BatchNorm1d(2))))
    assert type(network[0]) is Activated
    assert type(network[1][0]) is SynchronizedBatchNorm
