"""Look-ahead: weights that go back to a slow average of themselves every few steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LookAhead:
    """Zhang et al. (arXiv:1907.08610) with the decay of airbench (arXiv:2404.00498), cubic in progress.

    Every `every` steps `slow = decay * slow + (1 - decay) * current` over parameters and floating buffers,
    and the network goes on from there; after the last step it takes the slow weights.

    Args:
        model: the network (unwrapped), as it begins.
        every: steps.
        decay: per step, at the end of the training.

    Raises:
        ValueError: `every` below 1 or a decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, every: int = 5, *, decay: float = 0.95) -> None:
        if every < 1 or not 0 <= decay < 1:
            raise ValueError(f"every must be 1 or more and decay in [0, 1), got {every} and {decay}")
        self.every, self.decay = every, decay
        self._slow = {key: value.clone() for key, value in _averaged(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, total: int, *, last: bool = False) -> None:
        """After each step of the optimizer.

        Args:
            model: the network.
            step: steps done, this one too.
            total: steps of the whole training.
            last: no further step comes.
        """
        due = step % self.every == 0
        if not (due or last):
            return
        decay = self.decay**self.every * (step / total) ** 3
        for key, current in _averaged(model).items():
            slow = self._slow[key]
            if due:
                slow.lerp_(current, 1 - decay)
            current.copy_(slow)

    def state_dict(self) -> dict[str, Tensor]:
        """The slow weights."""
        return dict(self._slow)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo `state_dict`."""
        for key, value in self._slow.items():
            value.copy_(state[key])


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
