"""A finished detector is known again by the classifier that its converted backbone came from."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models import resnet18

from detection.convert import convert
from detection.sidecar import started_from
from detection.tool import origin_of
from keepaug.runs.files import sha256_of


def test_the_origin_is_what_the_result_says(tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "weights.pt")
    convert(tmp_path / "weights.pt", tmp_path / "backbone.pth")
    said = started_from(tmp_path / "backbone.pth")
    origin = Path(origin_of(str(tmp_path / "backbone.pth")))
    assert (origin.name, sha256_of(origin)) == (said["file"], said["sha256"])
    assert origin_of(str(tmp_path / "weights.pt")) == str(tmp_path / "weights.pt")
    assert origin_of("") == ""
