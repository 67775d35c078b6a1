"""Commands of README and pages are executed as they stand there, on drawn data, shortened to a step."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_documents import PAGES, ROOT, _commands
from torchvision.models import resnet18, resnet50

from keepaug.__main__ import main
from keepaug.data.synthetic import write_classification, write_detection
from keepaug.data.synthetic_reid import write_reid

# Settings behind the command's own: fewer images and steps, a smaller network of the same kind.
SHORTER = {
    "train-classifier": ["--shrink"],
    "train-uda": ["--shrink"],
    "train-reid": ["--shrink", "arch=resnet18"],
    "train-detector": ["--shrink", "--engine", "torchvision"],
    "audit": ["--limit-images", "4", "--sweep", "0"],
    "reproduce": ["--dry-run"],
}
FIRST_CELL = ["--only", "Cutout / ResNet-18", "--seeds", "0"]  # of a table that is shrunk
SMALL = {"arch=resnet18"}
SMALL_DETECTOR = [
    "MODEL.RESNETS.DEPTH=18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS=64",
    "MODEL.ROI_HEADS.NUM_CLASSES=4",
]
# Of every page: the user's data and networks by the names that the pages give them.
CLASSES, OBJECTS, PEOPLE, MARKET = "classes", "objects", "people", "Market-1501-v15.09.15"
NAMES = {
    "CIFAR": "ten",
    "IMAGENET": "large",
    "COCO": OBJECTS,
    "instances_val2017.json": f"{OBJECTS}/annotations/instances_val2017.json",
    MARKET: PEOPLE,
    "MARKET": PEOPLE,
    "PHOTOS": CLASSES,
    "FOLDER": CLASSES,
    "photos": f"{CLASSES}/val",
    "runs/r18/weights.pt": "weights.pt",
    "cat.jpg": "image.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": "image.jpg",
    "skimage/data/coffee.png": "image.jpg",
    "resnet50.pth": "resnet18.pth",
    "r101.pth": "resnet18.pth",
    "converted.pth": "backbone.pth",
}
# Of one page, where it means something else or more.
OWN = {
    "audit": {
        "r50.pth": "resnet50.pth",
        "RUNS/none": "run",
        "RUNS/none-seed0": "lab-run",
        "docs/evidence": str(ROOT / "docs" / "evidence"),
    },
    "classification": {"runs/own": "run"},
    "conversion": {"weights.pt": "weights.pt", "model_final.pth": "backbone.pth"},
    "detection": {
        "train.json": "mine/annotations/instances_train2017.json",
        "val.json": "mine/annotations/instances_val2017.json",
        "photos": "mine/all",
    },
    "re-identification": {
        "FOLDER": f"{PEOPLE}/query",
        "runs/x": "people-run",
        PEOPLE: PEOPLE,
        "people.csv": "people.csv",
    },
    "few-labels": {"PHOTOS": "few"},
    "commands": {"runs/x": "people-run"},
}
NOT_RUN = {
    "make ": "whole jobs; .ci/run runs them",
    "keepaug benchmark": "tests/tools/test_tools.py runs it with --shrink, section by section",
}
"""Beginnings of the commands to copy that are parsed (by test_documents) and not executed here, and why."""

PROGRAMS = """
import torch
from torchvision.transforms import v2

class build(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            torch.nn.Linear(8, 1000))

    def forward(self, images):
        return self.layers(images)

def lite0():
    return build()

train = train_transform = kornia_train = v2.RandomErasing(1.0)
"""


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn data of each kind, and networks."""
    root = tmp_path_factory.mktemp("documents")
    write_classification(root / CLASSES, num_train=40, num_val=12, num_classes=3, size=(32, 32))
    write_classification(root / "ten", num_train=60, num_val=20, num_classes=10, size=(32, 32))
    write_classification(root / "large", num_train=8, num_val=4, num_classes=4, size=(56, 56))
    write_detection(root / OBJECTS, num_train=4, num_val=4, num_classes=4)
    write_detection(root / "mine", num_train=4, num_val=4, num_classes=3)
    pictures = [*(root / "mine").rglob("*.png"), *(root / "mine").rglob("*.jpg")]
    (root / "mine" / "all").mkdir()
    for path in pictures:
        shutil.copy(path, root / "mine" / "all")
    shutil.copytree(root / CLASSES, root / "few")
    shutil.copytree(root / CLASSES / "val", root / "few" / "unlabelled")
    write_reid(root / PEOPLE, num_train_identities=12, num_test_identities=6)
    (root / "people.csv").write_text("path,identity,camera,split\n" + "".join(_people(root)))
    for network in (resnet18, resnet50):
        torch.save(network().state_dict(), root / f"{network.__name__}.pth")
    Image.effect_noise((64, 48), 60).convert("RGB").save(root / "image.jpg")
    for name in ("my_networks", "my_transforms", "my_pipelines"):
        (root / f"{name}.py").write_text(PROGRAMS)
    return root


def _people(root: Path) -> Iterator[str]:
    splits = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    for folder, split in splits.items():
        for path in sorted((root / PEOPLE / folder).glob("[0-9]*.*")):
            identity, camera = path.stem.split("_")[:2]
            if identity != "0000":
                yield f"{path.relative_to(root)},person {identity},camera {camera[:2]},{split}\n"


@pytest.fixture(scope="module")
def made(things: Path) -> Path:
    """Beside them what runs leave: weights, a backbone, a run of each kind that others start from."""
    runs = {
        "small": ["train-classifier", "--config", "classify/laptop", f"root={things / CLASSES}"],
        "run": ["train-classifier", "--config", "classify/cifar10", f"root={things / 'ten'}", "arch=resnet8"],
        "lab-run": ["train-classifier", "--config", "lab/cifar10", f"root={things / 'ten'}", "method=none"],
        "people-run": ["train-reid", "--config", "reid/laptop", f"root={things / PEOPLE}"],
    }
    runs["run"] += ["method=none"]
    for name, given in runs.items():
        assert main([*given, "--shrink", "--output", str(things / name)]) == 0
    shutil.copy(things / "small" / "weights.pt", things / "weights.pt")
    weights = ["--weights", str(things / "weights.pt"), "--output", str(things / "backbone.pth")]
    assert main(["convert", *weights]) == 0
    return things


def _argv(words: list[str]) -> list[str]:
    """Of `keepaug`, in one process, shortened; of another script its name and arguments."""
    place = next(i for i, word in enumerate(words) if re.match(r"tools/|keepaug$", word))
    program, *given = words[place:]
    if program.startswith("tools/"):
        script = re.search(r'main\(\["([\w-]+)"', (ROOT / program).read_text())
        given = [script[1] if script else program, *given]
    if "--num-gpus" in given and given[0] != "reproduce":
        del given[(at := given.index("--num-gpus")) : at + 2]
    more = list(SHORTER.get(given[0], []))
    if given[0] == "reproduce" and "--shrink" in given:
        more = FIRST_CELL
    if "classify/imagenet" in given:
        more += SMALL
    if any("R_50" in word for word in given):
        more += SMALL_DETECTOR
    return [*given, *more]


def _so_on(words: list[str]) -> list[list[str]]:
    """Where the page says "and so on" behind a command, also two others."""
    sizes = ("24", "16", "8") if "RUNS/cutout-24" in words else ("24",)
    return [[word.replace("24", size) for word in words] for size in sizes]


def _script(path: str) -> Callable[[list[str]], int]:
    return importlib.import_module(Path(path).stem).main


def _copied(page: str) -> list[list[str]]:
    path = next(path for path in PAGES if path.stem == page)
    return [words for words, copied in _commands(path) if copied]


def _reason(words: list[str]) -> str | None:
    return next((why for begin, why in NOT_RUN.items() if shlex.join(words).startswith(begin)), None)


def test_what_is_parsed_alone_is_said(record_property: Callable[[str, object], None]) -> None:
    """At the end of the tests, by conftest.py; what no page says any more is to be taken from the list."""
    copied = [words for page in PAGES for words in _copied(page.stem)]
    for begin, why in NOT_RUN.items():
        found = {shlex.join(words) for words in copied if shlex.join(words).startswith(begin)}
        assert found, begin
        record_property("not run", f"{', '.join(sorted(found))}: {why}")
    parts = {shlex.join(words) for page in PAGES for words, copied in _commands(page) if not copied}
    record_property("not run", f"{len(parts)} commands or parts of them that are quoted within the text")


RUN = [page.stem for page in PAGES if any(_reason(words) is None for words in _copied(page.stem))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_commands_run(
    page: str,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, source in (NAMES | OWN.get(page, {})).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(made / source)
    monkeypatch.syspath_prepend(made)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEEPAUG_CACHE", str(tmp_path / "cache"))
    for words in _copied(page):
        for own in _so_on(words) if _reason(words) is None else []:
            name, *given = argv = _argv(own)
            code = _script(name)(given) if "/" in name else main(argv)
            allowed = {0, 1} if "--fail-above" in argv else {0}
            assert code in allowed, (argv, capsys.readouterr().err)
