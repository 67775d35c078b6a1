"""What the training tools' command lines share: `--config FILE --output DIR --resume --shrink key=value ...`,
and seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import os
import re
import shutil
import statistics
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from keepaug.runs.errors import (
    EXIT_STOPPED,
    ConfigError,
    LostProcessError,
    NonFiniteLossError,
    StopRequestedError,
    UnknownKeyError,
)
from keepaug.runs.planning import Tool, is_finished, shrunk
from keepaug.runs.result import FILE_NAME, read_result


def settings_help(settings: type) -> str:
    """A line for each field of a settings class: default, meaning, allowed values; under the class's
    `SECTIONS`, which name the first field of each, and then by who uses them.
    """
    width = max(60, min(110, shutil.get_terminal_size().columns))
    sections: Mapping[str, str] = getattr(settings, "SECTIONS", {})
    title = "settings (key=value; those with * may change on resume, and are no part of what a run is)"
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(settings):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        choices, users = field.metadata.get("choices"), field.metadata.get("used_by")
        notes = [field.metadata.get("help") or "", " | ".join(map(str, choices)) if choices else ""]
        group = title = sections.get(field.name, title)
        if users:
            group = f"used by {', '.join(users)}"
        mark = "* " if field.metadata.get("bookkeeping") else "  "
        line = f"{field.name}={default}  {'; '.join(note for note in notes if note)}".rstrip()
        wrapped = textwrap.fill(line, width, initial_indent=mark, subsequent_indent=" " * 6)
        groups.setdefault(group, []).append(wrapped)
    order = sorted(groups, key=lambda one: one.startswith("used by"))  # stable
    return "\n".join(line for one in order for line in (f"{one}:", *groups[one]))


DRY_RUN_HELP = (
    "check everything, measure a few steps, say what would be done, hours and memory; write nothing"
)
HOURS_HINT = "hours and memory of one of them: its command with --dry-run"
RESUMES = "the same command with --resume goes on from the last checkpoint"
# Options that had another name, in any command.
RENAMED = {
    "--batch": ["--batch-size"],
    "--checkpoint": ["--eval-only RUN"],
    "--commands": ["--dry-run"],
    "--gpus": ["--num-gpus"],
    "--images": ["--limit-images", "--data"],
    "--jobs": ["--at-once"],
    "--max-images": ["--limit-images"],
    "--size": ["--side"],
    "--threads": ["--num-workers"],
    "--workers": ["--num-workers"],
}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Says what numbers and files are, and defaults."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {int: "N", float: "X", Path: "PATH"}.get(action.type, action.dest.upper())  # type: ignore[call-overload]

    def _get_help_string(self, action: argparse.Action) -> str:
        default, text = action.default, action.help or ""
        if "default" in text or default is None or default is False or default in ([], argparse.SUPPRESS):
            return text
        said = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{text}; default {said}"


class CommandParser(argparse.ArgumentParser):
    """A command's parser; of an option that it does not know it says what was meant.

    Args:
        description: the module's docstring, shown as it is.
        epilog: shown as it is.
    """

    settings: tuple[str, ...] = ()
    """Names of `key=value` settings, for completion."""

    def __init__(self, description: str | None, *, epilog: str | None = None) -> None:
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Options may follow settings, and settings `--seeds 0 1`."""
        found = super().parse_intermixed_args(args, namespace)
        if "seeds" in found and "overrides" in found:
            try:
                found.seeds, found.overrides = split_settings(found.seeds, found.overrides)
            except ConfigError as error:
                self.error(str(error))
        return found

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if action.type is Path and not arg_string.strip():  # an unset variable, not the folder here
            raise argparse.ArgumentError(action, "expected a path, got an empty text")
        if "--output" in action.option_strings:  # now, and not after hours
            path = Path(arg_string)
            try:
                there = next((one for one in (path, *path.parents) if one.exists()), Path())
            except OSError as error:  # a name that is too long
                raise argparse.ArgumentError(action, f"{arg_string:.40}: {error.strerror}") from error
            if action.metavar == "FILE" and path.is_dir():
                raise argparse.ArgumentError(action, f"{path} is a folder; name a file in it")
            if action.metavar == "DIR" and not there.is_dir():
                raise argparse.ArgumentError(action, f"{there} is a file: choose another folder")
        return super()._get_value(action, arg_string)  # type: ignore[misc]

    def error(self, message: str) -> NoReturn:
        """End with exit code 2, and the name that was meant where there is one."""
        for option in re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else ():
            known = [name for name in self._option_string_actions if name.startswith("--")]
            now = RENAMED.get(option, [])
            meant = [*(one for one in now if one in known), *now, *difflib.get_close_matches(option, known)]
            message += f"; {option}: did you mean {meant[0]}?" if meant else ""
        super().error(message)


def config_parser(
    description: str | None, settings: type, *, configs: str, output: str
) -> argparse.ArgumentParser:
    """A parser for `parse_intermixed_args`, so that options may follow settings.

    Args:
        description: of the tool.
        settings: dataclass whose fields are listed by --help.
        configs: the folder of its config files.
        output: what `--output` is by default.
    """
    parser = CommandParser(description, epilog=settings_help(settings))
    parser.settings = tuple(field.name for field in dataclasses.fields(settings))
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"YAML file, or a name that `keepaug configs {Path(configs).name}` lists",
    )
    add("--output", type=Path, metavar="DIR", help=f"run folder; default {output}")
    add("--resume", action="store_true", help="go on with the run in the folder")
    add_seeds(parser)
    add("--shrink", action="store_true", help="a few steps on a few images: does it run?")
    add("--dry-run", action="store_true", help=DRY_RUN_HELP)
    add("overrides", nargs="*", metavar="key=value", help="settings, see below")
    return parser


def add_seeds(
    parser: argparse.ArgumentParser, help: str = "one run each, in OUTPUT-seedN; then mean and spread"
) -> None:
    """`--seeds`, which may take settings too, see `split_settings`."""
    parser.add_argument("--seeds", nargs="+", action="extend", default=[], metavar="SEED", help=help)


def split_settings(seeds: Sequence[str], overrides: Sequence[str]) -> tuple[list[int], list[str]]:
    """Seeds and settings; `--seeds 0 1 lr=0.1` takes the setting for a seed, which is put right here.

    Raises:
        ConfigError: a seed that is no whole number or comes twice, or a setting without "=".
    """
    settings = [*overrides, *(item for item in seeds if "=" in item)]
    if wrong := [item for item in settings if "=" not in item]:
        raise ConfigError(f"a setting must be key=value, got {', '.join(wrong)}")
    numbers = [item for item in seeds if "=" not in item]
    if wrong := [item for item in numbers if not item.isdecimal()]:
        raise ConfigError(f"--seeds must be whole numbers from 0, got {', '.join(wrong)}")
    if seeds and not numbers:
        raise ConfigError(f"--seeds needs whole numbers from 0, got {', '.join(seeds)}")
    if len({int(item) for item in numbers}) < len(numbers):
        raise ConfigError(f"--seeds must differ, got {', '.join(numbers)}")
    return [int(item) for item in numbers], settings


def is_main() -> bool:
    """Whether this is the process that prints: torchrun's first, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def shown(metrics: Mapping[str, float]) -> str:
    """`accuracy 95.20, top5 99.80`."""
    return ", ".join(f"{key} {value:.2f}" for key, value in metrics.items())


def summary(results: Sequence[Mapping[str, float]]) -> str:
    """Mean and sample standard deviation of each metric, a line each; one seed has no deviation."""
    lines = []
    for key in results[0]:
        values = [result[key] for result in results]
        spread = (
            f" ± {statistics.stdev(values):.2f} ({len(values)} seeds)" if len(values) > 1 else " (1 seed)"
        )
        lines.append(f"{key}: {statistics.mean(values):.2f}{spread}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a command.

    Attributes:
        config: its settings.
        output: its folder.
        before: its figures, where it was done before.
    """

    config: Any
    output: Path
    before: Mapping[str, float] | None = None


def run_seeds(
    args: argparse.Namespace,
    tool: Tool,
    *,
    name: Callable[[Any], tuple[str, str]],
    evaluate: Callable[..., dict[str, float]] | None = None,
) -> int:
    """One run, or one for each of `--seeds`, of a tool that takes `key=value` settings.

    Args:
        args: of a `config_parser`.
        tool: what runs; `--shrink` adds its settings before those of the command line.
        name: the data's name, which the config file's and the setting `name` go before, and what is done:
            together the folder below runs, without the seed, where `--output` is not given.
        evaluate: instead of the loop's `train`, with the same arguments: returns figures, trains nothing.

    Returns:
        The exit code; mistakes and interruptions are said on standard error.
    """

    def planned(overrides: list[str], seed: int | None) -> Run:
        try:
            config = tool.load(args.config, overrides + ([] if seed is None else [f"seed={seed}"]))
        except UnknownKeyError as error:
            raise ConfigError(f"{error}{whose(error.key)}") from error
        tool.check(config)  # before anything slow is imported
        data, what = name(config)
        stem = config.name or (args.config.stem if args.config else data)
        base = args.output or Path("runs") / _file_name(f"{stem}-{what}")
        one = seed is None and args.output is not None
        return Run(config, base if one else of_seed(base, config.seed))

    def train(run: Run) -> Mapping[str, float]:
        do = evaluate or importlib.import_module(tool.loop).train
        found: Mapping[str, float] = do(run.config, run.output, resume=args.resume)
        return found

    def rehearse(run: Run, number: int) -> None:
        said = importlib.import_module(tool.loop).rehearse(run.config, run.output, resume=args.resume)
        if is_main():
            print(said.lines(number))

    def settings(config: Any) -> Mapping[str, Any]:
        return tool.recipe(config) | tool.precision(config)

    def act() -> int:
        seeds, overrides = args.seeds, args.overrides
        if evaluate is not None:
            refuse_to_rehearse(args)
            if args.resume:
                raise ConfigError(
                    "--resume goes on with training; --eval-only reads weights and trains nothing"
                )
        if args.shrink:
            overrides = shrunk(tool, args.config, overrides)
        runs = [planned(overrides, seed) for seed in seeds] or [planned(overrides, None)]
        world = None
        if len(runs) > 1 and not args.dry_run:  # one process group for all
            from keepaug.runs.distributed import setup

            world = setup(runs[0].config.device)
        try:
            do_all(args, tool, runs, train=train, rehearse=rehearse, settings=settings)
        finally:
            if world is not None:
                world.close()
        return 0

    return exit_code(act, goes_on=RESUMES)


def of_seed(base: Path, seed: int) -> Path:
    """The folder of one of several runs."""
    return base.with_name(f"{base.name}-seed{seed}")


def refuse_to_rehearse(args: argparse.Namespace) -> None:
    """Of an evaluation: raises ConfigError where several runs or a dry run are asked for."""
    if args.seeds or args.dry_run:
        raise ConfigError("--seeds trains and --dry-run rehearses it; give one run to --eval-only")


def do_all(
    args: argparse.Namespace,
    tool: Tool,
    runs: Sequence[Run],
    *,
    train: Callable[[Run], Mapping[str, float]],
    rehearse: Callable[[Run, int], None],
    settings: Callable[[Any], Mapping[str, Any]],
    root: str = "",
    says: bool = True,
) -> None:
    """Do what is not done, say each run's figures, and of `--seeds` mean and spread. With `--dry-run` say
    settings and runs, and rehearse the first that is not done.

    Args:
        args: with `seeds`, `resume`, `dry_run` and `shrink`.
        tool: what runs.
        runs: one, or one for each seed; with `--resume` finished ones are not run again.
        train: returns a run's figures.
        rehearse: says what a run takes, and what that number of such runs takes.
        settings: of a run, that a dry run says.
        root: of the data, where the settings do not say it.
        says: whether this machine prints.

    Raises:
        ConfigError: the folder of any run of several is another's, before the first begins.
    """
    says = says and is_main()
    if args.seeds:
        runs = [_with_what_is_there(run, tool, root, resume=args.resume) for run in runs]
    left = [run for run in runs if run.before is None]
    if args.dry_run:
        from keepaug.runs.rehearsal import settings_lines

        lines = [
            f"{'run:':<11}{run.output}, seed {tool.seed(run.config)}{' (done before)' * (run.before is not None)}"
            for run in runs
        ]
        if says:
            said = settings_lines(settings((left or runs)[0].config))
            print("dry run: nothing is written", said, *lines, sep="\n", flush=True)
        if left:
            rehearse(left[0], len(left))
        return
    results = []
    for run in runs:
        metrics = train(run) if run.before is None else run.before
        results.append(metrics)
        if says:
            done = "" if run.before is None else " (done before)"
            then = "" if args.shrink else f"; next: keepaug report {run.output.parent}"
            print(f"{run.output}: {shown(metrics)}{done}{then}", flush=True)
    if args.seeds and says:
        print(summary(results))


def _with_what_is_there(run: Run, tool: Tool, root: str, *, resume: bool) -> Run:
    """With its figures if it is done; raises ConfigError where the folder is another's."""
    if resume and is_finished(run.output, tool, run.config, root):
        return dataclasses.replace(run, before=read_result(run.output / FILE_NAME)["metrics"])
    if not resume and run.output.is_dir() and tool.has_run(run.output):
        raise ConfigError(f"{run.output} holds a run already: resume it, or choose another folder")
    return run


def whose(key: str) -> str:
    """Which other commands have a setting of that name."""
    from keepaug.__main__ import commands

    owners = ["train-detector"] if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", key) else []
    for name, command in commands().items():
        if name.startswith("train-") and name != "train-detector":
            parser = importlib.import_module(command.module).build_parser()
            owners += [name] if key in parser.settings else []
    return f"; {key} is a setting of {', '.join(owners)}" if owners else ""


def _file_name(name: str) -> str:
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(
            f"the run's name is that of its folder below runs, got {name!r}: leave out slashes, or give "
            f"--output"
        )
    return name


def exit_code(act: Callable[[], int], *, goes_on: str = "") -> int:
    """What a tool ends with: every expected error is one line on standard error.

    Args:
        act: does what the tool is for.
        goes_on: how it is gone on with, where that can be.

    Returns:
        What `act` returns; 2 for mistakes, missing files, full disks or memories, lost processes and diverged
        losses; 130 for Ctrl-C; 75 for a run that was asked to stop and can be resumed; 141 where nobody reads
        the output any more.
    """
    threading.excepthook = _said_in_a_line
    try:
        return act()
    except KeyboardInterrupt:
        print("; ".join(filter(None, ["interrupted", goes_on])), file=sys.stderr)
        return 130
    except StopRequestedError as error:
        print(error, file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says SIGPIPE: a run that printed into it has not ended
    except (ValueError, OSError, ImportError, NonFiniteLossError, LostProcessError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if (remedy := _remedy(error)) is None:
            raise
        remedies = "; ".join(filter(None, [remedy, goes_on]))
        print(f"error: {_one_line(error).splitlines()[0]} ({remedies})", file=sys.stderr)
        return 2


def _said_in_a_line(lost: threading.ExceptHookArgs) -> None:
    """A thread that cannot write, such as TensorBoard's; what waits for it gets the same error."""
    if isinstance(lost.exc_value, OSError):
        print(f"note: {lost.exc_value}", file=sys.stderr)
    else:
        threading.__excepthook__(lost)


def _remedy(error: BaseException) -> str | None:
    """What helps against errors of torch that have no type of their own; None: nobody knows."""
    text = f"{type(error).__name__}: {error}"
    if re.search(r"MemoryError|out of memory|can't allocate memory|not enough memory", text):
        return "smaller batches or images, bf16, or more processes need less"
    if re.search(r"gloo|NCCL|DistBackend|DistNetwork|DistStore|Connection (closed|reset)|Broken pipe", text):
        return "another process of this run has ended or cannot be reached"
    if "DataLoader worker" in text:
        return "a process that reads images was ended, mostly for lack of memory"
    return None


def _one_line(error: BaseException) -> str:
    """Of a loader worker's error its last line: the library puts the worker's whole traceback before it."""
    text = str(error).strip()
    if text.startswith("Caught ") and "in DataLoader worker process" in text:
        text = text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    return text or type(error).__name__
