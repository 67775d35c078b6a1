"""Every block of docs/drop-in.md runs as it stands there, and what it trains has gradients."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

TEXT = (Path(__file__).parent.parent / "docs" / "drop-in.md").read_text()
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^#+ (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
}
NEEDS = {"Lightning": "lightning", "Accelerate": "accelerate", "Hugging Face Trainer": "transformers"}
NEEDS |= {title: "timm" for title in SECTIONS if title.startswith(("timm", "A network", "Gradient"))}
GROUPED = ("DistributedDataParallel", "FSDP")
WANTED = "Plain loop, Mixed precision, torch.compile, Gradient checkpointing, DistributedDataParallel, FSDP"
WANTED += ", Lightning, Accelerate, Hugging Face Trainer, timm"


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader's script has: a network, data, an optimizer."""
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 3)
    images, labels = dataset[:4]
    model = resnet18(num_classes=3)
    found = {"model": model, "images": images, "labels": labels, "num_classes": 3, "dataset": dataset}
    found |= {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "device": torch.device("cpu")}
    found |= {"loader": DataLoader(dataset, 4), "output_dir": str(tmp_path)}
    # Not the compiler itself, which takes minutes: what comes before it is what can fail.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    return found


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    destroy_process_group()


def test_all_the_loops_are_there() -> None:
    assert [name for name in WANTED.split(", ") if not SECTIONS.get(name)] == []


def run(title: str, space: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in SECTIONS["Drop in"] + SECTIONS[title]:
            exec(compile(block, f"docs/drop-in.md, {title}", "exec"), space)
    model = space["model"]
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
    if "trainer" not in space:
        assert bool(torch.isfinite(space["loss"]))
        assert space["loss"].requires_grad


@pytest.mark.parametrize(
    "title", sorted({t for t, blocks in SECTIONS.items() if blocks} - {*GROUPED, "Drop in"})
)
def test_runs(title: str, space: dict[str, Any]) -> None:
    if title in NEEDS:
        pytest.importorskip(NEEDS[title])
    if NEEDS.get(title) == "timm":
        timm = pytest.importorskip("timm")
        space |= {"timm": timm, "model": timm.create_model("resnet18", num_classes=3)}
    before = [p.clone() for p in space["model"].parameters()]
    run(title, space)
    if title in ("Plain loop", "Lightning", "Accelerate"):
        assert any(not torch.equal(b, p) for b, p in zip(before, space["model"].parameters(), strict=True))


@pytest.mark.parametrize("title", GROUPED)
def test_runs_distributed(title: str, space: dict[str, Any], alone: None) -> None:
    run(title, space)
