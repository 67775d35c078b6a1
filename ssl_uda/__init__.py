"""Semi-supervised adapter: UDA and FixMatch, with RandAugment or KeepRandAugment."""

from typing import TYPE_CHECKING

from keepaug.lazy import lazily
from ssl_uda.algorithms import ALGORITHMS
from ssl_uda.config import UdaConfig

if TYPE_CHECKING:
    from ssl_uda.loop import train
else:
    __getattr__ = lazily(__name__, "ssl_uda.loop", "train")

__all__ = ["ALGORITHMS", "UdaConfig", "train"]
