"""Exponential moving average of a network's weights and BatchNorm statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["ModelEma"]


class ModelEma:
    """`average = decay * average + (1 - decay) * current`, over parameters and floating buffers.

    Args:
        model: the network (unwrapped); copied, in evaluation mode, without gradients.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step of the average; whole-number buffers (counters) are copied."""
        current = model.state_dict()
        for key, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[key].to(average.dtype), 1 - self.decay)
            else:
                average.copy_(current[key])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged network's state."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo `state_dict`."""
        self.model.load_state_dict(state)
