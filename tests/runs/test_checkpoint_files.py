"""Checkpoints survive damage, and nothing in them runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keepaug.runs.checkpoint import FILE_NAME, PREVIOUS_NAME, load_checkpoint, save_checkpoint


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
