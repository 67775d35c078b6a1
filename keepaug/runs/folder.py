"""One run, one folder: config.yaml, metrics.jsonl, TensorBoard events, checkpoints, result.json."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from keepaug.runs.checkpoint import FILE_NAME as CHECKPOINT
from keepaug.runs.config import ConfigError
from keepaug.runs.files import write_text_atomic

__all__ = ["RunFolder"]


class RunFolder:
    """A locked run folder. Only the main process opens one.

    Args:
        path: the folder; made where missing.
        config: resolved settings, written to config.yaml.
        resume: go on with the run in the folder, if there is one.
        may_change: keys (dotted) that may differ between a run and its continuation.
        tensorboard: also write TensorBoard events, where tensorboard is installed.

    Raises:
        ConfigError: the folder holds a run and resume is False; resume would change its settings; or another process
            is using it.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        may_change: tuple[str, ...] = (),
        tensorboard: bool = True,
    ) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                f"{self.path} is in use by another run; wait for it or choose another folder"
            ) from error
        try:
            self._claim(dict(config), resume, may_change)
        except ConfigError:
            self._lock.close()
            raise
        self._metrics = (self.path / "metrics.jsonl").open("a")
        self._writer = _tensorboard_writer(self.path) if tensorboard else None

    def _claim(self, config: dict[str, Any], resume: bool, may_change: tuple[str, ...]) -> None:
        saved = self.path / "config.yaml"
        if saved.is_file() and (self.path / CHECKPOINT).is_file():
            if not resume:
                raise ConfigError(f"{self.path} holds a run already: resume it, or choose another folder")
            before, after = _flat(yaml.safe_load(saved.read_text())), _flat(config)
            changed = [
                f"{key} (was {before.get(key)!r}, is {after.get(key)!r})"
                for key in sorted(before.keys() | after.keys())
                if before.get(key) != after.get(key) and not key.startswith(may_change or ("\0",))
            ]
            if changed:
                raise ConfigError(
                    f"resuming would change the run in {self.path}: {'; '.join(changed)}; "
                    "start a new run in another folder"
                )
        else:
            (self.path / "metrics.jsonl").unlink(missing_ok=True)  # of a run that never saved a checkpoint
        write_text_atomic(saved, yaml.safe_dump(config, sort_keys=False))

    def truncate_metrics(self, step: int) -> None:
        """Forget what was logged after the checkpoint's step: the resumed run writes it again."""
        self._metrics.close()
        path = self.path / "metrics.jsonl"
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):  # a line cut short by the interruption
                continue
        write_text_atomic(path, "".join(f"{line}\n" for line in kept))
        self._metrics = path.open("a")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl (and TensorBoard)."""
        line = {"step": step, **{key: float(value) for key, value in values.items()}}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(key, float(value), step)

    def metrics(self) -> list[dict[str, float]]:
        """All lines logged so far."""
        self._metrics.flush()
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def close(self) -> None:
        """Close the files and release the folder."""
        if self._writer is not None:
            self._writer.close()
        self._metrics.close()
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return leaves


def _tensorboard_writer(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None  # metrics.jsonl has everything
    return SummaryWriter(str(path / "tensorboard"))
