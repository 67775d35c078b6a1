"""What `import keepaug` offers; imported when the first of it is used."""

from keepaug.baselines import (
    AttentiveCutMix,
    CutMix,
    Cutout,
    GridMask,
    ManifoldMixup,
    MixedLabels,
    Mixup,
    RandomErasing,
    consistent_cross_entropy,
    mix_hidden_features,
    mixed_cross_entropy,
    three_views,
)
from keepaug.keep import (
    KeepAugment,
    KeepAutoAugment,
    KeepCutMix,
    KeepCutout,
    KeepPaste,
    KeepRandAugment,
    KeepRandomErasing,
)
from keepaug.ops import cut, paste
from keepaug.policies import BatchPolicy, TwoViews, aug_mix, auto_augment, rand_augment
from keepaug.regions import Regions, random_regions, region_mask, region_scores, sample_regions
from keepaug.saliency import saliency_map

__all__ = [
    "AttentiveCutMix", "BatchPolicy", "CutMix", "Cutout", "GridMask", "KeepAugment", "KeepAutoAugment",
    "KeepCutMix", "KeepCutout", "KeepPaste", "KeepRandAugment", "KeepRandomErasing", "ManifoldMixup",
    "MixedLabels", "Mixup", "RandomErasing", "Regions", "TwoViews", "aug_mix", "auto_augment",
    "consistent_cross_entropy", "cut", "mix_hidden_features", "mixed_cross_entropy", "paste", "rand_augment",
    "random_regions", "region_mask", "region_scores", "saliency_map", "sample_regions", "three_views",
]  # fmt: skip
