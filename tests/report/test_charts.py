"""Charts for a paper: one column wide, letters of 8 points, shapes beside colours, lines in pdf and svg."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="figures need matplotlib")

from matplotlib.figure import Figure
from matplotlib.text import Text

from keepaug.__main__ import commands
from keepaug.classify import ClassifyConfig
from keepaug.report.charts import COLUMN, draw_audit, draw_pairs
from keepaug.report.pairs import Pairs
from keepaug.report.view import Section
from keepaug.runs.config import recipe_of
from keepaug.runs.result import write_result


def _audit(objects: bool = True) -> dict:
    def share(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.03, "high": mean + 0.04}

    shares = {"fidelity": share(0.9), "importance_lost": share(0.2)}
    shares["destroyed"] = share(0.1) if objects else None
    rows = [
        {"augmentation": name, "keep": keep, "title": f"Keep{title}" if keep else title, **shares}
        for name, title in (("cutout:8", "cutout of 8 pixels"), ("m:a", "a very long title of one's own"))
        for keep in (False, True)
    ]
    return {"rows": rows, "data": {"images": 40, "objects": 37}}


def _sections(number: int = 1) -> list[Section]:
    pairs = [("keep (r)", "plain (r)", Pairs((0, 1, 2), (1.0, 1.1, 1.2)))]
    pairs += [("open keep (r)", "open plain (r)", Pairs((0, 1, 2), (1.0, -1.1, 1.2)))]
    pairs += [(f"keep_{i} (r)", f"p{i} (r)", Pairs((0,), (0.5,))) for i in range(number)]
    pairs += [("a keep of a very long name " * 4, "b", Pairs((0, 1), (0.4, 0.5)))]
    rows = [[name, "d (3 val)", "drawn data"] for name in ("keep (r)", "plain (r)")]
    return [Section("x", "Detection", "AP", [], [], rows, pairs, [])]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that are written."""
    written: list[Figure] = []
    original = Figure.savefig

    def savefig(self, *args, **options):
        written.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return written


def _texts(figure: Figure) -> list[str]:
    """What is written, and that all of it is of 8 points and inside of the picture."""
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert {text.get_fontsize() for text in shown} == {8}
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.x1 <= COLUMN
    return [text.get_text().replace("\n", " ") for text in shown]


def test_the_chart_of_an_audit_has_units_numbers_and_shapes(figures: list[Figure], tmp_path: Path) -> None:
    assert Image.open(draw_audit(_audit(), tmp_path / "a.png")).width == round(COLUMN * 300)
    texts = _texts(figures[0])
    assert {"objects destroyed (%) 37 objects", "fidelity (%) 40 images", "plain", "Keep"} <= set(texts)
    assert {"Cutout of 8 pixels", "A very long title of one's own"} <= set(texts)
    lines = figures[0].axes[0].lines
    assert {line.get_marker() for line in lines} >= {"o", "s"}
    draw_audit(_audit(objects=False), tmp_path / "a.pdf")
    assert "importance lost (%) 40 images" in _texts(figures[1])


def test_the_chart_of_pairs_is_hollow_where_nothing_is_decided(figures: list[Figure], tmp_path: Path) -> None:
    draw_pairs(_sections(), tmp_path / "p.svg")
    axis = figures[0].axes[0]
    faces = [line.get_markerfacecolor() for line in axis.lines if line.get_marker() == "o"]
    assert faces == ["#0b66a8", "white", "white"]  # one pair is left out
    assert {"Detection (d, drawn data), AP", "keep minus plain", "3 pairs"} <= set(_texts(figures[0]))
    assert axis.get_xlabel() == "Keep minus plain (points), mean and 95 % interval"
    with pytest.raises(ValueError, match="no two seeds"):
        draw_pairs([], tmp_path / "none.svg")


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_vector_files_are_the_same_twice_and_hold_no_pixels(ending: str, tmp_path: Path) -> None:
    first, second = (draw_audit(_audit(), tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
    assert first == second
    assert b"<image" not in first
    assert b"/Subtype /Image" not in first
    with pytest.raises(ValueError, match="end it in"):
        draw_audit(_audit(), tmp_path / "a.docx")


def test_command_draws_both_and_refuses_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = importlib.import_module(commands()["figures"].module)
    (tmp_path / "audit.json").write_text(json.dumps(_audit()))
    output = tmp_path / "pictures" / "a.svg"
    assert tool.main(["audit", str(tmp_path), "--output", str(output)]) == 0
    assert re.search(r'width="237.6\d*pt"', output.read_text())  # 3.3 inches
    (tmp_path / "audit.json").write_text("{}")
    assert tool.main(["audit", str(tmp_path)]) == 2
    assert "is no audit.json, which keepaug audit writes" in capsys.readouterr().err
    assert tool.main(["pairs", str(tmp_path / "nothing")]) == 2
    for method, seed in (("cutout", 0), ("cutout", 1), ("keep_cutout", 0), ("keep_cutout", 1)):
        recipe = recipe_of(ClassifyConfig(method=method))
        write_result(
            tmp_path / "runs" / f"{method}{seed}", kind="classify", name="x", seed=seed, config=recipe,
            recipe=recipe, metrics={"accuracy": 50.0}, synthetic=False, shortened=False, wall_time_s=1.0,
            dataset={"name": "cifar10", "sizes": {}, "checksum": "a"},
        )  # fmt: skip
    assert tool.main(["pairs", str(tmp_path / "runs"), "--output", str(tmp_path / "p.pdf")]) == 0
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
