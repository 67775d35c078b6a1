"""Networks for classification, and the early head."""

from keepaug.models.drop_resnet import schedule_drops
from keepaug.models.early import EarlyHeadNetwork
from keepaug.models.networks import ARCHITECTURES, build_network, check_arch

__all__ = [
    "ARCHITECTURES",
    "EarlyHeadNetwork",
    "build_network",
    "check_arch",
    "schedule_drops",
]
