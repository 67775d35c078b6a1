"""What every algorithm is given and what it gives back."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:  # settings are checked without torch
    from torch import Tensor

    from keepaug.runs.distributed import Distributed
    from ssl_uda.config import UdaConfig


class Outputs(NamedTuple):
    """Logits of one step's images, those of this process.

    Attributes:
        labelled: (B, classes).
        clean: (N, classes) of the weakly augmented unlabelled images; N is 0 where the algorithm uses none.
        strong: (N, classes) of the same images, strongly augmented.
    """

    labelled: Tensor
    clean: Tensor
    strong: Tensor


@dataclass(frozen=True)
class LossParts:
    """The loss and what it is made of, for one process's images.

    Attributes:
        total: what is differentiated; the mean over the processes is minimised.
        figures: detached 0-d tensors by name, means over this process's images.
    """

    total: Tensor
    figures: dict[str, Tensor]


Loss: TypeAlias = "Callable[[Outputs, Tensor, UdaConfig, int, Distributed | None], LossParts]"


@dataclass(frozen=True)
class Algorithm:
    """What makes one algorithm another.

    Attributes:
        function: "module:function", imported when it is used.
        unlabelled: whether it uses the unlabelled images.
    """

    function: str
    unlabelled: bool = True

    @property
    def loss(self) -> Loss:
        """Of the outputs, the labels (B,), the settings, the step and the processes."""
        found: Loss = pkgutil.resolve_name(self.function)
        return found
