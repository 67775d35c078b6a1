"""Figures 2 and 3: the right runs at the right places, the paper's numbers named, what is missing said
aloud.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="figures need matplotlib")

from keepaug.__main__ import commands
from keepaug.report import figures
from keepaug.report.aggregate import aggregate
from keepaug.report.figures import draw_figure, find_points, printed_points, wanted_settings
from keepaug.runs.result import read_results, write_result

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    return importlib.import_module(commands()["figures"].module)


def result(folder: Path, accuracy: float, *, seed: int = 0, shortened: bool = False, **config) -> None:
    write_result(
        folder / f"{len(list(folder.rglob('result.json')))}",
        kind="classify",
        name="x",
        metrics={"accuracy": accuracy, "train_accuracy": accuracy - 1},
        seed=seed,
        config={"arch": "wrn28_10", "saliency": "full", "tau": 0.6, "seed": seed, **config},
        dataset={"name": "cifar10", "sizes": {}, "checksum": "x"},
        synthetic=False,
        shortened=shortened,
        wall_time_s=1,
    )


def test_runs_are_found_by_what_the_figure_is_about(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 95.0), (1, 97.0)):
        result(tmp_path, accuracy, seed=seed, method="cutout", size=16)
    result(tmp_path, 50.0, method="cutout", size=8, shortened=True)
    result(tmp_path, 60.0, method="cutout", size=12, arch="resnet18")
    result(tmp_path, 70.0, method="rand_augment", num_ops=2, magnitude=9)
    result(tmp_path, 80.0, method="rand_augment", num_ops=3, magnitude=9, dropout=0.0, cutout_after=16)
    groups = aggregate(read_results(tmp_path))
    points = find_points("2", groups, arch="wrn28_10")
    found = {(p.panel.key, p.value): p.group.values("accuracy") for p in points if p.group is not None}
    assert found == {("size", 16): [95.0, 97.0], ("magnitude", 9): [80.0]}
    short = find_points("2", groups, arch="wrn28_10", comparable=False)
    assert [p.value for p in short if p.group is not None] == [8]
    other = find_points("2", groups, arch="resnet18")
    assert [p.value for p in other if p.group is not None] == [12]


def test_tau_and_its_baseline(tmp_path: Path) -> None:
    result(tmp_path, 96.0, method="keep_cutout", size=20, tau=0.4)
    result(tmp_path, 90.0, method="keep_cutout", size=20, tau=0.4, saliency="low_resolution")
    result(tmp_path, 95.0, method="cutout", size=20)
    points = find_points("3", aggregate(read_results(tmp_path)), arch="wrn28_10")
    found = {p.value: p.group.values("accuracy") for p in points if p.group is not None}
    assert found == {0.4: [96.0], None: [95.0]}


def test_two_kinds_of_runs_at_one_point_are_not_averaged(tmp_path: Path) -> None:
    result(tmp_path, 96.0, method="cutout", size=16, lr=0.1)
    result(tmp_path, 90.0, method="cutout", size=16, lr=0.2)
    with pytest.raises(ValueError, match="several kinds of runs fit method=cutout, size=16"):
        find_points("2", aggregate(read_results(tmp_path)), arch="wrn28_10")


def test_the_papers_numbers_are_those_of_its_tables() -> None:
    panels = figures.FIGURES["2"]
    assert printed_points(panels[0].printed[0])[2] == (16, 95.6, 0.0)
    assert printed_points(panels[1].printed[0])[-1] == (24, 97.3, 0.1)
    assert all("paper, table" in printed.label for panel in panels for printed in panel.printed)


def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple] = []
    original = Axes.errorbar

    def errorbar(self, x, y, *rest, **options):
        drawn.append((options["label"], tuple(x), tuple(y)))
        return original(self, x, y, *rest, **options)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    for seed, accuracy in ((0, 95.0), (1, 97.0)):
        result(tmp_path, accuracy, seed=seed, method="cutout", size=16)
    points = find_points("2", aggregate(read_results(tmp_path)), arch="wrn28_10")
    path = draw_figure("2", points, tmp_path / "f.png", arch="wrn28_10")
    assert Image.open(path).width > 800
    assert drawn[:2] == [
        ("ours, train (augmented images) (2 seeds)", (16,), (95.0,)),
        ("ours, test (2 seeds)", (16,), (96.0,)),
    ]
    assert len([label for label, *_ in drawn if label.startswith("paper, table")]) == 2
    drawn.clear()
    draw_figure("2", points, tmp_path / "f.png", arch="wrn28_10", comparable=False)
    assert not [label for label, *_ in drawn if label.startswith("paper")]


def test_command_says_what_is_missing(tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result(tmp_path, 95.0, method="cutout", size=16)
    assert tool.main(["2", str(tmp_path), "--output", str(tmp_path / "f.png")]) == 0
    out = capsys.readouterr().out
    assert "not run: method=cutout size=20" in out
    assert "size=16" not in out
    assert tool.main(["3", str(tmp_path), "--dry-run", "root=CIFAR", "--seeds", "0", "1"]) == 0
    *lines, hint = capsys.readouterr().out.splitlines()
    assert hint == "# hours and memory of one of them: its command with --dry-run"
    assert len(lines) == 2 * len(wanted_settings("3"))
    policies = ["cifar10_auto_augment.yaml" in line for line in lines]
    assert policies == ["rand_augment" in line for line in lines]
    assert sum("cifar10_wrn28_10.yaml" in line for line in lines) == len(lines) - sum(policies)
    assert all("root=CIFAR" in line for line in lines)
    assert tool.main(["2", str(tmp_path / "nothing")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_runs_what_is_missing_and_draws_it(
    tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two of figure 3's ten runs, as processes of the real command."""
    some = wanted_settings("3")[3:5]
    monkeypatch.setattr(tool, "wanted_settings", lambda number: some)
    command = ["3", str(tmp_path), "--run", "--shrink", "--output", str(tmp_path / "f.png"), "pictures=false"]
    assert tool.main(command) == 0
    out = capfd.readouterr().out
    assert out.count("not run:") == len(wanted_settings("3")) - 2
    assert (tmp_path / "f.png").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(before) == 2
    assert tool.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_two_runs_of_one_seed_are_no_point(tmp_path: Path) -> None:
    panel, _, wanted = wanted_settings("3")[0]
    assert panel.key == "tau"
    for number in range(2):
        recipe = {"arch": "wrn28_10", **wanted}
        write_result(
            tmp_path / str(number), kind="classify", name="x", metrics={"accuracy": 90.0 + number}, seed=0,
            config=recipe, dataset={"name": "cifar10", "sizes": {}, "checksum": "a"}, synthetic=False,
            shortened=False, wall_time_s=1.0,
        )  # fmt: skip
    with pytest.raises(ValueError, match="several runs of seed 0"):
        find_points("3", aggregate(read_results(tmp_path)), arch="wrn28_10")
