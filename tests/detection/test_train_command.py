"""`keepaug train-detector`: `--seeds` and `tracker=`, in both engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from keepaug.__main__ import main
from keepaug.data.synthetic import write_detection
from keepaug.runs.result import read_result

ENGINES = pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
SMALL = "SOLVER.MAX_ITER=2 SOLVER.STEPS=(1,) SOLVER.IMS_PER_BATCH=1 INPUT.MIN_SIZE_TRAIN=(64,)"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "model_final.pth", weights_only=False)["model"]


@ENGINES
def test_seeds_are_runs_of_their_own(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, base = write_detection(tmp_path / "d", num_train=4, num_val=2, num_classes=4), tmp_path / "x"
    given = ["train-detector", "--config", "quickstart/detector", "--engine", engine, f"root={root}"]
    given += [*SMALL.split(), "--output"]
    several = [*given, str(base), "--seeds", "1", "2", "SOLVER.CHECKPOINT_PERIOD", "1"]
    assert main(several) == 0
    out = capsys.readouterr().out
    folders = [tmp_path / f"x-seed{seed}" for seed in (1, 2)]
    results = [read_result(folder / "result.json") for folder in folders]
    assert [result["seed"] for result in results] == [1, 2]
    assert not base.exists()
    mean = sum(result["metrics"]["AP50"] for result in results) / 2
    assert f"AP50: {mean:.2f} ± " in out
    assert "(2 seeds)" in out.splitlines()[-1]
    for folder in folders:
        assert f"{folder}: AP " in out

    assert main([*given, str(tmp_path / "alone"), "seed=2", "SOLVER.CHECKPOINT_PERIOD", "1"]) == 0
    alone, second = weights(tmp_path / "alone"), weights(folders[1])
    assert all(torch.equal(value, second[key]) for key, value in alone.items())
    assert not all(torch.equal(value, second[key]) for key, value in weights(folders[0]).items())
    if engine == "detectron2":
        assert "x-seed2" not in (folders[0] / "log.txt").read_text()

    (folders[1] / "result.json").unlink()
    stamp = (folders[0] / "result.json").stat().st_mtime_ns
    assert main(several) == 2
    assert "x-seed1 holds a run already" in capsys.readouterr().err
    assert main([*several, "--resume"]) == 0
    assert f"AP {results[0]['metrics']['AP']:.2f}" in (again := capsys.readouterr().out)
    assert "(done before)" in again
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert (folders[0] / "result.json").stat().st_mtime_ns == stamp
    assert read_result(folders[1] / "result.json")["metrics"] == results[1]["metrics"]
    assert main([*several, "SOLVER.BASE_LR", "0.3", "--resume"]) == 2  # no run begins where one is another
    assert "SOLVER.BASE_LR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "1", "1"], "--seeds must differ"),
        (["--seeds", "one"], "--seeds must be whole numbers from 0, got one"),
        (["--seeds", "SOLVER.BASE_LR=1.0"], "--seeds needs whole numbers"),
        (["--seeds", "1", "--eval-only"], "give one run to --eval-only"),
        (["--dry-run", "--eval-only"], "give one run to --eval-only"),
    ],
)
def test_seeds_that_cannot_be(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-detector", "--config", "quickstart/detector", "root=nowhere", *more]) == 2
    assert message in capsys.readouterr().err


class Tracker(SimpleNamespace):
    """Stands for mlflow."""

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}
        self.began: list[str] = []
        self.ended: list[str] = []
        super().__init__(
            set_experiment=lambda name: None, end_run=self.ended.append, log_params=lambda _: None
        )

    def start_run(self, run_id: str = "", run_name: str = "") -> SimpleNamespace:
        self.began.append(run_id or run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="7"))

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.logged.setdefault(step, {}).update(values)


@ENGINES
def test_a_tracker_gets_a_detectors_figures(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    root = write_detection(tmp_path / "d", num_train=4, num_val=2, num_classes=4)
    given = ["train-detector", "--config", "quickstart/detector", "--engine", engine, f"root={root}"]
    given += [*SMALL.split(), "tracker=mlflow", "--output", str(tmp_path / "run")]
    assert main([*given, "--dry-run"]) == 0
    assert not tracker.began
    assert main(given) == 0
    assert set(tracker.logged) == {2}
    file = "metrics.json" if engine == "detectron2" else "metrics.jsonl"
    (written,) = (
        json.loads(line) for line in (tmp_path / "run" / file).read_text().splitlines() if "lr" in line
    )
    for key in ("total_loss", "lr"):
        assert tracker.logged[2][key] == written[key]
    assert tracker.ended == ["FINISHED"]
    assert main([*given, "--resume", "SOLVER.MAX_ITER=3", "SOLVER.BASE_LR=0.5"]) == 2  # another run
    assert main([*given, "--resume", "SOLVER.MAX_ITER=3"]) == 0
    assert tracker.began == ["run", "7"]
    assert set(tracker.logged) == {2, 3}
    capsys.readouterr()
    assert main([*given, "tracker=neptune"]) == 2
    assert "tracker is 'neptune'; allowed: none, wandb, mlflow" in capsys.readouterr().err
    monkeypatch.setattr(tracker, "log_metrics", lambda *given, **more: 1 / 0)
    assert main([*given, "--output", str(tmp_path / "other")]) == 0
    assert "tracker=mlflow fails (ZeroDivisionError" in capsys.readouterr().out


def test_a_device_is_one_of_the_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_detection(tmp_path / "d", num_train=4, num_val=2, num_classes=4)
    given = ["train-detector", "--config", "quickstart/detector", "--engine", "torchvision", f"root={root}"]
    given += [*SMALL.split(), "--output", str(tmp_path / "run"), "--dry-run"]
    assert main([*given, "device=gpu"]) == 2
    assert "device is 'gpu'; allowed: auto, cpu, cuda" in capsys.readouterr().err
    assert main([*given, "device=auto"]) == 0
