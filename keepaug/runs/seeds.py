"""Independent streams of randomness from one seed."""

from __future__ import annotations

import hashlib
import random

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^63) of the seed and every name; different names, independent streams."""
    digest = hashlib.sha256(repr((int(seed), *map(str, names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each purpose: `make_generator(seed, "regions")`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, python and numpy (initialisation and libraries draw from them)."""
    random.seed(derive_seed(seed, "python"))
    torch.manual_seed(derive_seed(seed, "torch"))
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(derive_seed(seed, "numpy") % 2**32)


def get_rng_state() -> dict[str, torch.Tensor]:
    """State of torch's global generators, CPU and CUDA."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Undo `get_rng_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
