"""A network in evaluation mode, then as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; the mode of each module, not of the network alone, as found outside."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
