"""The examples run, learn, stay short, and use the core in three lines."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "tools" / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.stem != "shapes")


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def example(name: str, needs: str):
    pytest.importorskip(needs, reason=f"{needs} is not installed (pip install {needs})")
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_short_and_three_lines(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 80
    code = text.split("from keepaug import")[1].partition("\n")[2]
    uses = [line for line in code.splitlines() if re.search(r"saliency_map\(|\bkeep\(|= Keep\w+\(", line)]
    assert len(uses) == 3
    assert [re.search(r"# \((\d)\)$", line).group(1) for line in uses] == ["1", "2", "3"]
    assert f"python tools/examples/{path.name}" in text


def test_timm_loop_learns_and_leaves_the_object_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = example("timm_loop", "timm")
    images, _ = loop.shapes().tensors
    bright = (images.mean(dim=1) > 1).sum(dim=(1, 2))
    assert 60 < bright.min() <= bright.max() < 140  # one object in each
    calls = []
    original = loop.KeepCutout.__call__

    def spy(self, images, heat, **options):
        out = original(self, images, heat, **options)
        calls.append(((out != images).any(dim=1).sum(dim=(1, 2)), heat.shape))
        return out

    monkeypatch.setattr(loop.KeepCutout, "__call__", spy)
    losses = loop.main(["--arch", "resnet10t", "--epochs", "4"])
    assert len(losses) == 16
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert all(torch.equal(cut, torch.full_like(cut, 64)) and shape == (16, 32, 32) for cut, shape in calls)


def test_timm_loop_reads_folders(tmp_path: Path) -> None:
    loop = example("timm_loop", "timm")
    from PIL import Image

    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (40, 40), colour).save(tmp_path / name / f"{number}.png")
    losses = loop.main(["--arch", "resnet10t", "--data", str(tmp_path), "--epochs", "1", "--batch-size", "2"])
    assert len(losses) == 2


@pytest.mark.filterwarnings("ignore::Warning")  # Lightning's own, about logging intervals and workers
def test_lightning_module_learns(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("lightning_module", "lightning").main(["--epochs", "6"])
    assert len(module.losses) == 24
    assert sum(module.losses[-4:]) < 0.8 * sum(module.losses[:4])
    assert module.model.bn1.num_batches_tracked == 24  # the saliency passes are not counted
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_plain_loop_learns_what_holds_for_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    losses, accuracy = example("plain_loop", "torch").main([])
    assert len(losses) == 20 * 16
    assert sum(losses[-16:]) < 0.3 * sum(losses[:16])
    assert accuracy > 0.95
    assert f"{100 * accuracy:.0f} %" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::Warning")  # of transformers, about itself
def test_hugging_faces_trainer_learns(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed (pip install accelerate)")
    losses = example("hugging_face_trainer", "transformers").main([])
    assert len(losses) == 48
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
