"""Runs that are killed, asked to stop, or find a full disk: resumed they are what they would have been."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keepaug.runs import files
from trust_checks.processes import (
    HALF,
    HANG,
    REFUSED,
    RIGHT,
    TRACEBACK,
    WRONG,
    Case,
    Done,
    call,
    end,
    ended,
    fork,
    verdict,
    wait,
)
from trust_checks.runs import Run, broken_files, differences, digest

EXIT_STOPPED = 75
MINUTE = 60.0  # in which the others must have ended where one process is lost
_PIECES = {16**power for power in range(4)}  # of a file that is written: torch.save makes thousands
_CHANGES = ("os.rename", "os.link", "os.mkdir", "open")


class Event(NamedTuple):
    """Something that a run does to its folder: a file opened for writing, a piece written, a rename."""

    what: str
    file: str


class Reference(NamedTuple):
    """The run without interruption.

    Attributes:
        seconds: it took.
        events: all that it did to its folder.
        digest: what it left.
    """

    seconds: float
    events: list[Event]
    digest: dict[str, Any]


def watch(folder: Path, at: Callable[[int, Event], None]) -> None:
    """Call `at` before everything that this process will do to files in the folder, with its number.

    For processes that end soon: an audit hook cannot be taken back.
    """
    number, root, quiet = 0, str(folder), False

    def event(what: str, file: str) -> None:
        nonlocal number, quiet
        if quiet or not file.startswith(root):
            return
        quiet = True
        try:
            at(number, Event(what, os.path.relpath(file, root)))
        finally:
            quiet = False
            number += 1

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in _CHANGES:
            return
        if name == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else False
            if not writes or not isinstance(path, str | bytes | os.PathLike):
                return
            event("open", os.fspath(path) if not isinstance(path, bytes) else os.fsdecode(path))
        elif name != "os.mkdir" or not os.path.isdir(arguments[0]):
            event(name[3:], os.fsdecode(arguments[1 if name in ("os.rename", "os.link") else 0]))

    def written(self: Any, content: bytes) -> int:
        self.pieces = getattr(self, "pieces", 0) + 1
        half = len(content) // 2
        with _failing(self):
            if self.pieces in _PIECES:
                self.file.write(content[:half])
                self.file.flush()
                event("write", f"{root}/piece {self.pieces}")
                return half + int(self.file.write(content[half:]))
            return int(self.file.write(content))

    files._Watched.write = written  # type: ignore[method-assign]
    sys.addaudithook(hook)


@contextlib.contextmanager
def _failing(watched: Any) -> Any:
    try:
        yield
    except OSError as error:
        watched.error = error
        raise


def reference(run: Run, folder: Path, *more: str) -> Reference:
    """Run to the end, and note what happens.

    Raises:
        RuntimeError: it cannot even do that.
    """
    log, output = folder / "events", folder / "run"
    start = time.monotonic()

    def work() -> int:
        with log.open("w") as file:
            watch(output, lambda number, event: print(*event, sep="\t", file=file, flush=True))
            return run.main(run.argv(output, *more))

    done = call(work, folder)
    if done.status != 0:
        raise RuntimeError(f"{run.name} does not even run: {done.err[-2000:]}")
    events = [Event(*line.split("\t")) for line in log.read_text().splitlines()]
    return Reference(time.monotonic() - start, events, digest(output))


def resumed(run: Run, wanted: Reference, output: Path, folder: Path, *more: str) -> tuple[str, str]:
    """Go on and compare."""
    done = call(lambda: run.main(run.argv(output, "--resume", *more)), folder / "again")
    if bad := verdict(done):
        return bad
    if broken := broken_files(output):
        return HALF, broken
    different = differences(digest(output), wanted.digest)
    return (WRONG, f"other {different}") if different else (RIGHT, "")


def killed(run: Run, wanted: Reference, moment: int | float, folder: Path) -> tuple[str, str]:
    """SIGKILL before an event, or after a share of the time; then resumed."""
    output = folder / "run"

    def die(number: int, event: Event) -> None:
        if number == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        if isinstance(moment, int):
            watch(output, die)
        return run.main(run.argv(output))

    after = moment * wanted.seconds if isinstance(moment, float) else None
    done = call(work, folder / "first", after=after)
    if done.status not in (0, -signal.SIGKILL):
        return verdict(done) or (TRACEBACK, f"status {done.status}")
    if broken := _unreadable(output):
        return HALF, broken
    return resumed(run, wanted, output, folder)


def _unreadable(output: Path) -> str:
    """Half of a file under the name of a whole one; what was being written may lie about until the resume."""
    found = [item for item in broken_files(output).split(", ") if item and not item.endswith(".partial")]
    return ", ".join(found)


def asked(run: Run, wanted: Reference, moment: float, number: int, folder: Path) -> tuple[str, str]:
    """SIGTERM or SIGUSR1 to all of its processes after a share of the time; then resumed."""
    output = folder / "run"
    pid = fork(lambda: run.main(run.argv(output)), folder / "out", folder / "err")
    time.sleep(moment * wanted.seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
    done = Done(wait(pid, 60), "", (folder / "err").read_text(errors="replace"))
    begun = (output / "metrics.jsonl").is_file()
    if done.status != -number or begun:  # before there is a run, a signal does what it does to any program
        if bad := verdict(done, also=(EXIT_STOPPED,)):
            return bad
        if done.status == EXIT_STOPPED and "stopped by" not in done.err:
            return TRACEBACK, "stopped without a word"
    return resumed(run, wanted, output, folder)


def full_disk(run: Run, wanted: Reference, at: int, folder: Path, *, again: bool) -> tuple[str, str]:
    """From an event on nothing can be written (below 0: no file may be longer); then there is room again."""
    output = folder / "run"

    def fail(number: int, event: Event) -> None:
        if number >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work() -> int:
        if at >= 0:
            watch(output, fail)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (-at, resource.RLIM_INFINITY))
        return run.main(run.argv(output))

    done = call(work, folder / "first")
    bad = verdict(done)
    if bad and bad[0] != REFUSED:
        return bad
    if broken := _unreadable(output):
        return HALF, broken
    if bad and not any(word in bad[1] for word in ("No space", "too large")):
        return WRONG, f"a full disk is called {bad[1]}"
    if not again or not bad:
        return bad or (RIGHT, "")
    after = resumed(run, wanted, output, folder)
    return after if after[0] != RIGHT else bad


def _environment(rank: int, processes: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip


def _port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def together(run: Run, output: Path, folder: Path, processes: int, *more: str) -> list[int]:
    """Start the ranks of one run; their process ids."""
    port = _port()

    def rank(number: int) -> int:
        _environment(number, processes, port)
        return run.main(run.argv(output, *more))

    return [
        fork(functools.partial(rank, number), folder / f"out{number}", folder / f"err{number}")
        for number in range(processes)
    ]


def two(run: Run, output: Path, folder: Path, *more: str) -> tuple[str, str] | None:
    """Two processes to the end; None where that went well."""
    folder.mkdir(parents=True, exist_ok=True)
    pids = together(run, output, folder, 2, *more)
    done = [
        Done(wait(pid, 120), "", (folder / f"err{number}").read_text(errors="replace"))
        for number, pid in enumerate(pids)
    ]
    return next((bad for one in done if (bad := verdict(one))), None)


def lost_rank(run: Run, wanted: Reference, rank: int, moment: float, folder: Path) -> tuple[str, str]:
    """One of two processes is killed: the other ends within a minute and says so; both go on later."""
    output = folder / "run"
    pids = together(run, output, folder, 2)
    # Until they have found each other they wait for one another; torchrun ends them where one does not come.
    while not (output / "metrics.jsonl").is_file() and ended(pids[0]) is None:
        time.sleep(0.01)
    time.sleep(moment * wanted.seconds)
    other = pids[1 - rank]
    before = ended(pids[rank])
    if before is None:
        os.kill(pids[rank], signal.SIGKILL)
        wait(pids[rank], 10)
    status = wait(other, MINUTE)
    done = Done(status, "", (folder / f"err{1 - rank}").read_text(errors="replace"))
    bad = verdict(done)
    if bad and bad[0] != REFUSED:
        return bad
    if before is None and status == 0 and not (output / "result.json").is_file():
        return WRONG, "the other ended as if all were well"
    if again := two(run, output, folder / "again", "--resume"):
        return again
    if broken := broken_files(output):
        return HALF, broken
    different = differences(digest(output), wanted.digest)
    return (WRONG, f"other {different}") if different else (RIGHT, bad[1] if bad else "")


def other_number(run: Run, moment: int, first: int, folder: Path) -> tuple[str, str]:
    """Begun by some processes, killed, and resumed by another number of them."""
    output = folder / "run"
    pids = together(run, output, folder, first)
    while not (output / "checkpoint.pt").is_file() and ended(pids[0]) is None:
        time.sleep(0.01)
    time.sleep(0.01 * moment)
    for pid in pids:
        end(pid)
        wait(pid, 10)
    if first == 1:
        bad = two(run, output, folder / "again", "--resume")
    else:
        bad = verdict(call(lambda: run.main(run.argv(output, "--resume")), folder / "again"))
    if bad:
        return bad
    if broken := broken_files(output):
        return HALF, broken
    steps = [line["step"] for line in digest(output)["lines"] if "train/loss" in line]
    whole = list(range(1, len(steps) + 1))
    return (RIGHT, "") if steps == whole else (WRONG, f"steps {steps}")


def spawned(run: Run, victim: str, moment: float, folder: Path) -> tuple[str, str]:
    """The same where the tool itself starts its processes, or torchrun does: "rank" or "agent" is killed."""
    output, command = folder / "run", ["-m", "keepaug", run.tool]
    if run.option:
        argv = [sys.executable, *command, run.option, "2", "--dist-url", "auto", *run.argv(output)]
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        argv = [sys.executable, *torchrun, *command, *run.argv(output)]
    err = folder / "err"
    with err.open("w") as file:
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
    marks = ("model_*.pth", "checkpoint.pt")
    start = time.monotonic()
    while not any(found for mark in marks for found in output.glob(mark)):
        if process.poll() is not None or time.monotonic() - start > 150:
            end(process.pid)
            return TRACEBACK, f"it did not begin: {err.read_text()[-300:]}"
        time.sleep(0.05)
    time.sleep(moment)
    ranks = _ranks(process.pid)
    os.kill(process.pid if victim == "agent" else ranks[-1], signal.SIGKILL)
    start = time.monotonic()
    while any(Path(f"/proc/{rank}").exists() and not _zombie(rank) for rank in [process.pid, *ranks]):
        process.poll()
        if time.monotonic() - start > MINUTE:
            end(process.pid)
            return HANG, f"{len(ranks)} processes go on without their {victim}"
        time.sleep(0.05)
    text = err.read_text(errors="replace")
    if "Traceback" in text.replace('Traceback (most recent call last):\n  File "<frozen runpy>"', ""):
        return TRACEBACK, text[-300:]
    done = call(lambda: run.main(run.argv(output, "--resume")), folder / "again")
    if bad := verdict(done):
        return bad
    broken = broken_files(output)
    return (HALF, broken) if broken else (RIGHT, "")


def _ranks(pid: int) -> list[int]:
    """The processes that compute, among the children of one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "resource_tracker" not in _command(int(child))]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _zombie(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def moments(wanted: Reference, number: int, chance: random.Random) -> list[int | float]:
    """When to kill: around the writes of checkpoints and results, at seeded events, at seeded times."""
    telling = [
        at
        for at, event in enumerate(wanted.events)
        if event.what in ("rename", "link", "write")
        and any(name in event.file for name in ("checkpoint", "model_", "weights", "result", "metrics"))
    ]
    some = min(len(telling), number // 2)
    chosen: list[int | float] = [*_one_of_each(wanted.events, telling, chance)[:some]]
    others = [at for at in range(len(wanted.events)) if at not in chosen]
    chosen += chance.sample(others, min(len(others), max(0, number * 3 // 4 - len(chosen))))
    return chosen + [chance.random() for _ in range(number - len(chosen))]


def _one_of_each(events: Sequence[Event], telling: Sequence[int], chance: random.Random) -> list[int]:
    """Events of as many kinds as there are: first one of each kind of change to each file."""
    kinds: dict[Event, list[int]] = {}
    for at in telling:
        name = ".".join(part for part in events[at].file.split(".") if len(part) < 20)[:20]
        kinds.setdefault(Event(events[at].what, name), []).append(at)
    firsts = [chance.choice(kinds[key]) for key in sorted(kinds)]
    chance.shuffle(firsts)
    rest = [at for at in telling if at not in firsts]
    return firsts + chance.sample(rest, len(rest))


def cases(
    runs: Sequence[Run],
    references: dict[str, Reference],
    pairs: dict[str, Reference],
    *,
    seed: int,
) -> list[Case]:
    """All of this module."""
    found = []
    for run in runs:
        chance, wanted = random.Random(f"{seed} {run.name}"), references[run.name]
        for moment in moments(wanted, 20, chance):
            name = f"{run.name}: {_named(wanted, moment)}"
            found.append(Case(f"SIGKILL: {run.name}", name, functools.partial(killed, run, wanted, moment)))
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            moment = chance.random()
            work = functools.partial(asked, run, wanted, moment, number)
            found.append(Case("SIGTERM and SIGUSR1", f"{run.name}: {number.name} at {moment:.2f}", work))
        limits = [-(2 ** chance.randrange(17, 22)) for _ in range(4)]  # longer than what is printed
        for count, at in enumerate([*range(len(wanted.events)), *limits]):
            work = functools.partial(full_disk, run, wanted, at, again=count % 4 == 0)
            found.append(Case("full disk", f"{run.name}: {_named(wanted, at)}", work))
        if run.name in pairs:
            for rank in (0, 1, 0, 1):
                moment = 0.7 * chance.random()
                work = functools.partial(lost_rank, run, pairs[run.name], rank, moment)
                found.append(Case("one process of two killed", f"{run.name}: {rank} at {moment:.2f}", work))
            for first in (1, 2):
                work = functools.partial(other_number, run, chance.randrange(10), first)
                found.append(Case("resumed by another number of processes", f"{run.name}: {first}", work))
        if run.name != "detector (torchvision)":
            for victim in ("rank",) if run.option else ("agent", "rank"):
                work = functools.partial(spawned, run, victim, chance.random())
                found.append(
                    Case("torchrun's or the launcher's process killed", f"{run.name}: {victim}", work)
                )
    return found


def _named(wanted: Reference, moment: int | float) -> str:
    if isinstance(moment, float):
        return f"after {moment:.2f} of the time"
    if moment < 0:
        return f"files of {-moment} bytes"
    event = wanted.events[moment]
    return f"event {moment}, {event.what} {event.file}"
