"""Networks for classification, and the early head."""

from keepaug.models.early import EarlyHeadNetwork
from keepaug.models.networks import ARCHITECTURES, build_network

__all__ = ["ARCHITECTURES", "EarlyHeadNetwork", "build_network"]
