"""One code path for one process and for `torchrun`'s many."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from keepaug.runs.errors import ConfigError


@dataclass(frozen=True)
class Distributed:
    """This process among the others.

    Attributes:
        rank: 0 to world_size - 1, over all machines.
        world_size: number of processes.
        local_rank: rank on this machine.
        device: where this process computes.
        joined: whether this object joined the process group, and leaves it; several runs share one that was
            there before: a group that is left and joined again by one process while another is still in the
            old one breaks both.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    joined: bool = True

    @property
    def is_main(self) -> bool:
        """The process that writes files."""
        return self.rank == 0

    @property
    def active(self) -> bool:
        """Whether a process group exists."""
        return self.world_size > 1

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.active:
            dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes (a new tensor)."""
        value = value.detach().clone()
        if self.active:
            dist.all_reduce(value)
        return value

    def place(self, network: nn.Module, *, sync_batchnorm: bool, channels_last: bool) -> nn.Module:
        """Move a network to the device, and wrap it for training.

        Args:
            network: is changed.
            sync_batchnorm: BatchNorm over all processes, where there are several.
            channels_last: memory format.

        Returns:
            What to train: the network, in DistributedDataParallel where there are several processes.
        """
        if sync_batchnorm and self.active:
            synchronize_batchnorm(network)
        network.to(self.device)
        if channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not self.active:
            return network
        return DistributedDataParallel(network, [self.device.index] if self.device.type == "cuda" else None)

    def close(self) -> None:
        """Leave the process group, if this object joined it."""
        if self.joined and self.active and dist.is_initialized():
            dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device that is meant, made the current one if it is a GPU.

    Args:
        device: "auto" (cuda where available), "cpu", "cuda" or "cuda:N".
        local_rank: the GPU of "cuda".

    Raises:
        ConfigError: no such device, or it is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise ConfigError(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:N")
    fix_order_if_asked()
    cuda = torch.cuda.is_available()
    if device.startswith("cuda") and not cuda:
        raise ConfigError(f"device is {device}, but torch sees no CUDA device; device=cpu or device=auto")
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    chosen = torch.device(f"cuda:{local_rank}" if device == "cuda" else device)
    if chosen.type == "cuda":
        if chosen.index is not None and chosen.index >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank} wants {chosen}, this machine has {torch.cuda.device_count()} GPU(s); "
                "lower torchrun's --nproc-per-node"
            )
        torch.cuda.set_device(chosen)
    return chosen


def setup(device: str = "auto") -> Distributed:
    """Read torchrun's environment, choose the device, join the process group if there are several processes.

    Args:
        device: as for `choose_device`.

    Raises:
        ConfigError: no such device, or it is not there.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank)
    joined = world_size > 1 and not dist.is_initialized()
    if joined:
        _end_with_parent()
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=world_size)
    return Distributed(rank, world_size, local_rank, chosen, joined)


def fix_order_if_asked() -> None:
    """With KEEPAUG_DETERMINISTIC=1, let torch add up in the same order every time, on a GPU too; slower."""
    if os.environ.get("KEEPAUG_DETERMINISTIC") == "1":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _end_with_parent() -> None:
    """Be asked to stop where torchrun itself is killed: its processes would go on, and nobody end them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


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
    """(N, ...) of each process to (W N, ...) in the order of ranks, with gradients; alone, the value itself.

    A loss of the result is the same on every process. DistributedDataParallel's mean over the processes then
    gives this loss's gradient, as the backward pass sums over them. Every process must give as many rows.
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


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all processes, on any device (torch's SyncBatchNorm is for GPUs alone).

    Mean and variance in two passes, as BatchNorm on a single process, so that the two agree to rounding. The
    processes' batches may differ in size.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        return

    def forward(self, input: Tensor) -> Tensor:
        """As BatchNorm1d or BatchNorm2d."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        dims = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        count = x.new_tensor(float(x.numel() // x.shape[1]))
        dist.all_reduce(count)
        mean = _Sum.apply(x.sum(dim=dims)) / count
        centered = x - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(dim=dims)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self._update(mean, variance * count / (count - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            return (centered * (scale * self.weight).view(shape) + self.bias.view(shape)).to(input.dtype)
        return (centered * scale.view(shape)).to(input.dtype)

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        momentum: float | Tensor | None = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the plain average of all batches
                momentum = 1 / self.num_batches_tracked.to(mean.dtype)
        for statistic, value in ((self.running_mean, mean), (self.running_var, variance)):
            if statistic is not None and momentum is not None:
                statistic.lerp_(value.to(statistic.dtype), momentum)


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """Replace BatchNorm1d and 2d inside by one over all processes, with the same parameters and keys.

    Subclasses stay as they are: what they do besides would be lost.

    Returns:
        The module, changed.
    """
    for name, child in module.named_children():
        exact = type(child) in (nn.BatchNorm1d, nn.BatchNorm2d)
        if exact and isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            shared = SynchronizedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(shared, key, getattr(child, key))
            setattr(module, name, shared.train(child.training))
        else:
            synchronize_batchnorm(child)
    return module
