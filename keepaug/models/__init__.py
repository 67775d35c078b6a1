"""Networks for classification, and the early head."""

from typing import TYPE_CHECKING

from keepaug.lazy import lazily
from keepaug.models.networks import ARCHITECTURES, build_network, check_arch

if TYPE_CHECKING:
    from keepaug.models.early import EarlyHeadNetwork
else:
    __getattr__ = lazily(__name__, "keepaug.models.early", "EarlyHeadNetwork")

__all__ = ["ARCHITECTURES", "EarlyHeadNetwork", "build_network", "check_arch"]
