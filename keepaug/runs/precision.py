"""How numbers are computed where the settings leave it open."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from keepaug.runs.errors import ConfigError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bf16")
PRECISION_HELP = (
    "auto: what the folder's run began with; otherwise $KEEPAUG_PRECISION, or bf16 on a processor that "
    "computes in it (AMX, AVX512-BF16; half the time of a step), float32 elsewhere"
)
VARIABLE = "KEEPAUG_PRECISION"
Settings = TypeVar("Settings")


def fast_bf16() -> str:
    """The processor's instructions for bfloat16: "AMX", "AVX512-BF16" or ""."""
    import torch

    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "AMX" if able.get("amx_bf16") else "AVX512-BF16" if able.get("avx512_bf16") else ""


def with_precision(settings: Settings, folder: Path, device: torch.device) -> Settings:
    """The settings with `precision=auto` replaced by what it means here.

    Args:
        settings: a dataclass with `precision`.
        folder: of the run; one that was begun there keeps its precision.
        device: where it computes; on a GPU auto is float32.

    Raises:
        ConfigError: the environment variable is no precision.
    """
    if settings.precision != "auto":  # type: ignore[attr-defined]
        return settings
    chosen = _begun_with(folder) or os.environ.get(VARIABLE) or "auto"
    if chosen not in PRECISIONS:
        raise ConfigError(f"${VARIABLE} is {chosen!r}; allowed: {', '.join(PRECISIONS)}")
    if chosen == "auto":
        chosen = "bf16" if device.type == "cpu" and fast_bf16() else "float32"
    return dataclasses.replace(settings, precision=chosen)  # type: ignore[type-var]


def _begun_with(folder: Path) -> str | None:
    from keepaug.runs.shapes import read_yaml

    path = Path(folder) / "config.yaml"
    before = read_yaml(path).get("precision") if path.is_file() else None
    if before is not None and before not in PRECISIONS:
        raise ConfigError(f"{path}: precision is {before!r:.80}; allowed: {', '.join(PRECISIONS)}")
    return before
