"""The page of agreement figures is the command's, and each row names a test that exists."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def agreement(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("tool_agreement", ROOT / "tools" / "agreement.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_rows_of_the_command(agreement) -> None:
    lines = [line for line in agreement.PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    assert [(one[0], one[1], one[3]) for one in cells] == [
        (row.operation, row.source, f"`tests/{row.test}`") for row in agreement.ROWS
    ]
    assert all(any(letter.isdigit() for letter in one[2]) or one[2] == "no difference" for one in cells)


def test_every_row_names_a_test(agreement) -> None:
    for row in agreement.ROWS:
        path, _, name = row.test.partition("::")
        tree = ast.parse((ROOT / "tests" / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row.test


def test_the_command_measures(agreement, capsys: pytest.CaptureFixture[str]) -> None:
    """Three of the rows; and a wrong rule shows: regions of another quantile are not those of the oracle."""
    assert agreement.main(["--only", "Cutout"]) == 0
    out = capsys.readouterr().out
    assert "3,891 of 3,891 different boxes" in out
    assert "0.316 (0.316)" in out
    original = agreement.sample_regions
    agreement.sample_regions = lambda *given, **options: original(*given, tau=0.9, **options)
    hits, total = agreement.selection().split(" regions")[0].split(" of ")
    assert int(hits) < 0.9 * int(total)
    assert agreement.main(["--only", "Cutout", "--write"]) == agreement.main(["--only", "nothing"]) == 2
