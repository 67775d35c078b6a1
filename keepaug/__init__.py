"""KeepAugment: augmentation that keeps the important regions of an image untouched.

heat = saliency_map(model, images, labels, scale=0.5)
loss = F.cross_entropy(model(keep(images, heat)), labels)
"""

from keepaug.baselines import CutMix, Cutout, MixedLabels, RandomErasing, mixed_cross_entropy
from keepaug.keep import KeepCutMix, KeepCutout, KeepPaste, KeepRandomErasing
from keepaug.ops import cut, paste
from keepaug.policies import TwoViews, aug_mix, auto_augment, rand_augment
from keepaug.regions import Regions, random_regions, region_mask, region_scores, sample_regions
from keepaug.saliency import saliency_map

__all__ = [
    "CutMix",
    "Cutout",
    "KeepCutMix",
    "KeepCutout",
    "KeepPaste",
    "KeepRandomErasing",
    "MixedLabels",
    "RandomErasing",
    "Regions",
    "TwoViews",
    "aug_mix",
    "auto_augment",
    "cut",
    "mixed_cross_entropy",
    "paste",
    "rand_augment",
    "random_regions",
    "region_mask",
    "region_scores",
    "saliency_map",
    "sample_regions",
]
