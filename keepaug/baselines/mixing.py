"""Images mixed with others of the batch, and their labels with them: CutMix, Attentive CutMix, Mixup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug.baselines.common import (
    Draw,
    applied_to,
    beta,
    check_alpha,
    check_images,
    check_per,
    check_probability,
    permutation_of,
    regions_for,
    uniform,
)
from keepaug.ops import _like, check_labels, paste
from keepaug.regions import Regions, check_placement
from keepaug.transfer import to_device


class MixedLabels(NamedTuple):
    """Labels of mixed images: the loss is lam * loss(labels_a) + (1 - lam) * loss(labels_b).

    Attributes:
        labels_a: (N,) int64, classes of the images that were cut; (N, classes) one-hot or soft.
        labels_b: of the images the patches came from.
        lam: (N,) float32 in [0, 1], share of the pixels that are still of the image itself.
    """

    labels_a: Tensor
    labels_b: Tensor
    lam: Tensor

    def dense(self, num_classes: int) -> Tensor:
        """(N, num_classes) float32, a row of shares per image, as torchvision's CutMix, for soft losses.

        Raises:
            ValueError: one-hot or soft labels of another number of classes.
        """

        def rows(labels: Tensor) -> Tensor:
            wide = labels.ndim == 2 or labels.is_floating_point()
            return (labels if wide else F.one_hot(labels.long(), num_classes)).float().view(len(labels), -1)

        lam = self.lam[:, None]
        mixed = lam * rows(self.labels_a) + (1 - lam) * rows(self.labels_b)
        if mixed.shape[1] != num_classes:
            raise ValueError(f"the labels are of {mixed.shape[1]} classes, not {num_classes}")
        return mixed


def mixed_cross_entropy(logits: Tensor, labels: MixedLabels, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of mixed images, mean over the batch (CutMix, Eq. 1).

    Args:
        logits: (N, classes).
        labels: as CutMix and KeepCutMix return them.
        label_smoothing: in [0, 1].

    Returns:
        Scalar.

    Raises:
        ValueError: a single logit, of which the cross-entropy is always 0.
    """
    if logits.shape[1] == 1:
        raise ValueError(
            "cross-entropy needs a logit for each class, got one: take "
            "F.binary_cross_entropy_with_logits(logits, labels.dense(1))"
        )

    def each(target: Tensor) -> Tensor:
        target = target.to(logits.dtype) if target.ndim == 2 else target
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)

    lam = labels.lam.to(logits.dtype)
    return (lam * each(labels.labels_a) + (1 - lam) * each(labels.labels_b)).mean()


def partners(images: Tensor, permutation: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """(N,) int64 on the images' device: the given partners, or a random permutation."""
    if permutation is None:
        permutation = permutation_of(len(images), generator)
    return to_device(permutation, images.device)


def blend(features: Tensor, permutation: Tensor, lam: Tensor) -> Tensor:
    """Lam * features + (1 - lam) * features[permutation], lam (N,) one share per sample.

    Computed in float32 or wider, returned in the features' dtype: a share in bfloat16 would be off by 0.4 %.

    Raises:
        TypeError: features that are not floating point.
    """
    if not features.is_floating_point():
        raise TypeError(
            f"mixing needs floating point values, got {features.dtype}: normalize the images first"
        )
    wide = torch.promote_types(features.dtype, torch.float32)
    share = to_device(lam, features.device, wide).view(-1, *[1] * (features.ndim - 1))
    values = features.to(wide)
    return _like((share * values + (1 - share) * values[permutation]).to(features.dtype), features)


@dataclass(frozen=True)
class CutMix:
    """Fill one region per image with another image's of the batch, and mix the labels (Yun et al., 2019).

    Args:
        alpha: lambda ~ Beta(alpha, alpha); the region's area is 1 - lambda of the image's.
        p: probability that it is applied, per image, or per batch with `per="batch"`.
        placement: "clipped" as in the released code, "inside", or "matched", here the same as "clipped".
        per: "image": lambda and the box of each image are its own; "batch": one lambda and one box for all,
            as in the released code. The partner is a random permutation in both.
    """

    alpha: float = 1.0
    p: float = 1.0
    placement: str = "clipped"
    per: str = "image"

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_placement(self.placement)
        check_alpha(self.alpha)
        check_per(self.per)

    def sample_sizes(
        self, num: int, image_size: tuple[int, int], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sizes (N, 2) int64, >= 0; 0 where nothing is cut."""
        height, width = image_size
        draws = num if self.per == "image" else min(num, 1)
        lam = beta(self.alpha, draws, generator)
        side = torch.sqrt(1 - lam)
        sizes = torch.stack([(height * side).to(torch.int64), (width * side).to(torch.int64)], dim=1)
        if self.p < 1:
            sizes = sizes * (uniform((draws,), generator) < self.p)[:, None]
        return sizes.expand(num, 2)

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> Draw:
        """Which images a call would mix, and how large the regions are; the others need no saliency map."""
        check_images(images)
        sizes = self.sample_sizes(len(images), (images.shape[2], images.shape[3]), generator=generator)
        return Draw(sizes.clamp(min=1), (sizes > 0).all(dim=1))

    def sample(
        self,
        images: Tensor,
        saliency: Tensor | None = None,
        *,
        drawn: Draw | None = None,
        generator: torch.Generator | None = None,
    ) -> Regions:
        """The regions that a call would replace; height 0 where an image is left alone."""
        check_images(images, saliency)
        drawn = drawn or self.draw(images, generator=generator)
        whole = self.per == "batch" and len(images) > 0
        if whole:  # one box for all: the importance of a region is then its mean over the batch
            saliency = None if saliency is None else saliency.float().mean(dim=0, keepdim=True)
            drawn = drawn.first()
        regions = regions_for(
            images[:1] if whole else images,
            saliency,
            drawn.size,
            applied=drawn.applied,
            tau=getattr(self, "tau", None),  # of KeepCutMix
            placement=self.placement,
            generator=generator,
        )
        return Regions(*(part.expand(len(images)) for part in regions)) if whole else regions

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        saliency: Tensor | None = None,
        *,
        drawn: Draw | None = None,
        regions: Regions | None = None,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, MixedLabels]:
        """Mix each image with a partner.

        Args:
            images: (N, C, H, W).
            labels: (N,) integer classes, or (N, classes) one-hot or soft.
            saliency: (N, H, W) of `images`; the plain CutMix ignores it.
            drawn: what `draw` gave, for maps of the mixed images alone.
            regions: the regions to replace instead of drawn ones.
            permutation: (N,) the partners instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New images, and the labels with lambda recomputed from the replaced area.

        Raises:
            ValueError: wrong shapes.
        """
        check_labels(images, labels)
        if regions is None:
            regions = self.sample(images, saliency, drawn=drawn, generator=generator)
        permutation = partners(images, permutation, generator)
        mixed = paste(images[permutation], images, regions)
        pixels = images.shape[2] * images.shape[3]
        lam = 1 - to_device(regions.area, labels.device, torch.float32) / pixels
        return mixed, MixedLabels(labels, labels[to_device(permutation, labels.device)], lam)


@dataclass(frozen=True)
class Mixup:
    """Every image a convex combination of two, and its label too (Zhang et al., 2018).

    Args:
        alpha: lambda ~ Beta(alpha, alpha); the paper takes 0.2 on ImageNet and 1 on CIFAR-10.
        p: probability that it is applied, per image, or per batch with `per="batch"`.
        per: "image": each image has its own lambda; "batch": one for all, as in the released code. The
            partner is a random permutation in both.
    """

    alpha: float = 1.0
    p: float = 1.0
    per: str = "image"

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_alpha(self.alpha)
        check_per(self.per)

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Tensor:
        """(N,) float32, the share lambda of each image itself; 1 where nothing is mixed."""
        draws = num if self.per == "image" else min(num, 1)
        lam = beta(self.alpha, draws, generator)
        if (applied := applied_to(draws, self.p, generator)) is not None:
            lam = torch.where(applied, lam, torch.ones_like(lam))
        return lam.to(torch.float32).expand(num)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        saliency: Tensor | None = None,
        *,
        lam: Tensor | None = None,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, MixedLabels]:
        """Mix each image with a partner.

        Args:
            images: (N, C, H, W) floating.
            labels: (N,) integer classes, or (N, classes) one-hot or soft.
            saliency: ignored.
            lam: (N,) shares instead of drawn ones.
            permutation: (N,) the partners instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New images, and their labels.

        Raises:
            ValueError: wrong shapes.
            TypeError: images that are not floating point.
        """
        check_labels(images, labels)
        if lam is None:
            lam = self.sample(len(images), generator=generator)
        permutation = partners(images, permutation, generator)
        mixed = blend(images, permutation, lam)
        own, other = to_device(lam, labels.device), labels[to_device(permutation, labels.device)]
        return mixed, MixedLabels(labels, other, own)


@dataclass(frozen=True)
class AttentiveCutMix:
    """Paste another image's most attended cells at the same place (Walawalkar et al., 2020).

    The image is divided into a grid; the `num_patches` cells of the partner with the highest attention
    replace those of the image, and lambda is the share of pixels that are left. Whose attention it is, is up
    to the caller: the paper takes the 7 x 7 feature map of a pretrained ResNet-50; `saliency_map` of the
    network that is trained needs no teacher.

    Args:
        grid: cells per side, or (rows, columns); 7 in the paper, the feature map of a 224 x 224 image.
        num_patches: cells that are pasted; 6 in the paper.
        p: probability per image.
    """

    grid: int | tuple[int, int] = 7
    num_patches: int = 6
    p: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self.p)
        rows, columns = self._cells
        if rows < 1 or columns < 1 or not 1 <= self.num_patches <= rows * columns:
            raise ValueError(
                f"num_patches must be in [1, rows x columns of the grid], got {self.num_patches} and {rows} "
                f"x {columns}"
            )

    @property
    def _cells(self) -> tuple[int, int]:
        return (self.grid, self.grid) if isinstance(self.grid, int) else self.grid

    def sample(
        self, images: Tensor, attention: Tensor | None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """(N, H, W) bool: the cells of each image that would be pasted onto another."""
        check_images(images)
        rows, columns = self._cells
        height, width = images.shape[2:]
        if attention is None:
            raise ValueError(
                "Attentive CutMix needs an attention map (N, h, w): saliency_map(model, images, labels), or "
                "a feature map's mean over its channels"
            )
        if attention.ndim != 3 or len(attention) != len(images):
            raise ValueError(
                f"attention must have the shape ({len(images)}, h, w), got {tuple(attention.shape)}"
            )
        for cells, side, got in ((rows, height, attention.shape[1]), (columns, width, attention.shape[2])):
            if cells > min(side, got):
                raise ValueError(
                    f"a grid of {rows} x {columns} needs images and attention of at least that size, got "
                    f"{height} x {width} and {attention.shape[1]} x {attention.shape[2]}"
                )
        device = images.device
        scores = _cell_means(to_device(attention, device).float(), rows, columns)
        best = scores.flatten(1).argsort(dim=1, descending=True, stable=True)[:, : self.num_patches]
        chosen = torch.zeros(len(images), rows * columns, dtype=torch.bool, device=device)
        chosen = chosen.scatter(1, best, True).view(-1, rows, columns)
        return chosen[:, _cell_of(height, rows, device)][:, :, _cell_of(width, columns, device)]

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        attention: Tensor | None = None,
        *,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, MixedLabels]:
        """Paste the partner's most attended cells onto each image.

        Args:
            images: (N, C, H, W).
            labels: (N,) integer classes, or (N, classes) one-hot or soft.
            attention: (N, h, w) of `images`, no smaller than the grid: averaged over its cells.
            permutation: (N,) the partners instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New images, and the labels with lambda from the pasted area.

        Raises:
            ValueError: wrong shapes, no attention, or a grid finer than the images or the map.
        """
        check_labels(images, labels)
        mask = self.sample(images, attention, generator=generator)
        permutation = partners(images, permutation, generator)
        mask = mask[permutation]
        if (applied := applied_to(len(images), self.p, generator)) is not None:
            mask = mask & to_device(applied, mask.device)[:, None, None]
        mixed = _like(torch.where(mask[:, None], images[permutation], images), images)
        pixels = images.shape[2] * images.shape[3]
        lam = 1 - to_device(mask.flatten(1).sum(dim=1), labels.device, torch.float32) / pixels
        return mixed, MixedLabels(labels, labels[to_device(permutation, labels.device)], lam)


def _cell_of(side: int, cells: int, device: torch.device) -> Tensor:
    """(side,) int64: which of the `cells` nearly equal parts each row or column belongs to."""
    edges = torch.arange(1, cells, device=device) * side // cells
    return torch.bucketize(torch.arange(side, device=device), edges, right=True)


def _cell_means(attention: Tensor, rows: int, columns: int) -> Tensor:
    """(N, rows, columns), the mean over each cell; cells do not overlap."""

    def members(side: int, cells: int) -> Tensor:
        inside = F.one_hot(_cell_of(side, cells, attention.device), cells).T.to(attention.dtype)
        return inside / inside.sum(dim=1, keepdim=True)

    height, width = attention.shape[1:]
    return members(height, rows) @ attention @ members(width, columns).T
