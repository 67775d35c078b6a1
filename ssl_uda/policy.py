"""UDA's strong augmentation of a batch: own operations for each image, each computed once for all its images.

The recipe (google-research/uda, `image/randaugment`): two operations, drawn independently out of fifteen,
each with a magnitude of 1 to 9 and applied with probability 0.5. It runs PIL on RGBA images, one by one. Here
the images of a batch are grouped by the operation they drew, and the results are PIL's, bit for bit: the same
fixed-point geometry, the same rounding, and the same fate of the pixels that come in from outside, which are
transparent at first, become the mean colour if they stay so, and black where an operation drops it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from keepaug.transfer import to_device
from ssl_uda.choices import POLICIES

MAX_LEVEL = 10
_HIDDEN_COLOUR = (125, 122, 113)  # of the recipe's Cutout operation


class Draws(NamedTuple):
    """What is done to each of N images in each of K turns; on the CPU.

    Attributes:
        operation: (N, K) int64, position in `OPERATIONS`; -1 leaves the image as it is.
        level: (N, K) int64, magnitude.
        applied: (N, K) bool.
        negative: (N, K) bool, the direction of geometric operations.
        centre: (N, K, 2) float64 in [0, 1), where Cutout is.
    """

    operation: Tensor
    level: Tensor
    applied: Tensor
    negative: Tensor
    centre: Tensor

    @property
    def changes(self) -> Tensor:
        """(N,) bool, images that at least one operation is done to."""
        return (self.applied & (self.operation >= 0)).any(dim=1)

    def rows(self, part: slice | Tensor) -> Draws:
        """The draws of some of the images."""
        return Draws(*(values[part] for values in self))


def draw_policy(
    num: int,
    *,
    policy: str = "uda",
    num_ops: int = 2,
    levels: tuple[int, int] = (1, 9),
    p: float = 0.5,
    generator: torch.Generator | None = None,
) -> Draws:
    """Independent draws for each image.

    Args:
        num: number of images N.
        policy: name in `POLICIES`, whose operations are equally probable.
        num_ops: turns K; 2 in the recipe.
        levels: smallest and largest magnitude, within [0, 10]; 1 to 9 in the recipe.
        p: probability of each operation; 0.5 in the recipe.
        generator: CPU generator.

    Raises:
        ValueError: levels or p out of range, unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    low, high = levels
    if not 0 <= low <= high <= MAX_LEVEL:
        raise ValueError(f"levels must be (low, high) with 0 <= low <= high <= {MAX_LEVEL}, got {levels}")
    if not 0 <= p <= 1 or num_ops < 1:
        raise ValueError(f"p must be in [0, 1] and num_ops 1 or more, got p={p}, num_ops={num_ops}")
    shape = (num, num_ops)
    return Draws(
        _OPERATIONS_OF[policy][torch.randint(len(_OPERATIONS_OF[policy]), shape, generator=generator)],
        torch.randint(low, high + 1, shape, generator=generator),
        torch.rand(shape, generator=generator) < p,
        torch.rand(shape, generator=generator) < 0.5,
        torch.rand((*shape, 2), generator=generator, dtype=torch.float64),
    )


def apply_policy(images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """The augmented images, and which of their pixels hold nothing.

    Args:
        images: (N, 3, H, W) uint8, on any device; not written to.
        draws: of N images.

    Returns:
        (N, 3, H, W) uint8, and (N, H, W) bool: pixels from outside the image or under the Cutout operation,
        which the recipe sets to the mean colour (0 after normalisation).

    Raises:
        ValueError: not uint8 RGB images, or draws for another number of images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 (N, 3, H, W) images, got {images.dtype} {tuple(images.shape)}")
    if len(draws.operation) != len(images):
        raise ValueError(f"got draws for {len(draws.operation)} images and {len(images)} images")
    images = images.clone(memory_format=torch.contiguous_format)
    blank = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
    for turn in range(draws.operation.shape[1]):
        operation = draws.operation[:, turn]
        for number, name in enumerate(OPERATIONS):
            rows = ((operation == number) & draws.applied[:, turn]).nonzero()[:, 0]
            if not len(rows):
                continue
            group = _Group(*(values[rows, turn] for values in draws[1:]))
            place = to_device(rows, images.device)
            images[place], blank[place] = _APPLY[name](images[place], blank[place], group)
    return images, blank


class _Group(NamedTuple):
    """Draws of the images that have one operation in common."""

    level: Tensor
    applied: Tensor
    negative: Tensor
    centre: Tensor


Operation = Callable[[Tensor, Tensor, _Group], tuple[Tensor, Tensor]]


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return to_device(values, images.device).view(-1, 1, 1, 1)


def _scaled(group: _Group, maximum: int) -> Tensor:
    """`int(level * maximum / 10)`."""
    return group.level * maximum // MAX_LEVEL


# Operations on the colours that drop the transparency, as `convert("RGB")` does.


def _auto_contrast(images: Tensor, blank: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    low = images.amin(dim=(2, 3), keepdim=True).double()
    high = images.amax(dim=(2, 3), keepdim=True).double()
    scale = torch.full_like(high, 255.0) / (high - low)  # 255.0 would multiply by the rounded reciprocal
    stretched = (images.double() * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images), torch.zeros_like(blank)


def _equalize(images: Tensor, blank: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    values = images.flatten(2).long()
    histogram = values.new_zeros(*values.shape[:2], 256)
    histogram.scatter_add_(2, values, torch.ones_like(values))
    last = histogram.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - last) // 255
    before = histogram.cumsum(dim=2) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    levelled = table.gather(2, values).to(torch.uint8)
    result = torch.where(step > 0, levelled, images.flatten(2)).view(images.shape)
    return result, torch.zeros_like(blank)


def _posterize(images: Tensor, blank: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    unit = _per_image(2 ** (4 + _scaled(group, 4)), images)  # 4 - level bits are kept
    return (images // unit * unit).to(torch.uint8), torch.zeros_like(blank)


def _solarize(images: Tensor, blank: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    threshold = _per_image(256 - _scaled(group, 256), images)
    return torch.where(images < threshold, images, 255 - images), torch.zeros_like(blank)


# PIL's enhancers: a blend with a degenerate image, in float32 and rounded down; transparency stays.


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.int().unbind(dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def _blend(degenerate: Tensor, images: Tensor, group: _Group) -> Tensor:
    strength = _per_image((group.level.double() * 1.8 / MAX_LEVEL + 0.1).float(), images)
    change = (images.int() - degenerate.int()).float()
    return (degenerate.float() + strength * change).clamp(0, 255).to(torch.uint8)


def _contrast(images: Tensor, blank: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    grey = _grey(images)
    pixels = grey[0].numel()
    mean = (2 * grey.sum(dim=(1, 2, 3), keepdim=True) + pixels) // (2 * pixels)
    return _blend(mean, images, group), blank


def _sharpness(images: Tensor, blank: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    whole = images.int()
    rows = whole[:, :, :-2] + whole[:, :, 1:-1] + whole[:, :, 2:]
    around = rows[:, :, :, :-2] + rows[:, :, :, 1:-1] + rows[:, :, :, 2:]
    smooth = whole.clone()  # PIL leaves the border as it is
    smooth[:, :, 1:-1, 1:-1] = (2 * (around + 4 * whole[:, :, 1:-1, 1:-1]) + 13) // 26
    return _blend(smooth, images, group), blank


# Geometry: PIL's nearest neighbour in 16.16 fixed point; from outside come transparent pixels.


def _fixed(value: float) -> int:
    return math.floor(value * 65536.0 + 0.5)


@lru_cache(maxsize=1024)
def _affine(name: str, level: int, negative: bool, height: int, width: int) -> tuple[int, ...]:
    """Source of output pixel (0, 0), and its steps: x, per column, per row; y, per column, per row."""
    sign = -1 if negative else 1
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name in ("ShearX", "ShearY"):
        shear = sign * (float(level) * 0.3 / MAX_LEVEL)
        b, d = (shear, 0.0) if name == "ShearX" else (0.0, shear)
    elif name in ("TranslateX", "TranslateY"):
        shift = float(sign * (level * 10 // MAX_LEVEL))
        c, f = (shift, 0.0) if name == "TranslateX" else (0.0, shift)
    else:
        angle = -math.radians(sign * (level * 30 // MAX_LEVEL) % 360.0)
        a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
        d, e = round(-math.sin(angle), 15), round(math.cos(angle), 15)
        middle_x, middle_y = width / 2.0, height / 2.0
        c = a * -middle_x + b * -middle_y + middle_x
        f = d * -middle_x + e * -middle_y + middle_y
    x, y = _fixed(c + a * 0.5 + b * 0.5), _fixed(f + d * 0.5 + e * 0.5)
    return x, _fixed(a), _fixed(b), y, _fixed(d), _fixed(e)


def _geometry(name: str) -> Operation:
    def apply(images: Tensor, blank: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
        num, _, height, width = images.shape
        steps = [
            _affine(name, level, negative, height, width)
            for level, negative in zip(group.level.tolist(), group.negative.tolist(), strict=True)
        ]
        x, x_column, x_row, y, y_column, y_row = (
            to_device(torch.tensor(steps), images.device).T.reshape(6, num, 1, 1).unbind()
        )
        rows = torch.arange(height, device=images.device)[:, None]
        columns = torch.arange(width, device=images.device)
        from_x = (x + columns * x_column + rows * x_row) >> 16
        from_y = (y + columns * y_column + rows * y_row) >> 16
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        source = (from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)).flatten(1)
        moved = images.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).view(images.shape)
        empty = blank.flatten(1).gather(1, source).view(blank.shape)
        return moved * inside[:, None], empty | ~inside

    return apply


def _cutout(images: Tensor, blank: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    height, width = images.shape[2:]
    centre = to_device((group.centre * torch.tensor([height, width])).long(), images.device)
    half = to_device(_scaled(group, 20) // 2, images.device)[:, None]
    rows = torch.arange(height, device=images.device) - centre[:, :1]
    columns = torch.arange(width, device=images.device) - centre[:, 1:]
    hidden = ((rows >= -half) & (rows < half))[:, :, None] & ((columns >= -half) & (columns < half))[:, None]
    colour = to_device(torch.tensor(_HIDDEN_COLOUR, dtype=images.dtype), images.device).view(1, 3, 1, 1)
    return torch.where(hidden[:, None], colour, images), blank | hidden


_APPLY: dict[str, Operation] = {
    "Invert": lambda images, blank, _: (255 - images, torch.zeros_like(blank)),
    "Cutout": _cutout,
    "Sharpness": _sharpness,
    "AutoContrast": _auto_contrast,
    "Posterize": _posterize,
    "ShearX": _geometry("ShearX"),
    "TranslateX": _geometry("TranslateX"),
    "TranslateY": _geometry("TranslateY"),
    "ShearY": _geometry("ShearY"),
    "Rotate": _geometry("Rotate"),
    "Equalize": _equalize,
    "Contrast": _contrast,
    "Color": lambda images, blank, group: (_blend(_grey(images), images, group), blank),
    "Solarize": _solarize,
    "Brightness": lambda images, blank, group: (_blend(images.new_zeros(1, 1, 1, 1), images, group), blank),
}
OPERATIONS = tuple(_APPLY)
"""The recipe's fifteen operations, in its order."""
_OPERATIONS_OF = {
    "uda": torch.arange(len(OPERATIONS)),
    # Identity (-1) instead of Invert and Cutout: google-research/fixmatch, `libml/augment.py`
    "fixmatch": torch.tensor(
        [-1, *(number for number, name in enumerate(OPERATIONS) if name not in ("Invert", "Cutout"))]
    ),
}
"""Which operations each of `POLICIES` draws from."""
