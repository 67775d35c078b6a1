"""One recorder of runs: what it claims, refuses, restores, and never loses or saves."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from keepaug.runs import checkpoint, files
from keepaug.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from keepaug.runs.command import exit_code, settings_help
from keepaug.runs.config import ConfigError, load_config, option
from keepaug.runs.errors import EXIT_STOPPED, NonFiniteLossError, StopRequestedError
from keepaug.runs.recorder import Recorder


@dataclass
class Settings:
    seed: int = 0
    lr: float = option(0.1)
    tau: float = option(0.6, used_by=("keep",))
    keep: bool = False
    device: str = option("cpu", bookkeeping=True)
    precision: str = option("float32", precision=True)

    def users(self) -> set[str]:
        return {"keep"} if self.keep else set()


DATA = {"name": "d", "sizes": {"train": 3}, "checksum": "abc"}


def claimed(
    folder: Path, settings: Settings | None = None, *, resume: bool = False, **change: Any
) -> Recorder:
    recorder = Recorder(folder, settings or Settings(), kind="classify", tensorboard=False)
    facts = {"name": "n", "dataset": DATA, "synthetic": False, "shortened": False, **change}
    try:
        recorder.state = recorder.claim(resume, **facts)  # type: ignore[attr-defined]
    except BaseException:
        recorder.close()
        raise
    return recorder


def begun(folder: Path, **parts: Any) -> None:
    """A run of two steps."""
    with claimed(folder, **parts) as recorder:
        recorder.log(1, {"loss": 3.0})
        recorder.save(1)
        recorder.log(2, {"loss": 2.0})
        recorder.save(2, more=5)


def lines(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("wanted", [True, False])
def test_settings_say_whether_tensorboard_gets_the_figures(wanted: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    @dataclass
    class Said(Settings):
        tensorboard: bool = option(wanted, bookkeeping=True)

    with Recorder(tmp_path, Said(), kind="classify") as recorder:
        recorder.claim(False, name="n", dataset=DATA, synthetic=False, shortened=False)
        recorder.log(1, {"loss": 3.0})
    assert any(tmp_path.rglob("events.*")) == wanted


def test_parts_come_back_and_metrics_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    network, history, hits = nn.Linear(2, 2), [1.0], torch.ones(2)
    begun(tmp_path, model=network, history=history, hits=hits)
    with claimed(tmp_path, resume=True) as recorder:  # logged after the checkpoint, and cut short
        recorder.log(2, {"val": 1.0})
        recorder.log(3, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    again, later, other = nn.Linear(2, 2), [], torch.zeros(2)
    with claimed(tmp_path, resume=True, model=again, history=later, hits=other) as recorder:
        assert (recorder.state["step"], recorder.state["more"]) == (2, 5)
        assert lines(tmp_path) == [1, 2]
    assert torch.equal(again.weight, network.weight)
    assert later == history
    assert torch.equal(other, hits)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text, ""),
        (lambda text: text + '{"step": 3, "lo', ""),
        (lambda text: text.replace("3.0", "2.0"), "not those that this run wrote"),
        (lambda text: text.replace('"step": 1', '"step": 2'), "not those that this run wrote"),
        (lambda text: text[5:], "1 of its 2 lines are lost"),
        (lambda text: "", "2 of its 2 lines are lost"),
    ],
)
def test_lines_that_the_run_did_not_write_are_told_of(
    damage: Callable[[str], str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(damage(path.read_text()))
    claimed(tmp_path, resume=True).close()
    out = capsys.readouterr().out
    assert said in out if said else not out


def test_an_engine_keeps_what_its_metrics_are_beside_its_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_it() -> Recorder:
        recorder = Recorder(
            tmp_path,
            Settings(),
            kind="detection",
            tensorboard=False,
            has_run=lambda folder: (folder / "m").exists(),
        )
        recorder.claim(True, name="n", dataset=DATA, synthetic=False, shortened=False)
        return recorder

    with open_it() as recorder:
        recorder.log(1, {"loss": 3.0})
        (tmp_path / "m").touch()
        recorder.clock.keep()
        recorder.log(2, {"loss": 2.0})
    for text, note in (("loss", ""), ("lost", "not those that this run wrote")):
        path = tmp_path / "metrics.jsonl"
        path.write_text(path.read_text().replace("loss", text))
        about = (tmp_path / "run.json").read_text()
        with open_it():
            out = capsys.readouterr().out
            assert note in out if note else not out
        (tmp_path / "run.json").write_text(about)
    (tmp_path / "run.json").write_text(about.replace("metrics_lines", "others"))
    open_it().close()


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        (Settings(lr=0.5), {}, r"lr \(was 0.1, is 0.5\)"),
        (Settings(precision="bf16"), {}, "precision"),
        (Settings(), {"dataset": {**DATA, "checksum": "xyz"}}, "the data"),
        (Settings(), {"dataset": {**DATA, "sizes": {"train": 4}}}, "4 train"),
        (Settings(), {"started_from": {"file": "b.pth", "sha256": "b", "provenance": {}}}, "began with"),
    ],
)
def test_a_continuation_changes_nothing_that_makes_the_run(
    settings: Settings, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    origin = {"file": "a.pth", "sha256": "a", "provenance": {}}
    begun(tmp_path, started_from=origin)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=said):
        claimed(tmp_path, settings, resume=True, **{"started_from": origin, **change})
    assert (tmp_path / "metrics.jsonl").read_text() == before
    with claimed(tmp_path, Settings(device="cuda", tau=0.1), resume=True, started_from=origin) as recorder:
        assert recorder.state["step"] == 2  # bookkeeping, and a setting that nothing uses


@pytest.mark.parametrize("error", [KeyError("no method of that name"), TypeError("x"), AttributeError("x")])
def test_settings_that_nothing_can_read_are_one_sentence(error: Exception, tmp_path: Path) -> None:
    begun(tmp_path)

    def fails(before: object) -> list[str]:
        raise error

    with (
        Recorder(tmp_path, Settings(), kind="classify", tensorboard=False, changed=fails) as recorder,
        pytest.raises(ConfigError, match=rf"config\.yaml is damaged \({type(error).__name__}"),
    ):
        recorder.claim(True, name="n", dataset=DATA, synthetic=False, shortened=False)


def test_a_folder_is_one_runs(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already"):
        claimed(tmp_path)
    with (
        pytest.raises(ConfigError, match=r"another kind \(classify\)"),
        Recorder(tmp_path, Settings(), kind="reid", tensorboard=False) as other,
    ):
        other.claim(True, name="n", dataset=DATA, synthetic=False, shortened=False)
    with (
        claimed(tmp_path, resume=True),
        pytest.raises(ConfigError, match="in use by another run"),
    ):
        Recorder(tmp_path, Settings(), kind="classify")


@pytest.mark.parametrize("part", [nn.Linear(2, 2), [1.0], torch.ones(2)])
def test_a_checkpoint_without_the_content_of_a_part_is_damaged(part: object, tmp_path: Path) -> None:
    begun(tmp_path, part=None)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: its part does not fit .*damaged"):
        claimed(tmp_path, resume=True, part=part)


def test_a_run_is_not_mixed_with_its_data(tmp_path: Path) -> None:
    with (
        Recorder(tmp_path, Settings(), kind="classify", tensorboard=False) as recorder,
        pytest.raises(ConfigError, match="is the folder of the data: choose another"),
    ):
        recorder.claim(
            False, name="n", dataset=DATA, synthetic=False, shortened=False, root=f"{tmp_path}/x/.."
        )


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_at_any_moment_of_saving_leaves_a_run(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each of the two renames: there is a run, it resumes, nothing else is accepted or
    lost.
    """

    class Killed(BaseException):
        pass

    begun(tmp_path)
    real, seen = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if "checkpoint" not in str(target):
            return real(self, target)
        seen.append(target)
        if len(seen) == moment // 2 + 1 and moment % 2 == 0:
            raise Killed
        result = real(self, target)
        if len(seen) == moment // 2 + 1:
            raise Killed
        return result

    with monkeypatch.context() as patch, claimed(tmp_path, resume=True) as recorder:
        recorder.log(3, {"loss": 1.0})
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            recorder.save(3)
    assert has_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already"):
        claimed(tmp_path)
    with pytest.raises(ConfigError, match="lr"):
        claimed(tmp_path, Settings(lr=0.7), resume=True)
    with claimed(tmp_path, resume=True) as recorder:
        step = recorder.state["step"]
        assert step == (3 if moment == 3 else 2)
        assert lines(tmp_path) == list(range(1, step + 1))
    assert not list(tmp_path.glob(".*.partial"))


def test_what_an_earlier_version_left_between_its_renames_is_a_run(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint.pt.new")
    with pytest.raises(ConfigError, match="holds a run already"):
        claimed(tmp_path)
    with claimed(tmp_path, resume=True) as recorder:
        assert recorder.state["step"] == 2


def test_a_run_says_which_revisions_made_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("aaa", "bbb", "bbb"):
        monkeypatch.setattr("keepaug.runs.recorder.revision", lambda one=one: one)
        with claimed(tmp_path, resume=True) as recorder:
            recorder.save(2)
            recorder.finish({"accuracy": 1.0})
    assert capsys.readouterr().out.count("note: begun by revision aaa, going on with bbb") == 1
    assert json.loads((tmp_path / "result.json").read_text())["revisions"] == ["aaa", "bbb"]


def test_no_number_that_is_none_is_saved(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    with claimed(tmp_path, model=network, optimizer=optimizer) as recorder:
        recorder.save(1)
        whole = (tmp_path / "checkpoint.pt").read_bytes()
        with torch.no_grad():
            network.weight[0, 0] = torch.nan
        with pytest.raises(
            NonFiniteLossError, match=r"model\.weight is no longer finite.*last good checkpoint"
        ):
            recorder.save(2)
        network.weight.data.zero_()
        optimizer.state[network.weight]["momentum_buffer"] = torch.full((2, 2), torch.inf)
        with pytest.raises(NonFiniteLossError, match="optimizer"):
            recorder.save(2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_after_the_step_and_the_next_at_once(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def act() -> int:
        with claimed(tmp_path) as recorder:
            for step in range(1, 9):
                if step == 3:
                    os.kill(os.getpid(), number)
                    assert signal.getsignal(number) == before  # the next one stops at once
                recorder.stop_if_asked(step, lambda step=step: recorder.save(step))
        return 0

    assert exit_code(act) == EXIT_STOPPED == 75
    assert f"stopped by {number.name} after step 3" in capsys.readouterr().err
    assert load_checkpoint(tmp_path)["step"] == 3
    assert signal.getsignal(number) == before


def test_an_unused_setting_that_was_given_is_an_error() -> None:
    with pytest.raises(ConfigError, match="tau is for keep"):
        load_config(Settings, None, ["tau=0.1"])
    assert load_config(Settings, None, ["tau=0.1", "keep=true"]).tau == 0.1


def test_a_full_disk_is_said_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`torch.save` says "inline_container"; the file before stays, and no half of a new one."""
    save_checkpoint(tmp_path, {"step": 1})

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def act() -> int:
        files.write_atomic(
            tmp_path / "checkpoint.pt",
            lambda file: files._write(lambda inner: torch.save({}, inner), Full(file)),
        )
        return 0

    assert exit_code(act) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert load_checkpoint(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("_base_: 3", "must be the name of a file"),
        ("_base_: [a]", "must be the name of a file"),
        ("a: &x\n  b: *x", "not valid YAML"),
        ("[" * 2000 + "]" * 2000, "not valid YAML"),
        ("- a", "expected keys and values"),
        ("lr: {a: 1}", "lr must be of type float"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_config_of_another_structure_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(Settings, path)


@pytest.mark.parametrize("text", ["#a", "a: b", "yes", "${oc.env:HOME}", "1e3", "[x", "~", "null", "a=b"])
def test_text_is_taken_as_it_stands(text: str, tmp_path: Path) -> None:
    assert load_config(Settings, None, [f"device={text}"]).device == text
    path = tmp_path / "c.yaml"
    path.write_text(f"device: {json.dumps(text)}")
    assert load_config(Settings, path).device == text


def test_stop_requested_is_no_mistake() -> None:
    assert not issubclass(StopRequestedError, ValueError | OSError)


def test_help_says_who_uses_a_setting() -> None:
    lines = settings_help(Settings).splitlines()
    assert lines[lines.index("used by keep:") + 1].startswith("  tau=0.6")
    assert lines.index("  lr=0.1") < lines.index("used by keep:")
    assert "those with * may change on resume" in lines[0]
    assert lines.index("* device=cpu") < lines.index("used by keep:")
    assert [line for line in lines if line.startswith("* ")] == ["* device=cpu"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_result_without_checkpoints_is_not_overwritten(resume: bool, tmp_path: Path) -> None:
    begun(tmp_path)
    with claimed(tmp_path, resume=True) as recorder:
        recorder.finish({"accuracy": 1.0})
    for path in tmp_path.glob("checkpoint*"):
        path.unlink()
    before = {name: (tmp_path / name).read_bytes() for name in ("result.json", "metrics.jsonl")}
    with pytest.raises(ConfigError, match="whose checkpoints are gone"):
        claimed(tmp_path, Settings(lr=0.5), resume=resume)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_closed_pipe_is_no_success() -> None:
    act = (
        "import sys; from keepaug.runs.command import exit_code\ndef act():\n while True: print('x' * 999)\n"
    )
    command = [sys.executable, "-c", act + "sys.exit(exit_code(act))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.close()
    assert process.returncode == 141


def test_a_file_is_no_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for path in (tmp_path / "f", tmp_path / "f" / "run"):
        for dry in (False, True):
            with pytest.raises(ConfigError, match=r"f is a file, and .* must be a run's folder"):
                Recorder(path, Settings(), kind="classify", dry=dry)
