"""GridMask: a grid of squares is deleted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from keepaug.baselines.common import check_images, check_probability, uniform
from keepaug.ops import fill_where
from keepaug.transfer import to_device


class Grids(NamedTuple):
    """One grid per image.

    Attributes:
        unit: (N,) int64, d, side of the repeated unit in pixels; 0 where an image is left alone.
        kept: (N,) int64, width of the kept lines: the deleted squares have the side unit - kept.
        top: (N,) int64 in [0, unit), the offset delta_y.
        left: (N,) int64 in [0, unit), the offset delta_x.
        angle: (N,) float64, counter-clockwise rotation about the centre in radians.
    """

    unit: Tensor
    kept: Tensor
    top: Tensor
    left: Tensor
    angle: Tensor


@dataclass(frozen=True)
class GridMask:
    """Delete a regular grid of squares from each image (Chen et al., 2020).

    Args:
        unit: smallest and largest d in pixels, both included: the side of the repeated unit. The paper takes
            96 to 224 (exclusive in its code) for ImageNet at 224 x 224.
        ratio: r: the kept lines are r d wide (rounded up, as in the released code), so that about 1 - (1 -
            r)^2 of the image is kept; 0.6 on ImageNet, 0.4 on CIFAR-10.
        rotate: the angle is a whole number of degrees in [0, rotate); 360 in the recipe, 1 for none.
        p: probability per image, 0.8 in the recipe; the paper lets it rise over the training, see `at`.
        ramp: share of the training over which the probability rises linearly from 0 to p; 0.8 in the recipe.
        fill: value, or one per channel; 0 is the mean colour of normalised images.
    """

    unit: tuple[int, int] = (24, 32)
    ratio: float = 0.4
    rotate: int = 360
    p: float = 0.8
    ramp: float = 0.8
    fill: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        check_probability(self.p)
        if len(self.unit) != 2 or not 2 <= self.unit[0] <= self.unit[1]:
            raise ValueError(f"unit must be (low, high) in pixels with 2 <= low <= high, got {self.unit}")
        if not 0 < self.ratio < 1:
            raise ValueError(
                f"ratio is a unit's kept share of its side, it must be in (0, 1), got {self.ratio}"
            )
        if not 1 <= self.rotate <= 360:
            raise ValueError(f"rotate must be in [1, 360] degrees (1: no rotation), got {self.rotate}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is a share of the training and must be in [0, 1], got {self.ramp}")

    def at(self, progress: float) -> GridMask:
        """The same at a moment of the training in [0, 1]: of probability min(1, progress / ramp) p."""
        if self.ramp == 0:
            return self
        return dataclasses.replace(self, p=self.p * min(1.0, progress / self.ramp), ramp=0.0)

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Grids:
        """The grids that a call would delete."""
        applied, unit, top, left, angle = uniform((5, num), generator)
        low, high = self.unit
        side = (low + (unit * (high - low + 1)).to(torch.int64)).clamp(max=high)
        kept = torch.ceil(side.double() * self.ratio).to(torch.int64)
        degrees = (angle * self.rotate).floor()
        return Grids(
            torch.where(applied < self.p, side, torch.zeros_like(side)),
            kept,
            (top * side).to(torch.int64),
            (left * side).to(torch.int64),
            torch.deg2rad(degrees),
        )

    def __call__(
        self,
        images: Tensor,
        saliency: Tensor | None = None,
        *,
        grids: Grids | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Delete one grid per image.

        Args:
            images: (N, C, H, W), after normalisation.
            saliency: ignored.
            grids: instead of drawn ones.
            generator: source of randomness; None is torch's global one.

        Returns:
            New tensor like `images`.

        Raises:
            ValueError: wrong shapes.
        """
        check_images(images)
        if grids is None:
            grids = self.sample(len(images), generator=generator)
        deleted = grid_mask(grids, (images.shape[2], images.shape[3]), device=images.device)[:, None]
        return fill_where(deleted, images, self.fill)


def grid_mask(grids: Grids, size: tuple[int, int], *, device: torch.device | None = None) -> Tensor:
    """(N, H, W) bool, what is deleted.

    As in the released code the grid is rotated about the image's centre; each pixel takes the nearest value.

    Args:
        grids: one per image.
        size: (height, width).
        device: of the result; None is that of the grids.
    """
    grids = Grids(*(to_device(part, device or part.device) for part in grids))
    height, width = size
    y = torch.arange(height, dtype=torch.float64, device=grids.unit.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64, device=grids.unit.device)[None] - (width - 1) / 2
    cosine, sine = torch.cos(grids.angle)[:, None, None], torch.sin(grids.angle)[:, None, None]
    # Rounded first: cos(90 degrees) is 6e-17, and a pixel must not change its cell for that.
    rows = torch.floor(((cosine * y + sine * x) + (height - 1) / 2 + 0.5).round(decimals=9)).to(torch.int64)
    columns = torch.floor(((cosine * x - sine * y) + (width - 1) / 2 + 0.5).round(decimals=9)).to(torch.int64)
    unit = grids.unit.clamp(min=1)[:, None, None]
    kept, top, left = (part[:, None, None] for part in (grids.kept, grids.top, grids.left))
    inside = ((rows - top) % unit >= kept) & ((columns - left) % unit >= kept)
    return inside & (grids.unit > 0)[:, None, None]
