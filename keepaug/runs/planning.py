"""Runs before they run: which tool, which settings, which folder, and whether they are done. One rule for all
tools.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepaug.runs.errors import ConfigError
from keepaug.runs.files import sha256_of
from keepaug.runs.jobs import Command
from keepaug.runs.result import FILE_NAME, plain, read_result

__all__ = ["Job", "Tool", "command_of", "differences", "is_finished", "settings_of"]


@dataclass(frozen=True)
class Tool:
    """A training tool as planning and report see it; each package has its own in `tool.py`.

    Attributes:
        name: of the command `keepaug NAME`, with _ for -.
        kind: of its results.
        load: settings from a config file and `key=value` pairs.
        recipe: what decides the figures of a run with these settings, as its result says it.
        check: refuses settings that cannot run; raises ConfigError.
        arguments: of the command, from config, run folder and `key=value` pairs; an interrupted run goes on.
        shrink: settings that make a run a step or two on a few images.
        origin: the weights file that the settings start from; "" for random weights.
        processes: the command's own option for several processes; None: by torchrun.
    """

    name: str
    kind: str
    load: Callable[[Path | None, Sequence[str]], Any]
    recipe: Callable[[Any], dict[str, Any]]
    check: Callable[[Any], None]
    arguments: Callable[[Path, Path, Sequence[str]], list[str]]
    shrink: Mapping[str, Any]
    origin: Callable[[Any], str] = lambda settings: ""
    processes: str | None = None


@dataclass(frozen=True)
class Job:
    """One run of one seed: commands one after the other, after the jobs that it needs.

    Attributes:
        name: of the job.
        folder: of the run.
        commands: the last of them writes the result.
        recipe: what a finished run in the folder must have been.
        origin: and the weights file that it must have started from; "" for random weights.
        after: names of jobs.
        settings: of the run, for a tool that can also run in this process.
    """

    name: str
    folder: Path
    commands: tuple[Command, ...]
    recipe: Mapping[str, Any]
    origin: str = ""
    after: tuple[str, ...] = ()
    settings: Any = None

    @property
    def finished(self) -> bool:
        """The run is there, and is this one; raises ConfigError where it is another."""
        return is_finished(self.folder, self.recipe, self.origin) and all(
            one.done.is_file() for one in self.commands
        )

    @property
    def begun(self) -> bool:
        """Something is in its folder."""
        return self.folder.is_dir() and any(self.folder.iterdir())


def settings_arguments(config: Path, output: Path, given: Sequence[str]) -> list[str]:
    """Of the tools that take `key=value` settings."""
    return ["--config", str(config), "--output", str(output), "--resume", *given]


def command_of(
    tool: Tool, config: Path, output: Path, given: Sequence[str], *, processes: int = 1
) -> Command:
    """The command of one run.

    Args:
        tool: what runs.
        config: file.
        output: run folder.
        given: `key=value` pairs.
        processes: data-parallel.
    """
    run = ["-m", "keepaug", tool.name.replace("_", "-")]
    arguments = tool.arguments(config, output, given)
    if tool.processes is not None:
        arguments = [tool.processes, str(processes), *arguments]
    elif processes > 1:
        run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *run]
    return Command((sys.executable, *run, *arguments), output / FILE_NAME)


def settings_of(given: Sequence[str]) -> dict[str, str]:
    """`key=value` pairs as a dictionary.

    Raises:
        ConfigError: an item without "=".
    """
    pairs = {}
    for item in given:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"a setting must be key=value, got {item!r}")
        pairs[key] = value
    return pairs


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What tells two recipes apart, as "lr 0.5 instead of 0.1"; numbers written as 1 and 1.0 are equal."""
    found, wanted = plain(found), plain(wanted)
    return [
        f"{key} {found.get(key, 'not used')} instead of {wanted.get(key, 'not used')}"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key, _MISSING) != wanted.get(key, _MISSING)
    ]


_MISSING = object()


def is_finished(folder: Path, recipe: Mapping[str, Any], origin: str = "") -> bool:
    """Whether the folder holds this run's result.

    Args:
        folder: of the run.
        recipe: of the run that is wanted.
        origin: weights file that it starts from, compared by contents while the file is there, otherwise by
            name.

    Raises:
        ConfigError: it holds the result of another run.
        ValueError: its result file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return False
    before = read_result(path)
    changed = differences(before["recipe"], recipe)
    began, file = before["started_from"] or {}, Path(origin).expanduser()
    same = (
        began.get("sha256") == sha256_of(file)
        if origin and file.is_file()
        else began.get("file", "") == file.name
    )
    if not same:
        changed.append(
            f"started from {began.get('file', 'random weights')} instead of {origin or 'random weights'}"
        )
    if changed:
        raise ConfigError(
            f"{folder} holds a finished run with other settings: {'; '.join(changed)}; choose another "
            f"--output"
        )
    return True
