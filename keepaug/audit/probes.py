"""Where each pixel of an augmented image came from, told by sending coded images through the same draw.

A code image paints each pixel dark or bright by one bit of its row's or column's number. What an augmentation does with colours (shades,
noise, even inversion) leaves the two apart, and what moves pixels moves the bits with them; two flat images, all dark and all bright,
show where nothing of the image is left and whether bright and dark have changed places. The numbers are Gray codes: neighbours differ in
one bit, so that a blurred border between two codes reads as one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["doubtful", "probe_images", "read_sources"]

DARK, BRIGHT = 40, 180  # apart under every threshold of Solarize
_LEAST = 1.5  # grey levels between dark and bright that still show the image
_LEAST_SHARE = 0.1  # of what is left of the contrast elsewhere in the image
_UNDECIDED = 0.3  # of a code's usual contrast
_MOST_UNDECIDED = 0.2  # of the pixels and codes


def _bits(length: int) -> int:
    return max(1, (length - 1).bit_length())


def probe_images(height: int, width: int) -> Tensor:
    """(P, 3, H, W) uint8: all dark, all bright, a code image for each bit of the row, then of the column."""
    dark = torch.full((height, width), DARK, dtype=torch.uint8)
    planes = [dark, torch.full_like(dark, BRIGHT)]
    for position, length in ((torch.arange(height)[:, None], height), (torch.arange(width)[None], width)):
        gray = position ^ (position >> 1)
        for bit in range(_bits(length)):
            bright = ((gray >> bit) & 1).bool().expand(height, width)
            planes.append(torch.where(bright, BRIGHT, DARK).to(torch.uint8))
    return torch.stack(planes)[:, None].repeat(1, 3, 1, 1)


def read_sources(answers: Tensor) -> Tensor:
    """The source map: which pixel of the original each pixel shows.

    Args:
        answers: (N, P, 3, H, W), what each image's draw made of `probe_images(H, W)`.

    Returns:
        (N, H, W) int64, row * W + column; -1 where nothing of the image is shown.
    """
    height, width = answers.shape[-2:]
    grey = answers.float().mean(dim=2)
    contrast = grey[:, 1] - grey[:, 0]
    middle = (grey[:, 0] + grey[:, 1]) / 2
    size = contrast.abs()
    shown = size > (size.amax(dim=(1, 2), keepdim=True) * _LEAST_SHARE).clamp(min=_LEAST)
    bits = ((grey[:, 2:] - middle[:, None]) * contrast.sign()[:, None]) > 0
    split = _bits(height)
    row, column = _number(bits[:, :split]), _number(bits[:, split:])
    shown &= (row < height) & (column < width)
    return torch.where(shown, row * width + column, -1)


def _number(bits: Tensor) -> Tensor:
    """(N, H, W) int64 from the (N, B, H, W) bits of its Gray code, the lowest first."""
    value = torch.zeros_like(bits[:, 0], dtype=torch.int64)
    above = torch.zeros_like(bits[:, 0])
    for bit in range(bits.shape[1] - 1, -1, -1):
        above = above ^ bits[:, bit]
        value |= above.long() << bit
    return value


def doubtful(answers: Tensor) -> Tensor:
    """(N,) bool: where no source map can be believed, because the augmentation blends several views of the image.

    Where two views disagree about a bit, the code is neither dark nor bright. The two finest bits are left aside: any
    interpolation blurs them.

    Args:
        answers: (N, P, 3, H, W), as for `read_sources`.
    """
    num, _, _, height, width = answers.shape
    grey = answers.float().mean(dim=2)
    split = 2 + _bits(height)
    coarse = [*range(2 + 2, split), *range(split + 2, split + _bits(width))]
    if not coarse:
        return torch.zeros(num, dtype=torch.bool)
    shown = (read_sources(answers) >= 0)[:, None]
    away = (grey[:, coarse] - (grey[:, :1] + grey[:, 1:2]) / 2) * shown
    # The two sides apart: a contrast that is taken about the image's mean moves the middle.
    usual = torch.where(away > 0, away.amax(dim=(2, 3), keepdim=True), -away.amin(dim=(2, 3), keepdim=True))
    undecided = ((away.abs() < _UNDECIDED * usual) & shown).flatten(1).sum(dim=1)
    return undecided > _MOST_UNDECIDED * shown.flatten(1).sum(dim=1) * len(coarse)
