"""Cases in forked processes, and what came of them: nothing here knows what is tried."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("right", "refused in one line", "traceback", "hang", "half-written", "silently wrong")
RIGHT, REFUSED, TRACEBACK, HANG, HALF, WRONG = COLUMNS


class Outcome(NamedTuple):
    """What came of one case.

    Attributes:
        kind: row of the table.
        column: one of `COLUMNS`.
        name: of the case, which says how to repeat it.
        detail: what was seen.
    """

    kind: str
    column: str
    name: str
    detail: str = ""


class Case(NamedTuple):
    """One thing to try.

    Attributes:
        kind: row of the table.
        name: which of them.
        work: given an empty folder, tells the column and what was seen.
        timeout: seconds for all of it, far more than it needs.
    """

    kind: str
    name: str
    work: Callable[[Path], tuple[str, str]]
    timeout: float = 300.0


class Done(NamedTuple):
    """A process that has ended.

    Attributes:
        status: exit code, below 0 the signal that ended it, None where it was still running.
        out: what it printed.
        err: and on standard error.
    """

    status: int | None
    out: str
    err: str


def fork(work: Callable[[], int | None], out: Path, err: Path) -> int:
    """Start a copy of this process that does `work` and ends with what it returns; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        for path, number in ((out, 1), (err, 2)):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
        status = work() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 2
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ended(pid: int) -> int | None:
    """Exit code, or minus the signal; None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(pid: int, timeout: float, *, after: float | None = None, send: int = signal.SIGKILL) -> int | None:
    """Wait for a process; send it a signal `after` seconds; end its whole group at the timeout."""
    start = time.monotonic()
    while (status := ended(pid)) is None:
        passed = time.monotonic() - start
        if after is not None and passed >= after:
            os.kill(pid, send)
            after = None
        if passed > timeout:
            end(pid)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)
    return status


def end(pid: int) -> None:
    """Kill a forked process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def call(
    work: Callable[[], int | None],
    folder: Path,
    *,
    timeout: float = 90.0,
    after: float | None = None,
    send: int = signal.SIGKILL,
) -> Done:
    """Do `work` in a process of its own; see `wait`."""
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / "stdout", folder / "stderr"
    status = wait(fork(work, out, err), timeout, after=after, send=send)
    return Done(status, out.read_text(errors="replace"), err.read_text(errors="replace"))


def verdict(done: Done, *, also: Sequence[int] = ()) -> tuple[str, str] | None:
    """The column of a process that did not do what it was asked to; None where it ended well.

    Args:
        done: the process.
        also: exit codes that are well beside 0.
    """
    said = _last(done.err)
    if done.status is None:
        return HANG, said
    if "Traceback (most recent call last)" in done.err or done.status == 1 or done.status < 0:
        return TRACEBACK, f"{done.status}: {said}"
    if done.status in (0, *also):
        return None
    errors = len(re.findall(r"^(?:error: |[\w.-]+: error: )", done.err.replace("\r", "\n"), re.MULTILINE))
    return (REFUSED, said) if errors == 1 else (TRACEBACK, f"exit {done.status} with {errors} errors: {said}")


def _last(text: str) -> str:
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or [""])[-1][:300]


def run_all(cases: Sequence[Case], folder: Path, *, jobs: int) -> Iterator[Outcome]:
    """Each case in a process of its own, `jobs` at a time; outcomes as they come."""
    waiting: list[Case] = list(reversed(cases))
    running: dict[int, tuple[Case, Path, float]] = {}
    try:
        yield from _run_all(waiting, running, folder, jobs)
    finally:
        for pid in running:
            end(pid)


def _run_all(
    waiting: list[Case], running: dict[int, tuple[Case, Path, float]], folder: Path, jobs: int
) -> Iterator[Outcome]:
    number = 0
    while waiting or running:
        while waiting and len(running) < jobs:
            case, number = waiting.pop(), number + 1
            place = folder / f"case{number}"
            place.mkdir(parents=True)

            def work(case: Case = case, place: Path = place) -> None:
                (place / "outcome").write_bytes(pickle.dumps(case.work(place)))

            running[fork(work, place / "out", place / "err")] = case, place, time.monotonic()
        for pid, (case, place, start) in list(running.items()):
            late = time.monotonic() - start > case.timeout
            if late:
                end(pid)
            if not late and ended(pid) is None:
                continue
            if late:
                os.waitpid(pid, 0)
            del running[pid]
            end(pid)
            column, detail = _read(place, late)
            yield Outcome(case.kind, column, case.name, detail)
            shutil.rmtree(place, ignore_errors=True)
        time.sleep(0.002)


def _read(place: Path, late: bool) -> tuple[str, str]:
    if late:
        return HANG, "the case itself"
    try:
        return pickle.loads((place / "outcome").read_bytes())
    except OSError:
        return TRACEBACK, "of the harness: " + _last((place / "err").read_text(errors="replace"))
