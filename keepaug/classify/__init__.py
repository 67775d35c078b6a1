"""Training classifiers with KeepAugment and its baselines."""

from keepaug.classify.config import SALIENCY, ClassifyConfig
from keepaug.classify.loop import train
from keepaug.classify.methods import METHODS

__all__ = ["METHODS", "SALIENCY", "ClassifyConfig", "train"]
