"""Markers that skip with a reason, the real data's location, one thread per test process."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))  # as for a tool that is run
DATA_ROOT = Path(os.environ.get("KEEPAUG_DATA") or Path.home() / ".cache" / "keepaug" / "data")
# The same on every machine; the tests of the choice itself take it away.
os.environ["KEEPAUG_PRECISION"] = "float32"
# What the tests find out about their images is of no use to later runs.
os.environ["KEEPAUG_CACHE"] = tempfile.mkdtemp(prefix="keepaug-cache-")
atexit.register(shutil.rmtree, os.environ["KEEPAUG_CACHE"], ignore_errors=True)

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def _missing_detectron2() -> str | None:
    if importlib.util.find_spec("detectron2") is None:
        return "Detectron2 is not installed (put its wheel into $KEEPAUG_WHEELS and run `make env`)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "detectron2": _missing_detectron2(),
        "data": None if DATA_ROOT.is_dir() else f"no real data in {DATA_ROOT} (set KEEPAUG_DATA)",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say aloud what did not run: a skipped test has proved nothing."""
    skipped = terminalreporter.stats.get("skipped", [])
    said = [
        text
        for report in terminalreporter.stats.get("passed", [])
        for name, text in report.user_properties
        if name == "not run" and report.when == "call"
    ]
    if not skipped and not said:
        return
    counts: dict[str, int] = {}
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        counts[reason] = counts.get(reason, 0) + 1
    terminalreporter.section("NOT RUN")
    for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        terminalreporter.write_line(f"{count} test(s) not run: {reason}")
    for text in said:
        terminalreporter.write_line(f"commands of the pages that are parsed alone: {text}")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data; skips where it is absent."""
    if not DATA_ROOT.is_dir():
        pytest.skip(f"data: no real data in {DATA_ROOT} (set KEEPAUG_DATA)")
    return DATA_ROOT


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


_STATUS = Path("/proc/self/status")
_PEAK = f"""
import re
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("{_STATUS}").read_text())[1]) / 1000
"""


@pytest.fixture
def run_measuring_memory() -> Callable[..., float]:
    """Runs a script in a process of its own; `peak()` in it is its largest memory so far in MB. Returns what
    it prints.

    Not by getrusage, whose peak a child inherits from pytest: such a test cannot fail.
    """
    if not _STATUS.is_file():
        pytest.skip(f"peak memory is read from {_STATUS}")

    def run(script: str, *arguments: str) -> float:
        command = [sys.executable, "-c", _PEAK + script, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
        )
        return float(done.stdout)

    return run
