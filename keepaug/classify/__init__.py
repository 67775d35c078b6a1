"""Training classifiers with KeepAugment and its baselines."""

from keepaug.classify.config import METHODS, SALIENCY, ClassifyConfig
from keepaug.classify.loop import train
from keepaug.classify.methods import build_method

__all__ = ["METHODS", "SALIENCY", "ClassifyConfig", "build_method", "train"]
