"""Where each pixel of an augmented image came from, told by sending coded images through the same draw.

A code image paints each pixel dark or bright by one bit of its row's or column's number, and is followed by
its
complement: whatever the augmentation does with colours, a pixel that differs between the two still shows the
    image,
and the order of the two is the bit. What moves pixels moves the bits with them. The numbers are Gray codes:
neighbours differ in one bit, so that a blurred border between two codes reads as one of them. One pair more,
of which most pixels are known to be bright first, tells whether dark and bright have changed places. A few
black and white pixels in all of them keep operations that stretch an image to its extremes from treating a
code otherwise than a photograph.
"""

from __future__ import annotations

import torch
from torch import Tensor

DARK, BRIGHT = 40, 180  # apart under every threshold of Solarize
_LEAST = 1.5  # grey levels between a code and its complement where the image is shown
_LEAST_SHARE = 0.1  # of the largest such difference
_UNDECIDED = 0.3  # of a pixel's largest difference between code and complement
_MOST_UNDECIDED = 0.2  # of the pixels and codes


def _bits(length: int) -> int:
    return max(1, (length - 1).bit_length())


def probe_images(height: int, width: int) -> Tensor:
    """(P, 3, H, W) uint8: pairs of image and complement: a known one, then bits of row and column."""
    place = torch.arange(height * width).view(height, width)
    scattered = (place * 7919 + place // width * 104729) % 40
    planes = [scattered % 4 > 0]
    for position, length in ((torch.arange(height)[:, None], height), (torch.arange(width)[None], width)):
        gray = position ^ (position >> 1)
        planes += [((gray >> bit) & 1).bool().expand(height, width) for bit in range(_bits(length))]
    pairs = torch.stack([plane for bright in planes for plane in (bright, ~bright)])
    pixels = torch.where(pairs, BRIGHT, DARK).to(torch.uint8)
    pixels = pixels.masked_fill(scattered == 0, 0).masked_fill(scattered == 21, 255)
    return pixels[:, None].repeat(1, 3, 1, 1)


def _differences(answers: Tensor) -> Tensor:
    """(N, B, H, W): code less complement, dark and bright in their original order."""
    grey = answers.sum(dim=2, dtype=torch.int16)
    difference = (grey[:, 0::2] - grey[:, 1::2]).float() / 3
    known = difference[:, 0].sign().sum(dim=(1, 2))  # three quarters of it are bright first
    return difference[:, 1:] * torch.where(known < 0, -1.0, 1.0)[:, None, None, None]


def _shown(size: Tensor) -> Tensor:
    """(N, H, W) bool: where code and complement, whose difference is (N, B, H, W), are told apart."""
    usual = size.quantile(0.5, dim=1)
    return usual > (usual.amax(dim=(1, 2), keepdim=True) * _LEAST_SHARE).clamp(min=_LEAST)


def read_sources(answers: Tensor) -> tuple[Tensor, Tensor]:
    """The source map: which pixel of the original each pixel shows.

    Args:
        answers: (N, P, 3, H, W) uint8, what each image's draw made of `probe_images(H, W)`.

    Returns:
        (N, H, W) int64, row * W + column, -1 where nothing of the image is shown and at the scattered
        extremes; and (N,) bool, whether the map can be believed: not where several views of the image are
        blended (where they disagree about a bit, code and complement look alike), or no code is left.
    """
    height, width = answers.shape[-2:]
    difference = _differences(answers)
    split = _bits(height)
    row, column = _number(difference[:, :split] > 0), _number(difference[:, split:] > 0)
    size = difference.abs()
    shown = _shown(size)
    believed = _decided(size, shown, split)
    shown &= (row < height) & (column < width)
    return torch.where(shown, row * width + column, -1), believed


def _decided(size: Tensor, shown: Tensor, split: int) -> Tensor:
    """(N,) bool from the differences' size (N, B, H, W), the rows' bits in the first `split` of B.

    The two finest bits are left aside: any interpolation blurs them.
    """
    number = shown.flatten(1).sum(dim=1)
    if not (coarse := [*range(2, split), *range(split + 2, size.shape[1])]):
        return number > 0
    undecided = (size[:, coarse] < _UNDECIDED * size.amax(dim=1, keepdim=True)) & shown[:, None]
    return (number > 0) & (undecided.flatten(1).sum(dim=1) <= _MOST_UNDECIDED * number * len(coarse))


def _number(bits: Tensor) -> Tensor:
    """(N, H, W) int64 from the (N, B, H, W) bits of its Gray code, the lowest first."""
    value = torch.zeros_like(bits[:, 0], dtype=torch.int64)
    above = torch.zeros_like(bits[:, 0])
    for bit in range(bits.shape[1] - 1, -1, -1):
        above = above ^ bits[:, bit]
        value |= above.long() << bit
    return value
