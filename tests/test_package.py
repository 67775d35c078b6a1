"""Wheel and sdist hold what commands and tests read; a command that lacks libraries names the extra."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import keepaug
from keepaug.__main__ import commands

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("keepaug", "detection", "reid", "ssl_uda")
FOLDERS = (*PACKAGES, "configs", "docs", "tests", "tools", ".ci", ".github")
NOT_OURS = {"__pycache__", ".hypothesis", ".pytest_cache"}


def _files(*folders: str) -> set[str]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if not NOT_OURS & set(path.parts)}


def _built(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    backend = pytest.importorskip("hatchling.build", reason="hatchling is not installed")
    monkeypatch.chdir(ROOT)
    return folder / getattr(backend, f"build_{kind}")(str(folder))


def test_the_sdist_holds_all_files_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern of .gitignore that meets a folder of ours would drop it."""
    with tarfile.open(_built("sdist", tmp_path, monkeypatch)) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    ours = _files(*FOLDERS) | {"Makefile", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE"}
    assert sorted(ours - packed) == []


def test_the_wheel_holds_packages_templates_and_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(_built("wheel", tmp_path, monkeypatch)) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    configs = {f"keepaug/{path}" for path in _files("configs")}
    assert sorted((configs | _files(*PACKAGES)) ^ packed) == []


def test_each_command_names_its_extra_and_the_page_says_the_same() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    said = dict(re.findall(r"^\| `([a-z][a-z-]*)` \| .* \| `(\w+)`[^|]*\|$", page, re.MULTILINE))
    declared = {name: extra for name, command in commands().items() for extra in command.extras}
    assert declared == said
    assert declared.keys() == commands().keys()
    assert set(declared.values()) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("argv", [["audit", "--help"], ["train-uda", "root=x"]])
def test_a_bare_installation_says_what_to_install(argv: list[str], tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['yaml'] = None\n"
        "from keepaug.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    extra = {"audit": "audit", "train-uda": "ssl"}[argv[0]]
    assert done.stderr.strip().endswith(f"pip install 'keepaug[{extra}]'")
    assert "Traceback" not in done.stderr


def test_other_packages_commands_name_their_own() -> None:
    from keepaug.__main__ import _remedy

    foreign = EntryPoint("mine", "mine:main", "keepaug.commands")
    assert _remedy(foreign, ImportError("No module named 'x'")) == "No module named 'x'"


def test_versions_agree() -> None:
    """Of package, change log and citation."""
    assert f"## {keepaug.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {keepaug.__version__}\n" in (ROOT / "CITATION.cff").read_text()
