"""Commands one after the other, on this machine or in a SLURM job that goes on after its time limit."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepaug.runs.errors import ConfigError


@dataclass(frozen=True)
class Command:
    """One process.

    Attributes:
        argv: program and arguments.
        done: a file that exists once the process has ended well.
    """

    argv: tuple[str, ...]
    done: Path


@dataclass(frozen=True)
class Commands:
    """A callable that runs what is not done yet, in order; submitit can send it to SLURM.

    Attributes:
        commands: the last of them writes its file into the run's folder.
        spent: patterns of files in that folder that are removed at the end.
    """

    commands: tuple[Command, ...]
    spent: tuple[str, ...] = ()

    def __call__(self) -> None:
        """Run them.

        Raises:
            CalledProcessError: one failed, or ended without the file that it is for.
        """
        for command in self.commands:
            if command.done.is_file():
                continue
            subprocess.run(command.argv, check=True)
            if not command.done.is_file():
                raise subprocess.CalledProcessError(
                    0, list(command.argv), output=f"it ended without {command.done}"
                )
        for pattern in self.spent:
            for path in self.commands[-1].done.parent.glob(pattern):
                path.unlink()

    def checkpoint(self) -> Any:
        """What submitit queues again at the time limit or when the job is preempted: the same, which goes
        on.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def slurm_executor(
    logs: str | Path,
    *,
    name: str,
    hours: float,
    gpus: int = 1,
    cpus: int = 8,
    partition: str | None = None,
    after: Sequence[str] = (),
    cluster: str = "slurm",
) -> Any:
    """A submitit executor for one job.

    Args:
        logs: folder of submitit's files.
        name: of the job.
        hours: time limit.
        gpus: of one node.
        cpus: per GPU.
        partition: None for the cluster's default.
        after: ids of jobs that must have ended well before.
        cluster: "slurm", or "local" for a process on this machine.

    Raises:
        ImportError: submitit is not installed.
        ConfigError: there is no SLURM on this machine.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("SLURM jobs need submitit: pip install 'keepaug[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(folder=str(logs), cluster=cluster)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot submit to SLURM from here ({error}); run on a login node, or leave out --slurm"
        ) from error
    executor.update_parameters(name=name, timeout_min=max(1, round(hours * 60)))
    if cluster == "slurm":
        executor.update_parameters(gpus_per_node=gpus, cpus_per_task=cpus * gpus, tasks_per_node=1, nodes=1)
        if partition:
            executor.update_parameters(slurm_partition=partition)
        if after:
            executor.update_parameters(
                slurm_additional_parameters={"dependency": "afterok:" + ":".join(after)}
            )
    return executor
