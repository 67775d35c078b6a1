"""Semi-supervised adapter: unsupervised data augmentation (UDA) with RandAugment or KeepRandAugment."""

from ssl_uda.config import METHODS, UdaConfig
from ssl_uda.loop import train

__all__ = ["METHODS", "UdaConfig", "train"]
