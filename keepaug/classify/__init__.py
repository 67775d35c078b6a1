"""Training classifiers with KeepAugment and its baselines."""

from typing import TYPE_CHECKING

from keepaug.classify.config import SALIENCY, ClassifyConfig
from keepaug.classify.methods import METHODS
from keepaug.lazy import lazily

if TYPE_CHECKING:
    from keepaug.classify.loop import train
else:
    __getattr__ = lazily(__name__, "keepaug.classify.loop", "train")

__all__ = ["METHODS", "SALIENCY", "ClassifyConfig", "train"]
