"""Two processes equal one: batches, erased regions, gradients, BatchNorm statistics, features."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reid_helpers import tiny_config, write_market
from torch import multiprocessing as mp
from torch import nn

from keepaug.runs.distributed import (
    Distributed,
    SynchronizedBatchNorm,
    gather_rows,
    setup,
    synchronize_batchnorm,
)
from reid.data.manager import open_manager
from reid.models.weights import build
from reid.training.engine import KeepEngine
from reid.training.loop import train

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]

VARIANTS = {"shared": [], "local_batchnorm": ["sync_batchnorm=false"]}
SETTINGS = ["arch=torchreid:osnet_x0_25", "p=1.0", "identities=4", "images=2"]


def one_step(root: str, world: Distributed, overrides: list[str]) -> dict[str, Any]:
    config = tiny_config(Path(root), *SETTINGS, *overrides)
    torch.manual_seed(0)
    manager = open_manager(config, world)
    engine = KeepEngine(manager, build(config, manager.num_train_pids), config, world)
    inputs: list[torch.Tensor] = []
    engine.network.register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].detach()) if module.training else None
    )
    scored = engine.test()  # before the step: Adam makes much of gradients that are 0 up to rounding
    engine.network.train()
    losses = engine.forward_backward(next(iter(engine.train_loader)))
    return {
        "losses": losses,
        "inputs": inputs[-1],
        "gradients": {
            key: value.grad.clone()
            for key, value in engine.network.named_parameters()
            if value.grad is not None
        },
        "centres": engine.center.centres.grad.clone(),
        "statistics": {
            key: value.clone() for key, value in engine.network.named_buffers() if "running" in key
        },
        "metrics": scored["m"].metrics if scored else None,
        "features": scored["m"].query if scored else None,
    }


def process(rank: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = setup("cpu")
    found: dict[str, Any] = {name: one_step(root, world, settings) for name, settings in VARIANTS.items()}
    rows = torch.arange(5.0)[rank::2, None]
    found["rows"] = gather_rows(rows, 5)
    # A whole run, which ends by leaving the process group.
    found["run"] = train(tiny_config(Path(root), *SETTINGS, "max_steps=1"), Path(root).parent / "run")
    torch.save(found, Path(root) / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    root = write_market(tmp_path_factory.mktemp("p") / "m")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.spawn(process, args=(port, str(root)), nprocs=2)
    alone = one_step(str(root), setup("cpu"), [])
    return alone, [torch.load(root / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest difference relative to the tensor's largest element (if not 0 up to rounding)."""
    assert first.keys() == second.keys()
    rounding = 1e-5 * max(
        float(value.abs().max()) for value in first.values()
    )  # a bias before BatchNorm has no gradient
    return max(
        float((first[key] - second[key]).abs().max()) / max(float(first[key].abs().max()), rounding)
        for key in first
    )


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Length of the difference of all tensors relative to their length."""
    both = [torch.cat([value.flatten() for value in one.values()]) for one in (first, second)]
    return float((both[0] - both[1]).norm() / both[0].norm())


def test_inputs_with_their_erased_regions_are_the_same(runs: Any) -> None:
    alone, both = runs
    # BatchNorm in evaluation mode does not mix images, so the saliency and all that follows is equal.
    torch.testing.assert_close(torch.cat([one["shared"]["inputs"] for one in both]), alone["inputs"])


def test_gradients_and_losses_are_those_of_one_process(runs: Any) -> None:
    alone, both = runs
    for one in both:
        found = one["shared"]
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert distance(alone["gradients"], found["gradients"]) < 1e-4
        assert difference(alone["gradients"], found["gradients"]) < 2e-2
        torch.testing.assert_close(found["centres"], alone["centres"], rtol=1e-3, atol=1e-4)
        assert difference(alone["statistics"], found["statistics"]) < 1e-4
    assert difference(both[0]["shared"]["gradients"], both[1]["shared"]["gradients"]) == 0


def test_without_shared_batchnorm_they_differ(runs: Any) -> None:
    alone, both = runs
    assert distance(alone["gradients"], both[0]["local_batchnorm"]["gradients"]) > 0.05


def test_features_and_scores_are_those_of_one_process(runs: Any) -> None:
    alone, both = runs
    main, other = (one["shared"] for one in both)
    assert other["metrics"] is None
    assert main["metrics"] == pytest.approx(alone["metrics"], rel=1e-3)
    torch.testing.assert_close(main["features"], alone["features"], rtol=1e-4, atol=1e-6)
    for one in both:
        assert one["rows"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_whole_run_is_written_once(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, both = runs
    assert both[0]["run"]["mAP"] > 0
    assert both[1]["run"] == {}  # the main process writes


def test_shared_batchnorm_alone_is_batchnorm() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
    )
    keys = list(network.state_dict())
    images = torch.randn(6, 3, 4, 4)
    with torch.no_grad():
        expected = network(images)
        network[1].reset_running_stats()
        network[4].reset_running_stats()
    synchronize_batchnorm(network)
    assert isinstance(network[1], SynchronizedBatchNorm)
    assert list(network.state_dict()) == keys
    torch.testing.assert_close(network(images), expected)


def test_a_whole_run_is_that_of_one_process(tmp_path: Path) -> None:
    """In double precision, where nothing but the order of sums is left; a query more than can be shared."""
    root = write_market(tmp_path / "m", test=3)
    options = [
        f"root={root}", "arch=torchreid:osnet_x0_25", "height=48", "width=32", "padding=2", "identities=2",
        "images=2", "epochs=2", "lr=0.001", "warmup_epochs=1", "ranked=0", "num_workers=1", "max_steps=4",
        "tensorboard=false", "pictures=false", "log_every=1", "device=cpu", "precision=float32", "p=1",
    ]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    found = []
    for name, start in (("one", []), ("two", torchrun)):
        command = [sys.executable, *start, str(TESTS / "in_double.py"), "train-reid", *options]
        done = subprocess.run(
            [*command, "--output", str(tmp_path / name)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        state = torch.load(tmp_path / name / "weights.pt", weights_only=True)["state_dict"]
        found.append((state, [json.loads(line) for line in lines]))
    (one, logged), (two, logged_by_two) = found
    for key, value in one.items():
        assert value.dtype in (torch.float64, torch.int64)
        # A bias before BatchNorm has no gradient but rounding, and Adam divides that by its size.
        if not key.endswith(("fc.0.bias", "fc.1.running_mean")):
            torch.testing.assert_close(two[key], value, atol=1e-8, rtol=0)
    assert len(logged) == 5
    for ours, theirs in zip(logged, logged_by_two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)
