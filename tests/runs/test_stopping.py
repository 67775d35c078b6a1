"""Signals: who is asked, who is not, and what is said of processes that are lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from keepaug.runs.command import exit_code
from keepaug.runs.config import ConfigError
from keepaug.runs.distributed import setup
from keepaug.runs.errors import StopRequestedError
from keepaug.runs.recorder import Clock
from keepaug.runs.stopping import StopSignals, iterate


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_that_is_asked_with_all_others_goes_on(number: signal.Signals) -> None:
    loader = DataLoader(range(40), batch_size=1, num_workers=1, prefetch_factor=1)  # type: ignore[arg-type]
    batches = iterate(loader)
    assert next(batches).item() == 0
    worker = batches._workers[0]  # type: ignore[attr-defined]
    subprocess.run(["kill", f"-{number.name[3:]}", str(worker.pid)], check=True)  # by another process
    assert [int(batch) for batch in batches] == list(range(1, 40))
    batches = iterate(loader)
    worker = batches._workers[0]  # type: ignore[attr-defined]
    time.sleep(0.2)
    os.kill(worker.pid, signal.SIGTERM)  # by its parent
    worker.join(10)
    assert not worker.is_alive()


@pytest.mark.parametrize("own", [True, False])
def test_processes_agree_without_waiting_for_a_step(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, log = [0.0], list[str]()
    world = SimpleNamespace(
        active=True, device=torch.device("cpu"), sum=lambda flag: log.append("sum") or flag + others[0]
    )
    monkeypatch.setattr(
        "keepaug.runs.stopping.start_reading", lambda value: lambda: log.append("read") or value
    )
    signals = StopSignals()
    try:
        signals.stop_if_asked(tmp_path, 1, lambda: log.append("save"), world)
        assert log == ["sum"]
        if own:
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            others[0] = 1.0
        signals.stop_if_asked(tmp_path, 2, lambda: log.append("save"), world)
        assert log == ["sum", "sum", "read"]
        with pytest.raises(StopRequestedError, match="SIGUSR1 after step 3" if own else "another process"):
            signals.stop_if_asked(tmp_path, 3, lambda: log.append("save"), world)
        assert log == ["sum", "sum", "read", "sum", "read", "save"]
    finally:
        signals.release()


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "mps:0", "cpu:0"])
def test_an_unknown_device_is_a_setting_that_cannot_be_meant(device: str) -> None:
    with pytest.raises(ConfigError, match="allowed: auto, cpu, cuda"):
        setup(device)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"), "smaller batches"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "smaller batches"),
        (MemoryError(), "smaller batches"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "another process"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "reads images"),
    ],
)
def test_errors_without_a_type_are_one_line(
    error: BaseException, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> int:
        raise error

    assert exit_code(act) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert said in line
    with pytest.raises(RuntimeError, match="a mistake of the program"):
        exit_code(lambda: (_ for _ in ()).throw(RuntimeError("a mistake of the program")))


def test_the_clock_is_kept_beside_what_the_run_is(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"kind": "detection"}))
    Clock(file, earlier=(100.0, 10.0)).keep()
    kept = json.loads(file.read_text())
    assert kept["kind"] == "detection"
    assert 100 <= kept["seconds"] < 110
    assert 10 <= kept["cpu_seconds"] < 20


def test_sums_in_a_fixed_order_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    setup("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("KEEPAUG_DETERMINISTIC", "1")
    try:
        setup("cpu")
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
