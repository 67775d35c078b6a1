"""What makes several processes equal one: features and maps gathered with gradients, BatchNorm over the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

__all__ = ["SharedBatchNorm", "gather_all", "gather_rows", "share_batchnorm"]


class _Gather(torch.autograd.Function):
    """Rows of all processes; backwards, the sum over the processes of the gradients of this one's rows."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.rows = len(value)
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.rows :][: ctx.rows]


class _Sum(torch.autograd.Function):
    """The sum over the processes, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def gather_all(value: Tensor) -> Tensor:
    """(N, ...) of each process to (W N, ...) in the order of ranks, with gradients; without a process group, the value itself.

    A loss of the result is the same on every process. DistributedDataParallel's mean over the processes then gives this loss's
    gradient, as the backward pass sums over them.
    """
    if not dist.is_initialized():
        return value
    gathered: Tensor = _Gather.apply(value)
    return gathered


def gather_rows(value: Tensor, total: int) -> Tensor:
    """Undo `rows[rank::world_size]`: all `total` rows in order, on every process; no gradients."""
    if not dist.is_initialized():
        return value
    world_size = dist.get_world_size()
    most = -(-total // world_size)
    padded = value.new_zeros((most, *value.shape[1:]))
    padded[: len(value)] = value
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all processes, on any backend (torch's SyncBatchNorm is for GPUs alone)."""

    def _check_input_dim(self, input: Tensor) -> None:
        return

    def forward(self, input: Tensor) -> Tensor:
        """As BatchNorm1d or BatchNorm2d."""
        if not (self.training and dist.is_initialized()):
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        dims = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        count = x.new_tensor(float(x.numel() // x.shape[1]))
        dist.all_reduce(count)
        mean = _Sum.apply(x.sum(dim=dims)) / count
        centred = x - mean.view(shape)
        variance = _Sum.apply((centred**2).sum(dim=dims)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self._update(mean, variance * count / (count - 1))
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        for statistic, value in ((self.running_mean, mean), (self.running_var, variance)):
            if statistic is not None:
                statistic.lerp_(value.to(statistic.dtype), 0.1 if self.momentum is None else self.momentum)


def share_batchnorm(module: nn.Module) -> nn.Module:
    """Replace BatchNorm1d and 2d inside by one over all processes, with the same parameters and state_dict keys."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            shared = SharedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            shared.weight, shared.bias = child.weight, child.bias
            for statistic in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(shared, statistic, getattr(child, statistic))
            setattr(module, name, shared.train(child.training))
        else:
            share_batchnorm(child)
    return module
