"""A finished detector is known again by the classifier that its converted backbone came from."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models import resnet18

from detection.convert import convert
from detection.sidecar import started_from
from detection.tool import TOOL
from keepaug.runs.files import sha256_of


def test_the_origin_is_what_the_result_says(tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "weights.pt")
    convert(tmp_path / "weights.pt", tmp_path / "backbone.pth")
    expected = {"file": "weights.pt", "sha256": sha256_of(tmp_path / "weights.pt"), "provenance": {}}

    def origin(weights: str) -> object:
        return TOOL.origin(TOOL.load(None, [f"MODEL.WEIGHTS={weights}"]))

    assert origin(str(tmp_path / "backbone.pth")) == started_from(tmp_path / "backbone.pth") == expected
    assert origin(str(tmp_path / "weights.pt")) == expected
    assert origin(str(tmp_path / "later.pth")) == {"file": "later.pth", "sha256": ""}
    assert origin("") is None
