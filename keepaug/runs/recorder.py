"""One run, one folder, one recorder: lock, config.yaml, metrics.jsonl, checkpoints, clock, result.json.

    with Recorder(output, config, kind="classify", main=world.is_main) as recorder:
        facts = {"name": ..., "dataset": ..., "synthetic": ..., "shortened": ...}
        state = recorder.claim(resume, **facts, model=network, optimizer=optimizer)
        for step in range(state["step"], total):
            ...
            recorder.log(step + 1, {"train/loss": loss})
            recorder.save(step + 1)
        recorder.finish({"accuracy": 95.0})

The loop stays the caller's; the recorder is told what happened, and never decides what happens next.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
import yaml
from filelock import FileLock, Timeout
from torch import Tensor, nn

from keepaug.runs.checkpoint import FILE_NAME as CHECKPOINT
from keepaug.runs.checkpoint import (
    checked,
    has_checkpoint,
    load_checkpoint,
    restoring,
    save_checkpoint,
)
from keepaug.runs.config import ConfigError, changed_settings, precision_of, recipe_of, to_dict
from keepaug.runs.distributed import Distributed
from keepaug.runs.files import remove_unfinished, write_json_atomic, write_text_atomic
from keepaug.runs.header import header
from keepaug.runs.loggers import Logger, check_tracker, open_loggers
from keepaug.runs.progress import say
from keepaug.runs.result import DATASET, STARTED_FROM, describe_run, record_result, revision
from keepaug.runs.shapes import check_shape, read_json, read_yaml
from keepaug.runs.stopping import StopSignals

METRICS = "metrics.jsonl"
RUN = "run.json"
RUN_SHAPE = {
    "kind": str,
    "dataset": DATASET,
    "started_from": STARTED_FROM,
    "revisions?": [(str, None)],
    "seconds?": float,
    "cpu_seconds?": float,
    "metrics_lines?": int,
    "metrics_sha256?": str,
    str: Any,
}
CHECKPOINT_SHAPE = {
    "step": int,
    "seconds?": float,
    "cpu_seconds?": float,
    "metrics_lines?": int,
    "metrics_sha256?": str,
    "evaluated?": int,
    "best?": (float, None),
    "hits?": Tensor,
    str: Any,
}


@dataclass(frozen=True)
class Clock:
    """A run's time, without the pauses between interruption and continuation.

    Attributes:
        file: run.json, for engines whose checkpoints cannot say it.
        earlier: seconds, and seconds of the processor, of the parts before this one.
        began: readings of both clocks.
        pid: of the process that read them; another one of the run has used no processor time before.
    """

    file: Path
    earlier: tuple[float, float] = (0.0, 0.0)
    began: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))
    pid: int = field(default_factory=os.getpid)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self.earlier[0] + time.monotonic() - self.began[0]

    @property
    def cpu_seconds(self) -> float:
        """Of the processor, by all threads of this process."""
        return self.earlier[1] + time.process_time() - (self.began[1] if os.getpid() == self.pid else 0.0)

    def keep(self) -> None:
        """Write the time, and what the metrics are, beside what the run is: for an engine, whenever it has
        saved a checkpoint.
        """
        about = json.loads(self.file.read_text())
        now = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, **_metrics_of(self.file.parent)}
        write_json_atomic(self.file, about | now)


class Recorder:
    """The only writer of a run's folder. Opening one locks the folder and writes nothing else.

    Args:
        output: the folder; made where missing.
        config: resolved settings: a dataclass of `option` fields, whose `tensorboard` and `tracker` (one of
            `keepaug.runs.loggers.TRACKERS`) say where else figures go; or a mapping, with `recipe`,
            `precision`, `seed`, `tracker` and `changed` given.
        kind: of the result.
        main: whether this process writes; the others only read the checkpoint.
        dry: say and refuse all that a run would, and write nothing.
        tensorboard: also write TensorBoard events, where tensorboard is installed; None: as the config says.
        recipe: for a mapping: what decides the figures.
        precision: for a mapping: how numbers are computed.
        seed: for a mapping.
        tracker: for a mapping: see above.
        changed: for a mapping: what a continuation would change of given earlier settings, as sentences.
        pass_signals_on: the work is done by processes that this one starts.
        has_run: whether the folder holds a run, where checkpoints are not `keepaug.runs.checkpoint`'s.

    Raises:
        ConfigError: another process is using the folder.
    """

    def __init__(
        self,
        output: str | Path,
        config: Any,
        *,
        kind: str,
        main: bool = True,
        dry: bool = False,
        tensorboard: bool | None = None,
        recipe: Mapping[str, Any] | None = None,
        precision: Mapping[str, Any] | None = None,
        seed: int | None = None,
        tracker: str = "none",
        changed: Callable[[Mapping[str, Any]], list[str]] | None = None,
        pass_signals_on: bool = False,
        has_run: Callable[[Path], bool] = has_checkpoint,
    ) -> None:
        tracker = getattr(config, "tracker", tracker)
        check_tracker(tracker)
        if tensorboard is None:
            tensorboard = getattr(config, "tensorboard", True)
        self.path, self.main, self._says = Path(output), main and not dry, main
        self.clock = Clock(self.path / RUN)
        self._has_run, self._tensorboard, self._tracker = has_run, tensorboard, tracker
        self._config = dict(config) if isinstance(config, Mapping) else to_dict(config)
        self._changed = changed or (lambda before: changed_settings(before, config))
        self._run: dict[str, Any] = {
            "kind": kind,
            "seed": config.seed if seed is None else seed,
            "config": self._config,
            "recipe": recipe_of(config) if recipe is None else recipe,
            "precision": precision_of(config) if precision is None else precision,
        }
        self._parts: dict[str, Any] = {}
        self._metrics: TextIO | None = None
        self._loggers: list[Logger] = []
        self._lock = FileLock(self.path / ".lock", timeout=0)
        there = next((one for one in (self.path, *self.path.parents) if one.exists()), self.path)
        if there.exists() and not there.is_dir():
            raise ConfigError(f"{there} is a file, and {self.path} must be a run's folder: choose another")
        if self.main:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise ConfigError(
                    f"{self.path} is in use by another run; wait for it or choose another folder"
                ) from error
            remove_unfinished(self.path)
        self.signals = StopSignals(pass_on=pass_signals_on)

    def stop_if_asked(self, step: int, save: Callable[[], object], world: Distributed | None = None) -> None:
        """Call it after each step: SLURM and Kubernetes send a signal some time before they kill.

        Args:
            step: steps done.
            save: writes a checkpoint.
            world: several processes stop together, whichever was asked, after one step more.

        Raises:
            StopRequestedError: any process was asked to stop; the checkpoint is written.
        """
        self.signals.stop_if_asked(self.path, step, save, world)

    def claim(
        self,
        resume: bool,
        *,
        name: str,
        dataset: Mapping[str, Any],
        synthetic: bool,
        shortened: bool,
        engine: str | None = None,
        started_from: Mapping[str, Any] | None = None,
        root: str = "",
        device: str = "cpu",
        processes: int = 1,
        **parts: Any,
    ) -> dict[str, Any]:
        """Make the folder this run's, and put the parts where its last checkpoint left them.

        Args:
            resume: go on with the run in the folder, if there is one.
            name: of the run, the same for its seeds.
            dataset: identity of the data, see `keepaug.data.identity`.
            synthetic: the data was drawn by the program.
            shortened: less data or fewer steps than the settings' epochs say.
            engine: of a detector.
            started_from: see `keepaug.runs.result.describe_run`; fixed at the run's first step.
            root: folder of the data; a run may go on where it has been moved.
            device: on which it computes.
            processes: that compute together.
            parts: what `save` saves and this restores, under these names: objects with `state_dict` and
                `load_state_dict`, tensors and lists (changed in place), or None.

        Returns:
            The checkpoint, its own "step" among it; {"step": 0} where the run begins.

        Raises:
            ConfigError: the folder holds a run and resume is False, or the data; or resuming would change
                what the run is: its settings, its data or the network that it began with.
            ValueError: there are checkpoints and none can be read.
        """
        self._parts = parts
        if root and Path(root).expanduser().resolve() == self.path.resolve():
            raise ConfigError(f"{self.path} is the folder of the data: choose another for the run")
        begun = self._has_run(self.path)
        if begun and not resume:
            raise ConfigError(f"{self.path} holds a run already: resume it, or choose another folder")
        if (other := self._kind_here()) is not None and other != self._run["kind"]:
            raise ConfigError(f"{self.path} holds a run of another kind ({other}): choose another folder")
        if not begun and (self.path / "result.json").is_file():
            raise ConfigError(
                f"{self.path} holds the result of a run whose checkpoints are gone: "
                "choose another folder, or remove it"
            )
        revisions: list[str | None] = [revision()]
        before = self.recorded
        if begun:
            self._check_same(before, dataset, started_from)
            earlier = before.get("revisions", [])
            revisions = earlier + [one for one in revisions if one not in earlier]
            if len(revisions) > len(earlier) > 0 and self.main:
                say(f"note: begun by revision {earlier[-1]}, going on with {revisions[-1]}")
        self._run = describe_run(
            **self._run,
            name=name,
            dataset=dataset,
            synthetic=synthetic,
            shortened=shortened,
            engine=engine,
            started_from=started_from,
            root=root,
            revisions=revisions,
        )
        self._run["hardware"] |= {"device": device, "processes": processes}
        state = (load_checkpoint(self.path) if begun and self._has_run is has_checkpoint else None) or {
            "step": 0
        }
        check_shape(state, CHECKPOINT_SHAPE, self.path / CHECKPOINT)
        for key, part in parts.items():
            if part is not None and key in state:
                with restoring(self.path / CHECKPOINT, key):
                    _restore(part, state[key])
        times = state if "seconds" in state else before  # an engine's own checkpoints do not say it
        earlier = times.get("seconds", 0.0), times.get("cpu_seconds", 0.0)
        self.clock = replace(self.clock, earlier=earlier)
        if self.main:
            write_text_atomic(self.path / "config.yaml", yaml.safe_dump(self._config, sort_keys=False))
            about = {key: self._run[key] for key in ("kind", "dataset", "started_from", "revisions")}
            write_json_atomic(self.path / RUN, about | {"seconds": earlier[0], "cpu_seconds": earlier[1]})
            self._open_metrics(state, times, begun)
        return state

    def announce(self, network: nn.Module, device: torch.device, step: int, work: str) -> None:
        """Say what runs, before it does.

        Args:
            network: that is trained.
            device: where.
            step: steps done before.
            work: how much of what, for example "300 epochs of 391 steps of 128 images".
        """
        if self._says:
            say(self.header(network, device, step, work))

    @property
    def header(self) -> Callable[[nn.Module, torch.device, int, str], str]:
        """What `announce` says, for processes that have no recorder: a function that can be sent to them."""
        return functools.partial(header, self.path, self._run)

    @property
    def recorded(self) -> dict[str, Any]:
        """What the run in the folder is, as it said when it began: "kind", "dataset", "started_from"; {}
        where there is none.
        """
        return self._read_run() if self._has_run(self.path) else {}

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, for messages."""
        path = self.path / CHECKPOINT
        return path if path.is_file() else None

    @property
    def seconds(self) -> float:
        """Since the run began, without the pauses between interruption and continuation."""
        return self.clock.seconds

    @property
    def cpu_seconds(self) -> float:
        """Processor time of this process, all threads, in all parts of the run; what others do on the machine
        hardly matters.
        """
        return self.clock.cpu_seconds

    @property
    def provenance(self) -> dict[str, Any]:
        """All that makes this run's numbers: goes into its weights, and from there into what is built on
        them.
        """
        return self._run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl (and TensorBoard)."""
        if self._metrics is None:
            return
        line = {"step": step, **{key: float(value) for key, value in values.items()}}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        for logger in self._loggers:
            logger.log(step, values)

    def forget_after(self, step: int) -> None:
        """Drop the lines after a step: for an engine whose checkpoints are its own, once it has read one."""
        if self._metrics is None:
            return
        self._metrics.close()
        path = self.path / METRICS
        lines = _up_to(path.read_text(errors="replace").splitlines(), step)
        write_text_atomic(path, "".join(f"{line}\n" for line in lines))
        self._metrics = path.open("a")

    def save(self, step: int, **more: Any) -> None:
        """Write a checkpoint of all parts.

        Args:
            step: steps done.
            more: further values, which `claim` returns.

        Raises:
            NonFiniteLossError: a tensor is not finite; the checkpoint before stays.
        """
        if self._metrics is None:
            return
        os.fsync(self._metrics.fileno())  # no line that the checkpoint counts may be lost
        state = {name: _state_of(part) for name, part in self._parts.items()} | more
        times = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        save_checkpoint(self.path, state | times | {"step": step, **_metrics_of(self.path)})

    def finish(
        self,
        metrics: Mapping[str, float],
        *,
        artifacts: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write result.json, see `keepaug.runs.result.record_result`."""
        if self.main:
            extra = {**(extra or {}), "cpu_time_s": round(self.cpu_seconds, 3)}
            record_result(
                self.path, self._run, metrics, wall_time_s=self.seconds, artifacts=artifacts, extra=extra
            )

    def close(self, *, failed: bool = False) -> None:
        """Close the files and release the folder.

        Args:
            failed: the run did not come to its end.
        """
        for logger in self._loggers:
            logger.close(failed=failed)
        if self._metrics is not None:
            self._metrics.close()
        self.signals.release()
        self._lock.release()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _kind_here(self) -> str | None:
        for name in (RUN, "result.json"):
            with contextlib.suppress(OSError, ValueError):
                if kind := read_json(self.path / name, {"kind?": str, str: Any}).get("kind"):
                    return str(kind)
        return None

    def _read_run(self) -> dict[str, Any]:
        """run.json; {} of a run of an earlier version."""
        path = self.path / RUN
        try:
            return dict(read_json(path, RUN_SHAPE)) if path.is_file() else {}
        except ValueError as error:
            raise ConfigError(f"{error}: start a new run in another folder") from error

    def _check_same(
        self, before: Mapping[str, Any], dataset: Mapping[str, Any], started_from: Mapping[str, Any] | None
    ) -> None:
        saved = self.path / "config.yaml"
        try:
            changed = self._changed(read_yaml(saved)) if saved.is_file() else []
        except (TypeError, AttributeError, LookupError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"{saved} is damaged ({reason:.200}): start a new run in another folder"
            ) from error
        if before:
            # A folder may have been moved: its name says nothing. An evaluation alone knows one split.
            was, now = before["dataset"]["sizes"], dataset["sizes"]
            same = all(was[split] == now[split] for split in was.keys() & now.keys())
            if not same or (
                was.keys() == now.keys() and before["dataset"]["checksum"] != dataset["checksum"]
            ):
                changed.append(f"the data (was {_short(before['dataset'])}, is {_short(dataset)})")
            old, new = (_sha256(one) for one in (before["started_from"], started_from))
            if old != new:
                changed.append(f"the network that it began with (was {old}, is {new})")
        if changed:
            raise ConfigError(
                f"resuming would change the run in {self.path}: {'; '.join(changed)}; "
                "start a new run in another folder"
            )

    def _open_metrics(self, state: Mapping[str, Any], said: Mapping[str, Any], begun: bool) -> None:
        """Forget what was logged after the checkpoint: the resumed run writes it again.

        Args:
            state: the checkpoint; without lines for an engine, which drops them by `forget_after`.
            said: what checkpoint or run.json say of the lines.
            begun: there is a run.
        """
        path = self.path / METRICS
        content = path.read_bytes() if begun and path.is_file() else b""
        kept, number = content.decode(errors="replace").splitlines(), state.get("metrics_lines")
        if self._has_run is has_checkpoint:
            kept = _up_to(kept if number is None else kept[:number], state["step"])
        if number is not None and len(kept) < number:
            print(f"note: {path} is damaged, {number - len(kept)} of its {number} lines are lost")
        elif not _is_of(content, said):
            print(f"note: {path} is damaged or was changed: lines of it are not those that this run wrote")
        write_text_atomic(path, "".join(f"{line}\n" for line in kept))
        self._metrics = path.open("a")
        self._loggers = open_loggers(
            self.path,
            tensorboard=self._tensorboard,
            tracker=self._tracker,
            name=self.path.name,
            config=self._config,
        )


def _state_of(part: Any) -> Any:
    return part.state_dict() if hasattr(part, "state_dict") else part


def _restore(part: Any, state: Any) -> None:
    if hasattr(part, "load_state_dict"):
        with checked(part) if isinstance(part, torch.optim.Optimizer) else contextlib.nullcontext():
            part.load_state_dict(state)
    elif isinstance(part, Tensor):
        part.copy_(state)
    else:
        check_shape(state, [(float, {str: float})], "a list")
        part[:] = state


def _metrics_of(folder: Path) -> dict[str, Any]:
    """How many lines the metrics have, and their checksum: a changed digit is a figure like any other."""
    path = folder / METRICS
    content = path.read_bytes() if path.is_file() else b""
    return {"metrics_lines": content.count(b"\n"), "metrics_sha256": hashlib.sha256(content).hexdigest()}


def _is_of(content: bytes, said: Mapping[str, Any]) -> bool:
    """Whether metrics begin with the lines of which `_metrics_of` told; earlier versions told nothing."""
    if not said.keys() >= {"metrics_lines", "metrics_sha256"}:
        return True
    lines = content.splitlines(keepends=True)[: said["metrics_lines"]]
    return hashlib.sha256(b"".join(lines)).hexdigest() == said["metrics_sha256"]


def _up_to(lines: list[str], step: int) -> list[str]:
    """Those of a step and before, without what was cut short or is damaged."""
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
            check_shape(values, {"step": int, str: float}, METRICS)
            if values["step"] <= step:
                kept.append(line)
    return kept


def _short(dataset: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{number} {split}" for split, number in dataset.get("sizes", {}).items())
    return f"{dataset.get('name')}: {sizes}, checksum {str(dataset.get('checksum'))[:12]}"


def _sha256(started_from: Mapping[str, Any] | None) -> str:
    return (
        "random weights" if not started_from else f"{started_from.get('file')} {started_from.get('sha256')}"
    )
