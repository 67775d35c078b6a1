"""keepaug train-reid from the command line: each config shrunk, seeds, evaluation, errors."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from keepaug.__main__ import commands
from keepaug.data.synthetic_reid import write_reid

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module(commands()["train-reid"].module)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("r") / "people"
    return write_reid(root, num_train_identities=6, num_test_identities=3, cameras=2, distractors=2, junk=2)


def command(people: Path, *more: str) -> list[str]:
    return [
        "--config",
        str(ROOT / "configs" / "reid" / "laptop.yaml"),
        f"root={people}",
        "tensorboard=false",
        *more,
    ]


def test_shrunk_run_seeds_and_evaluation(
    tool, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--output", str(tmp_path / "r"), "--shrink", "--seeds", "0", "1"]
    left = ["ranked=2", "pictures=true", "features=true"]
    assert tool.main(command(people, *run, "recipe=bag_of_tricks_keep", *left)) == 0
    out = capsys.readouterr().out
    assert "mAP: " in out
    assert "important_erased_keep 0.00" in out
    assert "(2 seeds)" in out
    results = [json.loads((tmp_path / f"r-seed{seed}" / "result.json").read_text()) for seed in (0, 1)]
    assert [result["seed"] for result in results] == [0, 1]
    assert all(result["synthetic"] and result["shortened"] for result in results)
    for seed, result in enumerate(results):
        assert 15 < result["metrics"]["important_erased_random"] < 65
        files = {role: result["artifacts"][role] for role in ("ranked", "erasing", "features")}
        assert files == {"ranked": "ranked.png", "erasing": "erasing.png", "features": "features.npz"}
        assert all((tmp_path / f"r-seed{seed}" / name).is_file() for name in files.values())
    assert "of the images; every image is used within" in out
    assert tool.main(command(people, *run, "--resume")) == 0
    assert capsys.readouterr().out.count("(done before)") == 2
    given = ["rerank=true", "k1=3", "k2=2", "ranked=0"]
    assert tool.main(["--eval-only", str(tmp_path / "r-seed0"), f"root={people}", *given]) == 0
    out = capsys.readouterr().out
    assert "mAP_reranked" in out
    assert f"mAP {results[0]['metrics']['mAP']:.2f}" in out


def test_wrong_commands_say_what_is_wrong(
    tool, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--eval-only", str(tmp_path)], "no weights file"),
        (["--eval-only", str(tmp_path), "--seeds", "1"], "--seeds trains"),
        (["recipe=bag"], "recipe is 'bag'; allowed: standard"),
        (["recipe=standard", "neck=bnneck"], "recipe=standard means neck=none"),
        ([f"root={tmp_path}"], "is not in the market1501 layout"),
        (["identities=50"], "a batch needs 50 identities, and there are 6"),
        (["weights=none.pth", "identities=4"], "no weights file none.pth"),
        (["arch=resnet20"], "arch is 'resnet20'"),
    ):
        assert tool.main(command(people, "--output", str(tmp_path / "w"), *arguments)) == 2
        assert message in capsys.readouterr().err
    for arguments, message in (
        (["--seeds", "one"], "whole numbers from 0, got one"),
        (["--seeds", "1", "1"], "must differ, got 1, 1"),
        (["--eval-only", "rerank=true"], "--eval-only RUN rerank=true"),
    ):
        with pytest.raises(SystemExit) as end:
            tool.main(command(people, "--output", str(tmp_path / "w"), *arguments))
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "w" / "result.json").exists()


def test_help_lists_every_setting(tool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    text = capsys.readouterr().out
    for word in (
        "recipe=bag_of_tricks_keep",
        "saliency=low_resolution",
        "--eval-only",
        "--seeds",
        "cameras=use",
    ):
        assert word in text
