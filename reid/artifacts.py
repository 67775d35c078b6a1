"""Pictures and exports of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from reid.config import ReidConfig
from reid.datamanager import TestSet
from reid.model import ReidNetwork
from reid.sampler import IdentityLoader
from reid.scores import Scored

__all__ = ["write_artifacts"]


def write_artifacts(
    output: Path,
    config: ReidConfig,
    network: ReidNetwork,
    tested: TestSet,
    scored: Scored,
    train: IdentityLoader | None,
    device: torch.device,
) -> dict[str, str]:
    """What the config asks for; file names by role."""
    return {}
