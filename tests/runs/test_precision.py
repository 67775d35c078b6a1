"""precision=auto: bf16 where the processor computes in it, and what a run began with ever after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from keepaug.classify import ClassifyConfig, train
from keepaug.data.synthetic import write_classification
from keepaug.runs import precision
from keepaug.runs.config import load_config
from keepaug.runs.errors import ConfigError
from keepaug.runs.precision import VARIABLE, with_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=["AMX", ""])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(precision, "fast_bf16", lambda: request.param)
    return request.param


def chosen(folder: Path, device: torch.device = CPU, *given: str) -> str:
    return with_precision(load_config(ClassifyConfig, None, given), folder, device).precision


def test_auto_is_what_the_processor_is_fast_in(instructions: str, tmp_path: Path) -> None:
    assert chosen(tmp_path) == ("bf16" if instructions else "float32")
    assert chosen(tmp_path, GPU) == "float32"
    assert chosen(tmp_path, CPU, "precision=float32") == "float32"
    assert chosen(tmp_path, CPU, "precision=bf16") == "bf16"


def test_the_environment_decides_where_nothing_else_does(
    instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "float32")
    assert chosen(tmp_path) == "float32"
    assert chosen(tmp_path, CPU, "precision=bf16") == "bf16"
    monkeypatch.setenv(VARIABLE, "half")
    with pytest.raises(ConfigError, match=r"\$KEEPAUG_PRECISION is 'half'; allowed: auto, float32, bf16"):
        chosen(tmp_path)


def test_a_run_keeps_and_records_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is resumed on a machine that would choose otherwise."""
    root = write_classification(tmp_path / "d", num_train=8, num_val=4, num_classes=2, size=(32, 32))
    given = [f"root={root}", "arch=resnet8", "epochs=2", "batch_size=4", "pictures=false", "stem=cifar"]
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(precision, "fast_bf16", lambda: "AMX")
    train(load_config(ClassifyConfig, None, [*given, "max_steps=2"]), tmp_path / "run")
    monkeypatch.setattr(precision, "fast_bf16", lambda: "")
    train(load_config(ClassifyConfig, None, [*given, "max_steps=2"]), tmp_path / "run", resume=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["precision"]["precision"] == result["config"]["precision"] == "bf16"
    train(load_config(ClassifyConfig, None, given), tmp_path / "other")
    result = json.loads((tmp_path / "other" / "result.json").read_text())
    assert result["precision"]["precision"] == "float32"
