"""Checkpoints survive damage; a run folder belongs to one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keepaug.runs.checkpoint import FILE_NAME, PREVIOUS_NAME, load_checkpoint, save_checkpoint
from keepaug.runs.config import ConfigError
from keepaug.runs.folder import RunFolder


def test_the_previous_one_is_kept_and_takes_over(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"step": 1, "w": torch.arange(3)})
    save_checkpoint(tmp_path, {"step": 2, "w": torch.arange(3)})
    assert load_checkpoint(tmp_path)["step"] == 2
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt cannot be read.*going on from .*previous"):
        assert load_checkpoint(tmp_path)["step"] == 1
    (tmp_path / PREVIOUS_NAME).write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint can be read"):
        load_checkpoint(tmp_path)


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / FILE_NAME).rename(tmp_path / PREVIOUS_NAME)
    assert load_checkpoint(tmp_path)["step"] == 1


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"step": Evil()}, tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_one_folder_one_run(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {"lr": 0.1, "device": "cpu"}, tensorboard=False) as folder:
        folder.log(10, {"loss": 2.0})
        folder.log(20, {"loss": 1.0})
        save_checkpoint(tmp_path, {"step": 10})
        with pytest.raises(ConfigError, match="in use by another run"):
            RunFolder(tmp_path, {"lr": 0.1}, resume=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        RunFolder(tmp_path, {"lr": 0.1, "device": "cpu"})
    with pytest.raises(ConfigError, match=r"lr \(was 0.1, is 0.2\)"):
        RunFolder(tmp_path, {"lr": 0.2, "device": "cpu"}, resume=True)
    with RunFolder(tmp_path, {"lr": 0.1, "device": "cuda"}, resume=True, may_change=("device",)) as folder:
        (tmp_path / "metrics.jsonl").open("a").write('{"step": 3')  # cut short by the interruption
        folder.truncate_metrics(10)
        folder.log(20, {"loss": 0.5})
        assert [(line["step"], line["loss"]) for line in folder.metrics()] == [(10, 2.0), (20, 0.5)]
