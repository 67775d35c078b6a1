"""What a run says, shows and sends: header, bar, TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from keepaug.classify import ClassifyConfig, train
from keepaug.data.synthetic import write_classification
from keepaug.runs.config import load_config, to_dict
from keepaug.runs.errors import ConfigError, NonFiniteLossError
from keepaug.runs.loggers import check_tracker, open_loggers
from keepaug.runs.progress import RunBar, progress


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loggers") / "d"
    return write_classification(folder, num_train=8, num_val=4, num_classes=2, size=(32, 32))


def settings(root: Path, *more: str) -> ClassifyConfig:
    given = [f"root={root}", "arch=resnet8", "stem=cifar", "epochs=2", "batch_size=4", "pictures=false"]
    return load_config(ClassifyConfig, None, [*given, "log_every=1", "tensorboard=false", *more])


class Tracker:
    """Stands for wandb and mlflow: remembers what it was given."""

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}
        self.started: list[dict] = []
        self.ended: list[object] = []

    def wandb(self) -> SimpleNamespace:
        return SimpleNamespace(init=self._init)

    def _init(self, **options: object) -> SimpleNamespace:
        self.started.append(options)
        return SimpleNamespace(
            log=lambda values, step: self._add(values, step), finish=lambda exit_code: self._end(exit_code)
        )

    def mlflow(self) -> SimpleNamespace:
        def start_run(run_id: str = "", run_name: str = "") -> SimpleNamespace:
            self.started.append({"id": run_id, "name": run_name})
            return SimpleNamespace(info=SimpleNamespace(run_id="7"))

        return SimpleNamespace(
            set_experiment=lambda name: None, start_run=start_run, end_run=self._end,
            log_params=lambda values: self.started[-1].update(config=values), log_metrics=self._add,
        )  # fmt: skip

    def _add(self, values: dict[str, float], step: int) -> None:
        self.logged.setdefault(step, {}).update(values)

    def _end(self, status: object) -> None:
        self.ended.append(status)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_gets_what_metrics_jsonl_gets_and_goes_on_in_one_place(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, name, getattr(tracker, name)())
    train(settings(root, f"tracker={name}"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted: dict[int, dict[str, float]] = {}
    for line in lines:
        wanted.setdefault(line.pop("step"), {}).update(line)
    assert tracker.logged == wanted
    assert len(wanted) == 4
    assert tracker.started[0]["name"] == "run"
    assert str(tracker.started[0]["config"]["arch"]) == "resnet8"
    assert tracker.ended == [0 if name == "wandb" else "FINISHED"]
    train(settings(root, f"tracker={name}"), tmp_path / "run", resume=True)
    first, second = tracker.started
    assert second["id"] == (first["id"] if name == "wandb" else "7")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(NonFiniteLossError):
        train(settings(root, f"tracker={name}", "lr=1e30"), tmp_path / "run")
    assert tracker.started[2]["id"] != second["id"]  # another run, of the same name
    assert tracker.ended[2] == (1 if name == "wandb" else "FAILED")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_fails_does_not_take_the_run_with_it(
    name: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracker = Tracker()
    monkeypatch.setattr(tracker, "_add", lambda *given, **more: 1 / 0)
    monkeypatch.setitem(sys.modules, name, getattr(tracker, name)())
    train(settings(root, f"tracker={name}", "epochs=1"), tmp_path / "run")
    out = capsys.readouterr().out
    assert out.count(f"tracker={name} fails (ZeroDivisionError: division by zero)") == 1
    assert (tmp_path / "run" / "result.json").is_file()
    monkeypatch.setitem(sys.modules, name, SimpleNamespace())  # nothing works
    with pytest.raises(ConfigError, match=f"tracker={name} cannot begin"):
        train(settings(root, f"tracker={name}"), tmp_path / "other")


def test_weights_and_biases_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'keepaug[track]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for loss in (0.8125, 0.4375):
        (logger,) = open_loggers(tmp_path, tensorboard=False, tracker="wandb", name="r", config={"lr": 0.1})
        logger.log(1, {"train/loss": loss})
        logger.log(1, {"val/accuracy": 50.0})
        logger.close(failed=False)
        assert not logger.lost  # type: ignore[attr-defined]
        wandb.teardown()  # until its own process has written the file; `finish` does not wait
        identity = (tmp_path / "wandb.txt").read_text()
        logs = [
            path.read_bytes()
            for path in tmp_path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb")
        ]
        for name, value in (("train/loss", loss), ("val/accuracy", 50)):
            assert any(name.encode() in log and str(value).encode() in log for log in logs)


def test_mlflow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'keepaug[track]'")
    config = to_dict(ClassifyConfig())  # as many settings as it must take
    for part in range(2):
        (logger,) = open_loggers(tmp_path, tensorboard=False, tracker="mlflow", name="r", config=config)
        logger.log(1 + part, {"train/loss": 0.5 - part / 4, "val/accuracy": 50.0})
        assert not logger.lost  # type: ignore[attr-defined]
        logger.close(failed=bool(part))
    client = mlflow.MlflowClient()
    identity = (tmp_path / "mlflow.txt").read_text()
    run = client.get_run(identity)
    assert (run.info.run_name, run.info.status) == ("r", "FAILED")
    assert run.data.params["arch"] == "resnet18"
    found = client.get_metric_history(identity, "train/loss")
    assert [(one.step, one.value) for one in found] == [(1, 0.5), (2, 0.25)]


def test_a_tracker_that_is_not_installed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="tracker=wandb needs wandb: pip install wandb"):
        train(settings(root, "tracker=wandb"), tmp_path / "run")
    with pytest.raises(ConfigError, match="tracker is 'neptune'; allowed: none, wandb, mlflow"):
        check_tracker("neptune")


def test_the_header_comes_first_and_the_bar_stays_out_of_files(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(settings(root), tmp_path / "run")
    out, err = capfd.readouterr()
    lines = dict(line.split(":", 1) for line in out.splitlines()[:5])
    assert list(lines) == ["folder", "data", "network", "training", "computing"]
    assert lines["folder"].strip() == f"{tmp_path / 'run'}, new"
    assert "d (drawn by the program): 8 train, 4 val" in lines["data"]
    assert "resnet8, " in lines["network"]
    assert "parameters, from random weights" in lines["network"]
    assert "2 epochs of 2 steps of 4 images, method none, seed 0" in lines["training"]
    assert "cpu, " in lines["computing"]
    assert lines["computing"].endswith("float32")
    assert "it/s" not in err
    train(settings(root), tmp_path / "run", resume=True)
    assert "run, resuming at step 4" in capfd.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_one_bar_for_the_run(kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = kind()
    monkeypatch.setattr(sys, "stderr", stream)
    with RunBar(10, 4) as bar:
        for step in range(6):
            bar.step(epoch=2, loss=0.5 + step)
    assert list(progress([1, 2], "reading", total=2)) == [1, 2]
    text = stream.getvalue()
    if kind is Terminal:
        assert "4/10" in text
        assert "10/10" in text
        assert "loss 5.5" in text
        assert "reading" in text
    else:
        assert text == ""
