"""Where a run's figures go besides metrics.jsonl: TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from keepaug.runs.errors import ConfigError

__all__ = ["TRACKERS", "TRACKER_HELP", "Logger", "open_loggers"]

TRACKERS = ("none", "wandb", "mlflow")
TRACKER_HELP = "also log to Weights & Biases or MLflow, each set up by its own environment variables"


class Logger(Protocol):
    """What gets a run's figures."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures by name, after a step."""

    def close(self) -> None:
        """No more will come."""


class _TensorBoard:
    def __init__(self, folder: Path, writer: type) -> None:
        self.writer = writer(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, float(value), step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        # A resumed run goes on in the same place.
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self.run = wandb.init(
            project="keepaug", name=name, id=identity, resume="allow", dir=str(folder), config=dict(config)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import mlflow

        self.mlflow, note = mlflow, folder / "mlflow.txt"
        mlflow.set_experiment("keepaug")
        if note.is_file():  # a resumed run
            mlflow.start_run(run_id=note.read_text().strip())
        else:
            note.write_text(mlflow.start_run(run_name=name).info.run_id)
            mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics({key: float(value) for key, value in values.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


def open_loggers(
    folder: Path, *, tensorboard: bool, tracker: str, name: str, config: Mapping[str, Any]
) -> list[Logger]:
    """The loggers of a run.

    Args:
        folder: of the run.
        tensorboard: write its events, where it is installed.
        tracker: one of `TRACKERS`.
        name: of the run.
        config: resolved settings.

    Raises:
        ConfigError: an unknown tracker, or one that is not installed.
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
    if tracker not in TRACKERS:
        raise ConfigError(f"tracker is {tracker!r}; allowed: {', '.join(TRACKERS)}")
    try:
        return [*found, (_WandB if tracker == "wandb" else _MLflow)(folder, name, config)]
    except ImportError as error:
        raise ConfigError(f"tracker={tracker} needs {tracker}: pip install {tracker}") from error
