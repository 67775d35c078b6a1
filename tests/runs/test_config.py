"""Typed settings: inheritance, overrides, and errors that name key, value and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keepaug.runs.config import ConfigError, load_config, option


@dataclass
class Inner:
    rate: float = option(0.1, low=0)


@dataclass
class Settings:
    epochs: int = option(3, low=1)
    method: str = option("none", choices=("none", "cutout", "keep_cutout"))
    area: list[float] = option([0.1, 0.2], low=0, high=1)
    pictures: bool = option(True)
    inner: Inner = field(default_factory=Inner)


def test_file_over_base_over_defaults_and_overrides_over_all(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("epochs: 5\nmethod: cutout\n")
    (tmp_path / "leaf.yaml").write_text("_base_: base.yaml\nmethod: keep_cutout\ninner: {rate: 0.5}\n")
    settings = load_config(Settings, tmp_path / "leaf.yaml", ["inner.rate=0.25", "area=[0.3, 0.4]"])
    assert settings == Settings(5, "keep_cutout", [0.3, 0.4], True, Inner(0.25))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=2", r"unknown key epoch; did you mean epochs\?"),
        ("inner.rat=2", r"unknown key inner\.rat; did you mean rate\?"),
        ("epochs=many", "epochs must be of type int, got 'many'"),
        ("epochs=0", "epochs is 0; allowed: 1 to inf"),
        (f"epochs={10**400}", r"epochs is 10+\.\.\.; allowed: whole numbers up to 9223372036854775807"),
        ("method=cutot", "method is 'cutot'; allowed: none, cutout, keep_cutout; did you mean cutout"),
        ("area=[0.1, [[]]]", r"area holds \[\[\]\]; allowed: single values"),
        ("area=[0.1, {a: 1}]", "area holds .*single values"),
        ("area=[0.1, 2]", r"area is \[0.1, 2.0\]; allowed: 0 to 1"),
        ("inner.rate=-1", r"inner.rate is -1.0; allowed: 0 to inf"),
        ("pictures=-1", "pictures must be true or false, got -1"),
        ("epochs", "must be key=value"),
        ("area=[1", "not a value YAML can read"),
    ],
)
def test_errors(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Settings, None, [override])


def test_missing_and_circular_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config file .*nothing\.yaml"):
        load_config(Settings, tmp_path / "nothing.yaml")
    (tmp_path / "a.yaml").write_text("_base_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_base_: a.yaml\n")
    with pytest.raises(ConfigError, match=r"circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load_config(Settings, tmp_path / "a.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(Settings, tmp_path / "bad.yaml")
