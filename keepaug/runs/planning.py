"""Runs before they run: tool, settings, folder, and whether they are done. One rule for all tools."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepaug.runs.errors import ConfigError
from keepaug.runs.files import sha256_of
from keepaug.runs.jobs import Command
from keepaug.runs.result import FILE_NAME, SCHEMA, plain, read_result


def _has_checkpoint(folder: Path) -> bool:
    from keepaug.runs.checkpoint import has_checkpoint  # needs torch

    return has_checkpoint(folder)


@dataclass(frozen=True)
class Tool:
    """A training tool as planning and report see it; each package has its own in `tool.py`.

    Attributes:
        name: of the command `keepaug NAME`, with _ for -.
        kind: of its results.
        load: settings from a config file and `key=value` pairs.
        recorded: settings from those that a run wrote, perhaps of an earlier version.
        recipe: what decides the figures of a run with these settings, as its result says it.
        precision: how its numbers are computed.
        check: refuses settings that cannot run; raises ConfigError.
        arguments: of the command, from config, run folder and `key=value` pairs; an interrupted run goes on.
        shrink: settings that make a run a step or two on a few images.
        origin: the network that the settings start from: "file" and "sha256" ("" while the file is not
            there); None for random weights.
        root: of the data; "" where the settings do not say it.
        seed: of a run with these settings.
        processes: the command's own option for several processes; None: by torchrun.
        loop: the module with `train` and `rehearse`, imported when it is needed.
        spent: patterns of files in a run's folder that no other run reads once the result is there.
        has_run: whether a folder holds checkpoints of a run.
    """

    name: str
    kind: str
    load: Callable[[Path | None, Sequence[str]], Any]
    recorded: Callable[[Mapping[str, Any]], Any]
    recipe: Callable[[Any], dict[str, Any]]
    precision: Callable[[Any], dict[str, Any]]
    check: Callable[[Any], None]
    arguments: Callable[[Path, Path, Sequence[str]], list[str]]
    shrink: Mapping[str, Any]
    origin: Callable[[Any], Mapping[str, str] | None] = lambda settings: None
    root: Callable[[Any], str] = lambda settings: str(settings.root)
    seed: Callable[[Any], int] = lambda settings: int(settings.seed)
    processes: str | None = None
    loop: str = ""
    spent: tuple[str, ...] = ("*.pt",)
    has_run: Callable[[Path], bool] = _has_checkpoint


@dataclass(frozen=True)
class Job:
    """One run of one seed: commands one after the other, after the jobs that it needs.

    Attributes:
        name: of the job.
        folder: of the run.
        commands: the last of them writes the result.
        tool: that runs.
        settings: of the run.
        root: of its data, where the settings do not say it.
        after: names of jobs.
        spent: patterns of files in its folder that are removed once its result is there.
    """

    name: str
    folder: Path
    commands: tuple[Command, ...]
    tool: Tool
    settings: Any
    root: str = ""
    after: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """The run is there, and is this one; raises ConfigError where it is another."""
        return is_finished(self.folder, self.tool, self.settings, self.root) and all(
            one.done.is_file() for one in self.commands
        )

    @property
    def begun(self) -> bool:
        """Something is in its folder."""
        return self.folder.is_dir() and any(self.folder.iterdir())

    @property
    def state(self) -> str:
        """In words: done, begun, to do, or why its folder is refused."""
        try:
            return "done" if self.finished else "begun" if self.begun else "to do"
        except ValueError as error:
            return f"refused: {error}"


def origin_of(weights: str) -> dict[str, str] | None:
    """A weights file that the user names, for `Tool.origin`."""
    path = Path(weights).expanduser()
    return {"file": path.name, "sha256": sha256_of(path) if path.is_file() else ""} if weights else None


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


def shrunk(tool: Tool, config: Path | None, given: Sequence[str]) -> list[str]:
    """`given`, and before it what makes the run a step or two on a few images, where the run uses it."""
    from keepaug.runs.config import unused_settings  # a detector's settings do without its libraries

    unused = unused_settings(tool.load(config, given))
    return [*(f"{key}={value}" for key, value in tool.shrink.items() if key not in unused), *given]


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


def in_todays_terms(run: Mapping[str, Any], tool_of: Callable[[str], Tool | None]) -> dict[str, Any]:
    """A run, and those that it is built on, with recipe and precision as today's settings tell them apart.

    Args:
        run: a result, or the provenance of weights.
        tool_of: the tool of a kind of results; None where it cannot be had: the run stays as it is written.
            So it does where telling its settings apart needs a library that is not installed.
    """
    run = dict(run)
    if below := (run.get("started_from") or {}).get("provenance"):
        run["started_from"] = {**run["started_from"], "provenance": in_todays_terms(below, tool_of)}
    if run.get("schema") == 1 or "recipe" not in run or (tool := tool_of(run.get("kind", ""))) is None:
        return run
    try:
        settings = tool.recorded(run["config"])
        gone = {key: value for key, value in run["recipe"].items() if key not in run["config"]}
        recipe, precision = gone | tool.recipe(settings), tool.precision(settings)
    except (ImportError, ValueError, TypeError, LookupError, AttributeError):  # or settings that are no more
        return run
    return run | {"recipe": plain(recipe), "precision": plain(precision)}


def is_finished(folder: Path, tool: Tool, settings: Any, root: str = "") -> bool:
    """Whether the folder holds this run's result.

    Args:
        folder: of the run.
        tool: that runs.
        settings: of the run that is wanted.
        root: of its data, where the settings do not say it.

    Raises:
        ConfigError: it holds the result of another run: of other settings, another precision, seed or
            network to start from, or of data in another folder that is still there.
        ValueError: its result file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return False
    before = in_todays_terms(read_result(path), lambda kind: tool if kind == tool.kind else None)
    if before["schema"] != SCHEMA:
        raise ConfigError(
            f"{folder} holds a run of an earlier version, whose result does not say all that made it: choose "
            "another --output"
        )
    if before["kind"] != tool.kind:
        raise ConfigError(f"{folder} holds a run of another kind ({before['kind']}): choose another --output")
    changed = differences(before["recipe"], tool.recipe(settings))
    given = {key: value for key, value in tool.precision(settings).items() if value != "auto"}
    changed += differences({key: value for key, value in before["precision"].items() if key in given}, given)
    if before["seed"] != (seed := tool.seed(settings)):
        changed.append(f"seed {before['seed']} instead of {seed}")
    began, origin = before["started_from"] or {}, tool.origin(settings) or {}
    known = all(one.get("sha256") for one in (began, origin))
    if bool(began) != bool(origin) or (known and began["sha256"] != origin["sha256"]):
        changed.append(f"started from {_file(began)} instead of {_file(origin)}")
    was, now = before.get("root") or before["config"].get("root"), root or tool.root(settings)
    if was and now:
        old, new = (Path(one).expanduser().resolve() for one in (was, now))
        if old != new and old.exists():  # otherwise the folder has been moved
            changed.append(f"data of {was} instead of {now}")
    if changed:
        raise ConfigError(
            f"{folder} holds a finished run with other settings: {'; '.join(changed)}; choose another "
            f"--output"
        )
    return True


def _file(origin: Mapping[str, str]) -> str:
    return f"{origin.get('file')} ({str(origin.get('sha256'))[:8]})" if origin else "random weights"
