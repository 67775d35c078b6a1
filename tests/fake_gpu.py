"""Run code for a GPU without one: shapes only on "cuda", real values on the CPU, and what would stall the
queue is found.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["FakeGpu", "fake_gpu"]

_VIEWS = {
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
    "view",
    "split",
    "expand",
    "permute",
    "transpose",
    "t",
    "alias",
}
_VIEWS |= {"detach", "unbind", "device", "_unsafe_view", "lift_fresh", "split_with_sizes", "as_strided"}


def _on_gpu(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.device.type == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


class FakeGpu(TorchDispatchMode):
    """What was launched, and where the host would have waited for the device.

    Attributes:
        launches: operations on the device, views left out, by name.
        waits: the innermost lines, of this project or of a test, that copy between host and device and wait
            for it.
        unsafe: those among them that copy to the host and should wait, but do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: list[str] = []
        self.unsafe: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs))
        if not any(map(_on_gpu, leaves)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self._wait(name)
        if name in ("_to_copy", "copy_"):
            self._copy(name, args, kwargs)
        if name not in _VIEWS:
            self.launches[name] += 1
        return func(*args, **kwargs)

    def _copy(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        target = kwargs.get("device") or args[0].device if name == "_to_copy" else args[0].device
        source = args[0].device if name == "_to_copy" else args[1].device
        waits = kwargs.get("non_blocking", args[2] if len(args) > 2 else False) is not True
        if source.type != torch.device(target).type and (waits or source.type == "cuda"):
            self._wait(f"copy from {source.type}")
            self.unsafe += [] if waits else self.waits[-1:]

    def _wait(self, what: str) -> None:
        ours = [
            f
            for f in traceback.extract_stack()
            if "site-packages" not in f.filename and f.filename != __file__
        ]
        self.waits.append(f"{what}: {ours[-1].filename}:{ours[-1].lineno} {ours[-1].line}")


@contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """Inside, `device="cuda"` works, for shapes; reading a value back raises and is listed in `waits`.

    Without a driver there is no backward pass and no random state of a GPU: gradients are zeros, or left out.
    """
    watch = FakeGpu()
    with (
        mock.patch("torch.autograd.grad", lambda outputs, inputs, **options: (torch.zeros_like(inputs),)),
        mock.patch.object(Tensor, "backward", return_value=None),
        mock.patch("torch.random.fork_rng", return_value=nullcontext()),
        FakeTensorMode(allow_non_fake_inputs=True),
        watch,
    ):
        yield watch
