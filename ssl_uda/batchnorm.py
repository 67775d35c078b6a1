"""BatchNorm over the batch of all processes, on any device: what lets N processes equal one.

torch.nn.SyncBatchNorm does not run on a CPU. This one computes mean and variance in two passes, as BatchNorm on a single
process does, so that the two agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

__all__ = ["SyncedBatchNorm2d", "synchronise"]


class _Sum(torch.autograd.Function):
    """Sum over the processes; the gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of all processes' batches; every process must hold as many images."""

    def forward(self, features: Tensor) -> Tensor:
        """Like `nn.BatchNorm2d`."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(features)
        values = features.float()
        count = values.numel() // values.shape[1] * dist.get_world_size()
        mean = _Sum.apply(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = 0.0 if self.bias is None else self.bias[:, None, None]
        return (centred * scale[:, None, None] + shift).to(features.dtype)


def synchronise(network: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d by a synchronised one with the same parameters and statistics; changes the network."""
    for name, module in network.named_children():
        if type(module) is nn.BatchNorm2d:
            synced = SyncedBatchNorm2d(module.num_features, module.eps, module.momentum, module.affine)
            for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(synced, key, getattr(module, key))
            setattr(network, name, synced.train(module.training))
        else:
            synchronise(module)
    return network
