"""The command, its configs, the benchmark section, and where the results stand in the report."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from keepaug.__main__ import commands
from keepaug.commands.known import recipes
from keepaug.data.synthetic import write_classification
from keepaug.report.aggregate import aggregate
from keepaug.report.page import table_markdown, write_report
from keepaug.report.paper import fill_table, load_paper
from keepaug.runs.config import load_config, recipe_of
from keepaug.runs.result import read_results, write_result
from ssl_uda import UdaConfig
from ssl_uda.config import check, is_shortened

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart" / "uda.yaml"
CONFIGS = [*sorted((ROOT / "configs" / "ssl_uda").glob("*.yaml")), QUICKSTART]


def load_tool():
    return importlib.import_module(commands()["train-uda"].module)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_change_a_default_and_say_how_to_run(path: Path) -> None:
    settings = load_config(UdaConfig, path, ["root=x"])
    check(settings)
    defaults = load_config(UdaConfig, None, ["root=x"])
    assert (settings == defaults) == (path.stem == "cifar10_4000")  # the defaults are the recipe
    header = path.read_text().split("\n_base_")[0]
    for word in (f"keepaug train-uda --config {path.relative_to(ROOT)}", "Time:", "Expected"):
        assert word in header
    whole = path.stem in ("cifar10_4000", "cifar10_2500", "cifar10_250", "cifar10_fixmatch")
    assert not is_shortened(settings)
    if path.stem == "cifar10_fixmatch":  # section 4 and appendix B of its paper
        assert (settings.num_labels, settings.steps, settings.lr, settings.batch_size) == (
            250,
            2**20,
            0.03,
            64,
        )
        assert (settings.confidence, settings.weight, settings.unlabelled_ratio) == (0.95, 1, 7)
        assert (settings.ema, settings.weight_decay, settings.momentum, settings.nesterov) == (
            0.999,
            5e-4,
            0.9,
            True,
        )
    elif whole:
        assert settings.num_labels == int(path.stem.partition("_")[2])
        assert (settings.arch, settings.steps, settings.ema, settings.batch_size) == (
            "wrn28_2",
            500_000,
            0.9999,
            64,
        )


def test_seeds_mean_and_spread_resume_and_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool()
    root = write_classification(tmp_path / "d", num_train=60, num_val=20, num_classes=4, size=(32, 32))
    config = ["--config", str(QUICKSTART), "--shrink", f"root={root}"]
    output = ["--output", str(tmp_path / "runs"), "--seeds", "3", "4"]
    assert tool.main([*config, *output]) == 0
    printed = capsys.readouterr().out
    assert "(2 seeds)" in printed
    assert "±" in printed
    values = [json.loads((tmp_path / f"runs-seed{seed}" / "result.json").read_text()) for seed in (3, 4)]
    assert [value["seed"] for value in values] == [3, 4]
    assert len(aggregate(values)) == 1  # one row of the report
    stamp = (tmp_path / "runs-seed3" / "result.json").stat().st_mtime_ns
    (tmp_path / "runs-seed4" / "result.json").unlink()
    assert tool.main([*config, *output, "--resume"]) == 0
    assert (tmp_path / "runs-seed3" / "result.json").stat().st_mtime_ns == stamp
    assert (tmp_path / "runs-seed4" / "result.json").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == printed.splitlines()[-1]
    assert tool.main([*config, "--output", str(tmp_path / "runs-seed3")]) == 2
    assert "holds a run already" in capsys.readouterr().err
    for wrong, message in (
        (["algorthm=supervised"], "did you mean algorithm?"),
        (["method=keep_rand_augment"], "keep_rand_augment is algorithm=uda keep=true"),
        (["root=/nowhere"], "no folder /nowhere"),
        (["algorithm=mixmatch"], "algorithm is 'mixmatch'; allowed"),
        (["num_labels=999"], "num_labels is 999, there are"),
    ):
        assert tool.main([*config, "--output", str(tmp_path / "wrong"), *wrong]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        tool.main([*config, "cutout"])
    assert "must be key=value, got cutout" in capsys.readouterr().err
    assert "temperature=0.4" in tool.build_parser().format_help()


def test_table_seven_takes_whole_recipes_only_and_tells_of_its_labels(tmp_path: Path) -> None:
    base = load_config(UdaConfig, ROOT / "configs" / "ssl_uda" / "cifar10_4000.yaml", ["root=x"])
    sizes = {"train": 50_000, "val": 10_000}
    number = 0

    def ran(
        accuracy: float, *, shortened: bool = False, more: dict[str, int] | None = None, **settings: Any
    ) -> None:
        nonlocal number
        number += 1
        config = dataclasses.replace(base, **settings)
        write_result(
            tmp_path / str(number),
            kind="ssl_uda",
            name="run",
            metrics={"accuracy": accuracy, "best": accuracy, "median_last_20": accuracy},
            seed=0,
            config=dataclasses.asdict(config),
            recipe=recipe_of(config),
            dataset={"name": "cifar10", "sizes": sizes | (more or {}), "checksum": "0"},
            synthetic=False,
            shortened=shortened,
            wall_time_s=1.0,
        )

    ran(95.5, keep=True)
    ran(94.0, num_labels=2500)
    ran(91.0, num_labels=250, split="balanced")
    ran(50.0, shortened=True)
    ran(51.0, temperature=9.0, unlabelled_ratio=1)
    ran(52.0, steps=1000)
    ran(53.0, more={"unlabelled": 9})
    ran(54.0, num_labels=250, keep=True)
    table = next(table for table in load_paper() if table["id"] == 7)
    filled = fill_table(table, aggregate(read_results(tmp_path)), recipes("7"))
    ours = {name: [cell[1].partition(" [")[0] for cell in cells] for name, cells in filled.rows}
    assert ours == {
        "UDA + RandAug": ["not run", "94.0 (1 seed)", "91.0 (1 seed)"],
        "UDA + KeepRandAug": ["95.5 (1 seed)", "not run", "not run"],
    }
    near = "\n".join(filled.near)
    for apart in (
        "51.0 (1 seed), differs in temperature 9.0 instead of 0.4; unlabelled_ratio 1 instead of 7",
        "52.0 (1 seed), differs in steps 1000 instead of 500000",
        "53.0 (1 seed), differs in 9 unlabelled images instead of 0",
        "54.0 (1 seed), differs in split first instead of balanced",
    ):
        assert apart in near
    assert "most likely 250" in table_markdown(filled)
    markdown, page = write_report(tmp_path, tmp_path / "report", recipes=recipes)
    assert "uda (wrn28_2, 250 labels" in markdown.read_text()
    assert "most likely 250" in page.read_text()


def test_benchmark_section_gives_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    from keepaug.commands.benchmarks.uda_step import uda_section

    (head, rows), figures = uda_section(torch.device("cpu"), shrink=True, processor_time=True)
    assert head[2] == "share of the plain UDA step"
    assert figures["plain UDA step"] == 1
    assert {"saliency, low resolution", "saliency, full resolution"} <= {row[0] for row in rows}
    assert all(value > 0 for value in figures.values())
