"""The plain augmentations on batches: what KeepAugment is measured against.

Each has the call shape of its Keep counterpart, so that they can be exchanged; the saliency is accepted and
ignored. Every image of a batch gets its own region, grid or share.
"""

from keepaug.baselines.consistency import (
    ConsistentLabels,
    consistent_cross_entropy,
    jensen_shannon,
    three_views,
)
from keepaug.baselines.cutting import FILLS, Cutout, RandomErasing
from keepaug.baselines.grid_mask import GridMask, Grids
from keepaug.baselines.hidden import HiddenMix, ManifoldMixup, mix_hidden_features
from keepaug.baselines.mixing import AttentiveCutMix, CutMix, MixedLabels, Mixup, mixed_cross_entropy

__all__ = [
    "FILLS", "AttentiveCutMix", "ConsistentLabels", "CutMix", "Cutout", "GridMask", "Grids", "HiddenMix",
    "ManifoldMixup", "MixedLabels", "Mixup", "RandomErasing", "consistent_cross_entropy", "jensen_shannon",
    "mix_hidden_features", "mixed_cross_entropy", "three_views",
]  # fmt: skip
