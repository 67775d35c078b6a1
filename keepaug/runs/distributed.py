"""One code path for one process and for `torchrun`'s many."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Distributed", "setup"]


@dataclass(frozen=True)
class Distributed:
    """This process among the others.

    Attributes:
        rank: 0 to world_size - 1, over all machines.
        world_size: number of processes.
        local_rank: rank on this machine.
        device: where this process computes.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

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

    def close(self) -> None:
        """Leave the process group."""
        if self.active and dist.is_initialized():
            dist.destroy_process_group()


def setup(device: str = "auto") -> Distributed:
    """Read torchrun's environment, choose the device, join the process group if there are several processes.

    Args:
        device: "auto" (cuda where available), "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: a CUDA device is asked for and there is none.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if device.startswith("cuda") and not cuda:
        raise ValueError(f"device is {device}, but torch sees no CUDA device; device=cpu or device=auto")
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    chosen = torch.device(f"cuda:{local_rank}" if device == "cuda" else device)
    if chosen.type == "cuda":
        if chosen.index is not None and chosen.index >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} wants {chosen}, this machine has {torch.cuda.device_count()} GPU(s); "
                "lower torchrun's --nproc-per-node"
            )
        torch.cuda.set_device(chosen)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=world_size)
    return Distributed(rank, world_size, local_rank, chosen)
