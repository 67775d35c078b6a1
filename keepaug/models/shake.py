"""Shake-Shake (arXiv:1705.07485), ShakeDrop (arXiv:1802.02375): other factors forwards than backwards.

Both draw from PyTorch's global random state in training, one number per image and block, and nothing in
evaluation. A loop that seeds each step therefore resumes exactly.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class _Scale(torch.autograd.Function):
    """Multiply by one tensor forwards and by another backwards; only the latter is kept."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, forwards: Tensor, backwards: Tensor) -> Tensor:
        ctx.save_for_backward(backwards)
        return features * forwards

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (backwards,) = ctx.saved_tensors
        return gradient * backwards, None, None


def scale(features: Tensor, forwards: Tensor, backwards: Tensor) -> Tensor:
    """`features * forwards`, whose gradient is that of `features * backwards`.

    Args:
        features: (N, C, H, W).
        forwards: (N, 1, 1, 1), no gradient flows to it.
        backwards: (N, 1, 1, 1).
    """
    return cast(Tensor, _Scale.apply(features, forwards.to(features.dtype), backwards.to(features.dtype)))


def _uniform(features: Tensor) -> Tensor:
    # float32 also under autocast: bfloat16 would draw one of 256 values.
    return torch.rand(features.shape[0], 1, 1, 1, device=features.device)


def shake_shake(first: Tensor, second: Tensor, *, training: bool) -> Tensor:
    """The mean of two branches with random weights per image: alpha forwards, beta backwards, both U(0, 1).

    In evaluation both weigh 0.5 ("Shake-Shake-Image", the paper's section 2; alpha, beta independent).

    Args:
        first: (N, C, H, W) output of a branch.
        second: the other's, of the same shape.
        training: draw, or 0.5.
    """
    if not training:
        return (first + second) * 0.5
    alpha, beta = _uniform(first), _uniform(first)
    return scale(first, alpha, beta) + scale(second, 1 - alpha, 1 - beta)


class ShakeDrop(nn.Module):
    """Replaces a residual branch, with probability `drop`, by itself times alpha forwards and beta backwards.

    Equation 6 of the paper: x + (b + alpha - b alpha) F(x), gradient with (b + beta - b beta), b Bernoulli(1
    - drop), alpha U(-1, 1), beta U(0, 1), per image. In evaluation 1 - drop, as alpha has the mean 0.

    Args:
        drop: probability 1 - p_l of being perturbed, in [0, 1].
    """

    def __init__(self, drop: float) -> None:
        super().__init__()
        if not 0 <= drop <= 1:
            raise ValueError(f"drop must be in [0, 1], got {drop}")
        self.drop = drop

    def forward(self, branch: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if self.drop == 0:
            return branch
        if not self.training:
            return branch * (1 - self.drop)
        kept = _uniform(branch) >= self.drop
        alpha, beta = _uniform(branch) * 2 - 1, _uniform(branch)
        return scale(branch, alpha.masked_fill(kept, 1), beta.masked_fill(kept, 1))

    def extra_repr(self) -> str:
        """Shown by print()."""
        return f"drop={self.drop:.4f}"
