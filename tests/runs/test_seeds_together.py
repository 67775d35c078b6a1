"""Several seeds in several processes: one process group, which nobody leaves before the last run."""

from __future__ import annotations

import argparse
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import multiprocessing as mp

from keepaug.runs.command import run_seeds
from keepaug.runs.distributed import setup
from keepaug.runs.planning import Tool


def train(config: Any, output: Path, *, resume: bool) -> dict[str, float]:
    """A run whose main process has something to write when the others are done."""
    world = setup(config.device)
    try:
        total = world.sum(torch.ones(1))
        if world.is_main:
            time.sleep(0.5)
        return {"processes": float(total)}
    finally:
        world.close()


def process(rank: int, port: int, root: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    args = argparse.Namespace(
        config=None,
        output=Path(root) / "r",
        resume=False,
        seeds=["0", "1", "2"],
        shrink=False,
        dry_run=False,
        overrides=[],
    )
    tool = Tool(
        "t",
        "reid",
        lambda path, given: SimpleNamespace(
            seed=given[-1].partition("=")[2] if given else 0, name="", device="cpu"
        ),
        SimpleNamespace,
        lambda config: {},
        lambda config: {},
        lambda config: None,
        lambda *given: [],
        {},
        loop=__name__,
    )
    code = run_seeds(args, tool, name=lambda config: ("n", "m"))
    (Path(root) / f"code{rank}").write_text(f"{code} {torch.distributed.is_initialized()}")


def test_processes_stay_together_between_seeds(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.spawn(process, args=(port, str(tmp_path)), nprocs=2)
    assert [(tmp_path / f"code{rank}").read_text() for rank in range(2)] == ["0 False"] * 2
