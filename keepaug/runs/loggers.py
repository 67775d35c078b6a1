"""Where a run's figures go besides metrics.jsonl: TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from keepaug.runs.errors import ConfigError
from keepaug.runs.files import write_text_atomic
from keepaug.runs.progress import say

TRACKERS = ("none", "wandb", "mlflow")
TRACKER_HELP = "also log to Weights & Biases or MLflow, each set up by its own environment variables"


class Logger(Protocol):
    """What gets a run's figures."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures by name, after a step."""

    def close(self, *, failed: bool) -> None:
        """No more will come; whether the run ended before its end."""


class _TensorBoard:
    def __init__(self, folder: Path, writer: type) -> None:
        self.writer = writer(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, float(value), step)

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        # A resumed run goes on in the same place, and a new one in a folder of that name in another.
        note = folder / "wandb.txt"
        identity = note.read_text().strip() if note.is_file() else uuid.uuid4().hex[:16]
        self.run = wandb.init(
            project="keepaug", name=name, id=identity, resume="allow", dir=str(folder), config=dict(config)
        )
        write_text_atomic(note, identity)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class _MLflow:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import mlflow

        self.mlflow, note = mlflow, folder / "mlflow.txt"
        mlflow.set_experiment("keepaug")
        if note.is_file():  # a resumed run
            mlflow.start_run(run_id=note.read_text().strip())
        else:
            identity = mlflow.start_run(run_name=name).info.run_id
            mlflow.log_params({key: str(value)[:500] for key, value in config.items()})
            write_text_atomic(note, identity)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics({key: float(value) for key, value in values.items()}, step=step)

    def close(self, *, failed: bool) -> None:
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


class _Tracker:
    """Somebody's server, which may fail and not take the run with it."""

    def __init__(self, name: str, logger: Logger) -> None:
        self.name, self.logger, self.lost = name, logger, False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self.logger.log(step, values))

    def close(self, *, failed: bool) -> None:
        self._try(lambda: self.logger.close(failed=failed))

    def _try(self, act: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            act()
        except Exception as error:  # of any type: their libraries'
            self.lost = True
            say(f"note: tracker={self.name} fails ({_in_a_line(error)}); metrics.jsonl has all figures")


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def check_tracker(tracker: str) -> None:
    """Refuse what cannot be opened.

    Raises:
        ConfigError: an unknown tracker, or one that is not installed.
    """
    if tracker not in TRACKERS:
        raise ConfigError(f"tracker is {tracker!r}; allowed: {', '.join(TRACKERS)}")
    if tracker != "none":
        try:
            importlib.import_module(tracker)
        except ImportError as error:
            raise ConfigError(f"tracker={tracker} needs {tracker}: pip install {tracker}") from error


def open_loggers(
    folder: Path, *, tensorboard: bool, tracker: str, name: str, config: Mapping[str, Any]
) -> list[Logger]:
    """The loggers of a run.

    Args:
        folder: of the run.
        tensorboard: write its events, where it is installed.
        tracker: one that `check_tracker` has passed.
        name: of the run.
        config: resolved settings.

    Raises:
        ConfigError: a tracker that does not begin.
    """
    found: list[Logger] = []
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            pass  # metrics.jsonl has everything
        else:
            found.append(_TensorBoard(folder, SummaryWriter))
    if tracker == "none":
        return found
    try:
        logger: Logger = (_WandB if tracker == "wandb" else _MLflow)(folder, name, config)
    except Exception as error:  # of any type: their libraries'
        raise ConfigError(
            f"tracker={tracker} cannot begin ({_in_a_line(error)}); tracker=none does without"
        ) from error
    return [*found, _Tracker(tracker, logger)]
