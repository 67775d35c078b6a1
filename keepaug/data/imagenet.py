"""ImageNet's images: crop and flip of the CutMix paper's released code, from file to uint8 tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from keepaug.data.reading import read_image, read_part

_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_ATTEMPTS = 10


class ResizedCrop(NamedTuple):
    """A part of an image in pixels, to be resized to a square, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def draw_resized_crop(height: int, width: int, seed: int) -> ResizedCrop:
    """Torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` as one draw, in their distribution.

    Args:
        height: of the image.
        width: of the image.
        seed: decides the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    flip, *uniform = torch.rand(1 + 4 * _ATTEMPTS, generator=generator, dtype=torch.float64).tolist()
    mirrored = flip < 0.5
    low, high = (math.log(ratio) for ratio in _RATIO)
    for attempt in range(_ATTEMPTS):
        size, shape, down, across = uniform[4 * attempt : 4 * attempt + 4]
        area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * size)
        ratio = math.exp(low + (high - low) * shape)
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return ResizedCrop(int(down * (height - h + 1)), int(across * (width - w + 1)), h, w, mirrored)
    h, w = height, width  # no attempt fitted a very long image: its centre
    if width / height < _RATIO[0]:
        h = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        w = round(height * _RATIO[1])
    return ResizedCrop((height - h) // 2, (width - w) // 2, h, w, mirrored)


def read_train(path: Path, seed: int, *, size: int = 224) -> Tensor:
    """(3, size, size) uint8: random resized crop and flip of the image in a file, decided by `seed`.

    Decoded at the scale that the crop needs and resized once, with antialiasing, by torch's kernel.
    """
    drawn: list[ResizedCrop] = []

    def choose(height: int, width: int) -> tuple[int, int, int, int]:
        drawn.append(draw_resized_crop(height, width, seed))
        return drawn[0][:4]

    part = torch.tensor(read_part(path, choose, detail=(2 * size, 2 * size))).permute(2, 0, 1)
    resized = F.resize(part, [size, size], antialias=True)
    return resized.flip(2) if drawn[0].mirrored else resized


def read_eval(path: Path, seed: int = 0, *, size: int = 224) -> Tensor:
    """(3, size, size) uint8: shorter side to `size` * 256 / 224, then a centre crop; `seed` is unused."""
    del seed
    image = F.resize(read_image(path), [round(size * 256 / 224)])
    return F.pil_to_tensor(F.center_crop(image, [size, size]))
