"""The notebook runs from top to bottom, and what it shows is what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "tools" / "examples" / "first_steps.ipynb"


def _said(notebook: Any) -> str:
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    return "".join(out.get("text", "") for out in outputs)


@pytest.mark.filterwarnings("ignore::Warning")  # Jupyter's, about its kernel's transport
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in `make test`: more threads round otherwise
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    for needed in ("ipykernel", "matplotlib"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(fresh, timeout=300, kernel_name="python3", resources=place).execute()
    for said in (_said(stored), _said(fresh)):
        plain, kept = map(int, re.search(r"Cutout (\d+) %, KeepCutout (\d+) %", said).groups())
        assert kept < 0.7 * plain
        accuracies = [int(number) for number in re.findall(r"other images (\d+) %", said)]
        assert len(accuracies) == 2
        assert min(accuracies) >= 95
    kinds = [key for cell in stored.cells for out in cell.get("outputs", []) for key in out.get("data", {})]
    assert "image/png" in kinds
    assert NOTEBOOK.stat().st_size < 150_000
