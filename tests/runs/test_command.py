"""The command line that the training tools share."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from keepaug.__main__ import commands
from keepaug.runs.command import config_parser, shown, split_settings, summary
from keepaug.runs.config import ConfigError, option


@dataclass
class Settings:
    rate: float = option(0.1, low=0, help="of learning")
    kind: str = option("a", choices=("a", "b"))
    sizes: list[int] = option([1, 2])


def test_help_names_every_setting_with_its_default_and_choices() -> None:
    text = config_parser("A tool.", Settings, configs="configs/x", output="runs/NAME").format_help()
    assert "rate=0.1  of learning" in text
    assert "kind=a  a | b" in text
    assert "sizes=[1, 2]" in text


@pytest.mark.parametrize("name", ["train-classifier", "train-reid", "train-uda"])
def test_every_setting_says_what_it_means_under_its_subject(name: str) -> None:
    parser = importlib.import_module(commands()[name].module).build_parser()
    lines = parser.format_help().splitlines()
    for key in parser.settings:
        (line,) = (one for one in lines if re.match(rf"[* ] {key}=", one))
        assert "  " in line[2:], f"{key} has no help"
    headings = [line for line in lines if re.match(r"[a-z].*:$", line)]
    subjects = [line for line in headings if not line.startswith("used by")]
    assert {"data:", "training:", "computing:", "record:"} <= set(subjects)
    assert max(map(len, lines)) <= 110


def test_options_and_settings_in_any_order() -> None:
    parser = config_parser(None, Settings, configs="c", output="o")
    for line in ("--seeds 0 2 rate=0.2 --resume kind=b", "rate=0.2 kind=b --resume --seeds 0 2"):
        args = parser.parse_intermixed_args(line.split())
        assert (args.seeds, sorted(args.overrides), args.resume) == ([0, 2], ["kind=b", "rate=0.2"], True)


@pytest.mark.parametrize(
    ("seeds", "overrides", "named"), [(["x"], [], "x"), (["-1"], [], "-1"), ([], ["rate"], "rate")]
)
def test_mistakes_are_named(seeds: list[str], overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        split_settings(seeds, overrides)


def test_mean_and_sample_deviation() -> None:
    assert shown({"accuracy": 50.0, "top5": 99.126}) == "accuracy 50.00, top5 99.13"
    assert summary([{"accuracy": 1.0}, {"accuracy": 3.0}]) == "accuracy: 2.00 ± 1.41 (2 seeds)"
    assert summary([{"accuracy": 1.0}]) == "accuracy: 1.00 (1 seed)"


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".x", "/x"])
@pytest.mark.parametrize("tool", ["train-classifier", "train-uda", "train-reid"])
def test_a_name_leads_nowhere_else(
    tool: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands()[tool].load()([f"root={tmp_path}", f"name={name}"]) == 2
    assert "leave out slashes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
