"""Commands of README and pages are executed as they stand there, on drawn data, shortened to a step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_documents import ROOT, _commands
from torchvision.models import resnet18

from keepaug.__main__ import main
from keepaug.data.synthetic import write_classification, write_detection
from keepaug.data.synthetic_reid import write_reid

SHORTER = {
    "train-classifier": ["--shrink"],
    "train-uda": ["--shrink"],
    "train-reid": ["--shrink"],
    "train-detector": ["--shrink", "--engine", "torchvision"],
    "audit": ["--limit-images", "6", "--sweep", "0"],
}
# What each page's commands find in their folder, by what they call it. Other names of the page are nobody's.
CLASSES, OBJECTS, PEOPLE = "classes", "objects", "people"
RUNS = {
    "README": {"photos": "classes/val", "runs/r18/weights.pt": "weights.pt"},
    "classification": {
        "FOLDER": CLASSES,
        "cat.jpg": "image.jpg",
        "resnet50.pth": "resnet18.pth",
        "runs/own": "run",
    },
    "few-labels": {"PHOTOS": CLASSES},
    "re-identification": {
        "MARKET": PEOPLE,
        "FOLDER": "people/query",
    },
    "detection": {
        "train.json": "objects/annotations/instances_train2017.json",
        "val.json": "objects/annotations/instances_val2017.json",
        "photos": "objects/all",
        "runs/r50/weights.pt": "weights.pt",
    },
    "conversion": {"weights.pt": "weights.pt", "model_final.pth": "backbone.pth"},
    "commands": {},
}
# Their data is too large or their time too long: parsed by test_documents.
LEFT_OUT = {
    "my_networks:lite0",
    "--slurm",
    "--shrink",
    "root=IMAGENET",
    "root=CIFAR",
    "root=COCO",
    "COCO",
    "root=Market-1501-v15.09.15",
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn data of each kind, and networks."""
    root = tmp_path_factory.mktemp("documents")
    write_classification(root / CLASSES, num_train=40, num_val=12, num_classes=3, size=(32, 32))
    write_detection(root / OBJECTS, num_train=4, num_val=4, num_classes=3)
    (root / OBJECTS / "all").mkdir()
    for path in [*(root / OBJECTS).rglob("*.jpg"), *(root / OBJECTS).rglob("*.png")]:
        shutil.copy(path, root / OBJECTS / "all")
    write_reid(root / PEOPLE)
    torch.save(resnet18().state_dict(), root / "resnet18.pth")
    Image.effect_noise((64, 48), 60).convert("RGB").save(root / "image.jpg")
    small = [
        "--config",
        "classify/laptop",
        f"root={root / CLASSES}",
        "--shrink",
        "--output",
        str(root / "run"),
    ]
    assert main(["train-classifier", *small]) == 0
    shutil.copy(root / "run" / "weights.pt", root / "weights.pt")
    weights = ["--weights", str(root / "weights.pt"), "--output", str(root / "backbone.pth")]
    assert main(["convert", *weights]) == 0
    return root


def _words(page: str) -> list[list[str]]:
    path = ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md"
    found = [words for words, copied in _commands(path) if copied and words[0] == "keepaug"]
    return [words[1:] for words in found if not LEFT_OUT & set(words)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNS)
def test_commands_run(
    page: str,
    things: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, source in RUNS[page].items():
        if (things / source).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).symlink_to(things / source)
    (tmp_path / "my_transforms.py").write_text(
        "from torchvision.transforms import v2\ntrain = v2.RandomErasing(1.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEEPAUG_CACHE", str(tmp_path / "cache"))
    if page == "re-identification":
        pytest.importorskip("torchreid", reason="torchreid is not installed")
        base = ["--config", "reid/laptop", f"root={things / PEOPLE}", "--shrink", "--output", "runs/x"]
        assert main(["train-reid", *base]) == 0
    commands = _words(page)
    assert commands
    for name, *given in commands:
        code = main([name, *given, *SHORTER.get(name, [])])
        assert code == 0, (name, given, capsys.readouterr().err)
