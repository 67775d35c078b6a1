"""What the README says exists, exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_named_files_exist() -> None:
    named = set(re.findall(r"\b(?:tools|configs)/[\w/]+\.(?:py|yaml)", TEXT))
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_example_runs() -> None:
    import torch
    from torchvision.models import resnet18

    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)
    space = {"model": resnet18(num_classes=3), "images": torch.randn(3, 3, 32, 32), "labels": torch.arange(3)}
    exec(code, space)
    assert space["loss"].requires_grad


def test_named_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake (\w+)", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
