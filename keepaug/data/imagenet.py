"""ImageNet's transforms: the recipe of the CutMix paper's released code."""

from __future__ import annotations

from torchvision.transforms import v2

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "eval_geometry", "train_geometry"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def train_geometry(size: int = 224) -> v2.Transform:
    """Random resized crop and flip of a PIL image; the recipe's colours are `keepaug.data.batch_transforms.draw_colours`."""
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])


def eval_geometry(size: int = 224) -> v2.Transform:
    """The shorter side to `size` * 256 / 224, then a centre crop, of a PIL image."""
    return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
