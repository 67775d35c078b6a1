"""KeepAugment: augmentation that keeps the important regions of an image untouched.

Example:
    >>> heat = saliency_map(model, images, labels, scale=0.5)
    >>> loss = F.cross_entropy(model(keep(images, heat)), labels)
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from keepaug._api import *  # noqa: F403
    from keepaug._api import __all__ as __all__
else:
    from keepaug.lazy import lazily

    __getattr__ = lazily(__name__, "keepaug._api")
