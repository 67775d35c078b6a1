"""Stopping when asked to, after the step: what SLURM and Kubernetes send some time before they kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from keepaug.runs.distributed import Distributed
from keepaug.runs.errors import StopRequestedError
from keepaug.transfer import start_reading, to_device

_STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """SIGTERM and SIGUSR1 taken as a wish, until `release`; a second one stops at once.

    Args:
        pass_on: also send them to the processes that this one has started, which do the work.
    """

    def __init__(self, *, pass_on: bool = False) -> None:
        self._asked: signal.Signals | None = None
        self._handlers: dict[int, Any] = {}
        self._pass_on = pass_on
        self._agreed: Callable[[], Tensor] | None = None  # after the last step, by all processes
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._ask) for number in _STOPPING}

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = signal.Signals(number)
        if not self._pass_on:
            self.release()
        for child in multiprocessing.active_children() if self._pass_on else ():
            os.kill(child.pid or os.getpid(), number)

    def release(self) -> None:
        """Do with signals what was done before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def stop_if_asked(
        self, folder: Path, step: int, save: Callable[[], object], world: Distributed | None
    ) -> None:
        """See `Recorder.stop_if_asked`."""
        asked = self._asked is not None
        if world is not None and world.active:
            before, flag = self._agreed, torch.tensor([float(asked)])
            self._agreed = start_reading(world.sum(to_device(flag, world.device)))
            # What was agreed on after the step before is here by now: nothing waits for this step's.
            asked = before is not None and bool(before() > 0)
        if asked:
            save()
            reason = self._asked.name if self._asked is not None else "another process"
            raise StopRequestedError(
                f"stopped by {reason} after step {step}, with a checkpoint in {folder}; the same command "
                "with --resume goes on"
            )


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's iterator, whose worker processes leave SIGTERM and SIGUSR1 to this process.

    They may be sent to all processes of a job, and the step that is to be finished needs its images.
    """
    if not loader.num_workers or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    loader.worker_init_fn = _obey_parent
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # a worker inherits it
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_parent(worker: int) -> None:
    """In a worker, where the signals are blocked: they count when its parent sends them."""

    def wait() -> None:
        while signal.sigwaitinfo(_STOPPING).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
