"""Semi-supervised adapter: UDA and FixMatch, with RandAugment or KeepRandAugment."""

from ssl_uda.algorithms import ALGORITHMS
from ssl_uda.config import UdaConfig
from ssl_uda.loop import train

__all__ = ["ALGORITHMS", "UdaConfig", "train"]
