"""`--dry-run`: what a run would be and take, from a few of its own steps, and nothing is left."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from keepaug.__main__ import main
from keepaug.data.synthetic import write_classification, write_detection
from keepaug.data.synthetic_reid import write_reid
from keepaug.runs.rehearsal import in_words, rehearse
from keepaug.runs.result import read_result


@pytest.mark.parametrize(("left", "done", "seconds"), [(1000, 4, 2.0), (2, 2, 2.0), (1, 1, 7.0), (0, 0, 0.0)])
def test_hours_are_steps_times_a_measured_step(left: int, done: int, seconds: float) -> None:
    times = itertools.chain([100.0, 107.0], itertools.count(109.0, 2.0))  # the first step takes longer
    calls: list[int] = []
    found = rehearse(lambda: calls.append(1), left, torch.device("cpu"), clock=lambda: next(times))
    assert len(calls) == done
    assert found.seconds == seconds
    assert found.hours == left * seconds / 3600
    assert found.memory > 10_000_000
    if left == 1000:
        assert "1,000 steps, 33 min per run and in all 100 min; " in found.lines(3)


def test_times_have_their_unit() -> None:
    assert [in_words(hours) for hours in (0.41 / 3600, 0.5, 40)] == ["0.41 s", "30 min", "40.0 hours"]


CASES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "train-classifier": (
        lambda to: write_classification(to, num_train=16, num_val=4, num_classes=2, size=(32, 32)),
        "arch=resnet8 stem=cifar epochs=25 batch_size=4 method=keep_cutout size=8 limit_train=16",
        "lr=fast",
    ),
    "train-uda": (
        lambda to: write_classification(to, num_train=60, num_val=20, num_classes=10, size=(32, 32)),
        "dataset=image_folder arch=wrn10_1 steps=100 batch_size=4 num_labels=20 split=balanced keep=true",
        "keep=perhaps",
    ),
    "train-reid": (
        lambda to: write_reid(to, num_train_identities=6, num_test_identities=3),
        "--config reid/laptop max_steps=100 epochs=1000 identities=2 images=2 height=64 width=32",
        "recipe=bag",
    ),
    "train-detector": (
        lambda to: write_detection(to, num_train=4, num_val=2, num_classes=4),
        "--config quickstart/detector SOLVER.MAX_ITER=100 SOLVER.STEPS=(90,) SOLVER.IMS_PER_BATCH=1",
        "SOLVER.MAX_ITER=many",
    ),
}
ENGINES = [*CASES, pytest.param("train-detector detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture
def line(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Path, str]:
    """A command, its folder, and a setting that breaks it."""
    name, _, engine = request.param.partition(" ")
    write, given, broken = CASES[name]
    output = tmp_path / "run"
    command = [name, *given.split(), f"root={write(tmp_path / 'data')}", "--output", str(output)]
    if name == "train-detector":
        command += ["--engine", engine or "torchvision"]
    return command, output, broken


@pytest.mark.parametrize("line", ENGINES, indirect=True)
def test_a_dry_run_says_all_and_leaves_nothing(
    line: tuple[list[str], Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, output, broken = line
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    seeds = ["--seeds", "1", "2"]
    assert main([*command, "--dry-run", *seeds]) == 0
    out = capsys.readouterr().out
    for wanted in ("nothing is written", "settings: ", "folder: ", "data: ", "network: ", "computing: "):
        assert wanted in out
    assert "3 steps of" in out
    assert "100 steps, " in out
    assert float(re.search(r"memory: +([\d.]+) GB", out)[1]) > 0.01  # type: ignore[index]
    assert "in all" in out
    for seed in seeds[1:]:
        assert f"{output}-seed{seed}, seed {seed}" in out
    assert sorted({*tmp_path.rglob("*")} - {tmp_path / "elsewhere"}) == before
    assert main([*command, "--dry-run", broken]) == 2
    assert main([*command, "--dry-run", "root=nowhere"]) == 2
    assert sorted({*tmp_path.rglob("*")} - {tmp_path / "elsewhere"}) == before


def contents(folder: Path) -> dict[Path, bytes]:
    """But Detectron2's log, which a process writes to until it ends."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize("line", ENGINES[3:], indirect=True)
def test_a_shrunk_detector(line: tuple[list[str], Path, str]) -> None:
    command, output, _ = line
    given = [item for item in command if not item.startswith("SOLVER.")]
    assert main([*given, "--shrink", "MODEL.ROI_HEADS.NUM_CLASSES=4"]) == 0
    result = read_result(output / "result.json")
    assert result["shortened"]
    assert result["config"]["SOLVER"]["MAX_ITER"] == 2


@pytest.mark.parametrize("line", ["train-classifier", *ENGINES[3:]], indirect=True)
def test_a_begun_run_is_refused_or_what_is_left_of_it_counts(
    line: tuple[list[str], Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, output, _ = line
    detector = command[0] == "train-detector"
    short = ["SOLVER.MAX_ITER=2", "SOLVER.STEPS=(1,)"] if detector else ["max_steps=2", "pictures=false"]
    assert main([*command, *short]) == 0
    left = contents(output)
    capsys.readouterr()
    assert main([*command, "--dry-run", *short]) == 2
    assert "holds a run already" in capsys.readouterr().err
    more = ["SOLVER.MAX_ITER=7"] if detector else short
    assert main([*command, "--dry-run", "--resume", *short, *more]) == 0
    out = capsys.readouterr().out
    assert "resuming at step 2" in out
    assert f"{5 if detector else 0} steps, " in out
    assert contents(output) == left


def test_of_several_seeds_none_begins_where_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = CASES["train-classifier"][0](tmp_path / "data")
    given = ["train-classifier", f"root={root}", "arch=resnet8", "stem=cifar", "epochs=1", "--output"]
    given += [str(tmp_path / "r"), "pictures=false", "tensorboard=false", "limit_train=8"]
    assert main([*given, "--seeds", "1"]) == 0
    assert main([*given, "--seeds", "0", "1"]) == 2
    assert "r-seed1 holds a run already" in capsys.readouterr().err
    assert not (tmp_path / "r-seed0").exists()
    assert main([*given, "--seeds", "0", "1", "--resume", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'r'}-seed1, seed 1 (done before)" in out
    assert "in all" not in out


def classifier(to: Path) -> str:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), to / "resnet18.pth")
    return f"--weights {to / 'resnet18.pth'}"


def audited(to: Path) -> str:
    write_classification(to / "d", num_train=4, num_val=80, num_classes=3, size=(32, 32))
    classifier(to)
    return (
        f"--model torchvision:resnet18 --weights {to / 'resnet18.pth'} --data {to / 'd'} --side 32 --sweep 8 "
        "--no-labels --augment cutout:8 mixup"
    )


def extracted(to: Path) -> str:
    write_reid(to / "d", num_train_identities=4, num_test_identities=2)
    given = (
        "--config reid/laptop max_steps=1 epochs=1 identities=2 images=2 height=64 width=32 pictures=false"
    )
    run = to / "run"
    assert (
        main(["train-reid", *given.split(), f"root={to / 'd'}", "--output", str(run), "tensorboard=false"])
        == 0
    )
    return f"--weights {run / 'weights.pt'} --data {to / 'd'} --batch-size 4 --device cpu"


OTHERS: dict[str, tuple[Callable[[Path], str], list[str], str]] = {
    "convert": (
        classifier,
        ["architecture   ResNet-18, 100 tensors", "DEPTH 18", "verified       in "],
        "new/out.pth",
    ),
    "extract-reid": (
        extracted,
        ["images, one pass each", " x 512 numbers, ", "3 steps of", "memory: "],
        "new/out.npz",
    ),
    "audit": (audited, ["80 of 80 images, 32 x 32", "2 augmentations", "3 steps of", "memory: "], "out"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_trains_nothing_has_a_dry_run_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, wanted, output = OTHERS[name]
    monkeypatch.setenv("KEEPAUG_CACHE", str(tmp_path / "cache"))
    command = [name, *write(tmp_path).split(), "--output", str(tmp_path / output)]
    command += ["--verify"] if name == "convert" else []
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    for text in ("dry run: nothing is written", str(tmp_path / output), *wanted):
        assert text in out, text
    assert sorted(tmp_path.rglob("*")) == before
    assert main(command) == 0
    assert (tmp_path / output).exists()
    if name == "audit":
        capsys.readouterr()
        assert main([*command, "--dry-run"]) == 0
        assert "all is known: only the page would be written" in capsys.readouterr().out
    broken = {"convert": "--weights", "extract-reid": "--data", "audit": "--data"}[name]
    assert main([*command, "--dry-run", broken, str(tmp_path / "nowhere")]) == 2


def test_an_audit_counts_its_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["audit", *audited(tmp_path).split(), "--fresh", "--dry-run", "--output", str(tmp_path / "a")]
    assert main([*command, "--limit-images", "24", "--sweep", "0"]) == 0
    out = capsys.readouterr().out
    # cutout, its Keep version and mixup on 24 images, and four passes of them as they are, in steps of 8
    assert re.search(r"trials: +3, ", out)
    assert "3 steps, " in out
    assert main([*command, "--limit-images", "12", "--sweep", "6"]) == 0
    trials = int(re.search(r"trials: +(\d+), ", out := capsys.readouterr().out)[1])  # type: ignore[index]
    passes = 4 * 12 + 3 * 12 + (trials - 3) * 6
    assert f"{-(-passes // (8 * (4 + trials)))} steps, " in out
