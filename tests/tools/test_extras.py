"""Each extra of pyproject.toml installs what its commands need: nothing else can be imported here."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from torchvision.models import resnet18

from keepaug.data.synthetic import write_classification, write_detection
from keepaug.data.synthetic_reid import write_reid

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN = """
import sys
from importlib.machinery import PathFinder
refused = {refused!r}
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in refused else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
from keepaug.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def installed_by(requirements: list[str]) -> set[str]:
    """Distributions that pip would install, as far as they are here."""
    found, waiting = set(), list(map(Requirement, requirements))
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), sorted(one.extras) or [""]
        if (name, *extras) in found:
            continue
        if name == "keepaug":
            waiting += [Requirement(item) for each in extras for item in extra(each)]
            continue
        try:
            needed = [Requirement(item) for item in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
        environments = [{"extra": each} for each in extras]
        waiting += [
            need for need in needed if not need.marker or any(map(need.marker.evaluate, environments))
        ]
        found.add((name, *extras))
    return {name for name, *_ in found}


def extra(name: str) -> list[str]:
    return PROJECT["optional-dependencies"][name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data, and a network in a file."""
    root = tmp_path_factory.mktemp("extras")
    write_classification(root / "classes", num_train=60, num_val=20, num_classes=10, size=(32, 32))
    write_detection(root / "objects", num_train=4, num_val=2, num_classes=4)
    write_reid(root / "people")
    torch.save(resnet18().state_dict(), root / "resnet18.pth")
    Image.effect_noise((64, 64), 60).convert("RGB").save(root / "image.png")
    return root


DETECTOR = (
    "--config-file quickstart/detector --engine torchvision --data-root objects OUTPUT_DIR {out} "
    "SOLVER.MAX_ITER 1 SOLVER.STEPS (1,)"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("classify", "train-classifier --config classify/laptop root=classes --shrink --output {out}"),
        ("classify", "configs"),
        ("convert", "convert --weights resnet18.pth --output {out}.pth --verify"),
        ("convert", "show --weights resnet18.pth --image image.png --side 64 --output {out}.png"),
        ("detection", f"train-detector {DETECTOR}"),
        ("reid", "train-reid --config reid/laptop root=people --shrink --output {out}"),
        ("ssl", "train-uda --config ssl_uda/cifar10_laptop dataset=image_folder root=classes --shrink "
                "--output {out}"),
        ("report", f"report {ROOT}/docs/evidence --output {{out}}"),
        ("report", "reproduce 9 root=a imagenet=b --seeds 0 --dry-run"),
        ("audit", "audit --model torchvision:resnet18 --weights RANDOM --data classes --augment cutout "
                  "--side 32 --limit-images 4 --sweep 0 --no-labels --output {out}"),
    ],
)  # fmt: skip
def test_an_extra_is_enough(name: str, command: str, folder: Path) -> None:
    if name == "reid":
        pytest.importorskip("torchreid")
    modules: dict[str, set[str]] = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in owners:
            modules.setdefault(canonicalize_name(owner), set()).add(module)
    wanted = installed_by([*PROJECT["dependencies"], *extra(name)])
    allowed = {module for one in wanted for module in modules.get(one, ())}
    known = {module for each in modules.values() for module in each} - {
        "keepaug", "detection", "reid", "ssl_uda", "tools", "tests", "configs",
    }  # fmt: skip
    script = RUN.format(refused=known - allowed)
    words = command.format(out=f"out-{name}").split()
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
