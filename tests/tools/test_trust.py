"""A seeded tenth of what `make trust` tries; and that it would see a fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tools!r})
from trust import try_all
from trust_checks.table import bad, table
found = try_all(Path({folder!r}), share=0.1, only=(), seed=7, jobs=2)
print(table(found))
assert len(found) > 300 and len({{one.kind for one in found}}) > 25
sys.exit(any(map(bad, found)))
"""


@pytest.mark.slow
def test_a_tenth_of_all_that_is_tried(tmp_path: Path) -> None:
    """In a process of its own, since it forks."""
    script = SCRIPT.format(tools=str(TOOLS), folder=str(tmp_path))
    environment = {**os.environ, "KEEPAUG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    root = TOOLS.parent
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


TWICE = """
import sys
from pathlib import Path
sys.path.insert(0, {tools!r})
import torch
from trust_checks.runs import all_runs, differences, digest, write_data
folder = Path({folder!r})
write_data(folder / "data")
run = all_runs(folder / "data")[{name!r}]
more = ("CUDNN_BENCHMARK", "True") if run.tool == "train-detector" else ()  # must not win
for number in "12":
    assert run.main(run.argv(folder / number, *more)) == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
assert not (wrong := differences(digest(folder / "1"), digest(folder / "2"))), wrong
"""
LOOPS = ["classifier", "few labels", "re-identification", "detector (torchvision)"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*LOOPS, pytest.param("detector (Detectron2)", marks=pytest.mark.detectron2)]
)
def test_every_loop_takes_the_algorithms_with_a_fixed_order(name: str, tmp_path: Path) -> None:
    script = TWICE.format(tools=str(TOOLS), folder=str(tmp_path), name=name)
    environment = {
        **os.environ,
        "KEEPAUG_CACHE": str(tmp_path / "cache"),
        "KEEPAUG_DETERMINISTIC": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TOOLS.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_verdicts(tmp_path: Path) -> None:
    from trust_checks.processes import HANG, REFUSED, TRACEBACK, call, verdict

    def said(text: str, status: int) -> int:
        print(text, file=sys.stderr)
        return status

    def fails() -> int:
        raise ValueError("x")

    def dies() -> int:
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0

    def sleeps() -> int:
        signal.pause()
        return 0

    for work, column in (
        (lambda: 0, None), (lambda: said("error: no file", 2), REFUSED),
        (lambda: said("no word of it", 2), TRACEBACK), (lambda: said("error: a\nerror: b", 2), TRACEBACK),
        (fails, TRACEBACK), (dies, TRACEBACK), (sleeps, HANG),
    ):  # fmt: skip
        found = verdict(call(work, tmp_path, timeout=1.0))
        assert (found and found[0]) == column


def test_damage_of_another_kind_is_told_from_other_values() -> None:
    from trust_checks.damage import same_kind

    before = b'{"a": 1, "b": {"c": "x"}, "d": [1.5]}'
    assert same_kind("json", before, b'{"a": 2.5, "b": {"c": "y"}, "d": [0, 1]}')
    assert same_kind("json", before, b'{"a": 2}')
    for after in (
        b'{"a": "1"}',
        b'{"a": true}',
        b'{"b": {"c": null}}',
        b'{"d": 1}',
        b"[]",
        b'{"a"',
        b'{"e": 1}',
    ):
        assert not same_kind("json", before, after)
