"""Slow references, written from the paper's text with nested loops."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn


def saliency(model: nn.Module, image: Tensor, label: int | None) -> Tensor:
    """|gradient of the label's logit|, maximum over channels, for one image alone (section 3)."""
    model.eval()
    pixels = image[None].clone().requires_grad_(True)
    logits = model(pixels)[0]
    target = logits.max() if label is None else logits[label]
    (gradient,) = torch.autograd.grad(target, pixels)
    height, width = image.shape[1:]
    heat = torch.zeros(height, width)
    for i in range(height):
        for j in range(width):
            heat[i, j] = max(abs(float(gradient[0, c, i, j])) for c in range(image.shape[0]))
    return heat


def candidates(
    shape: tuple[int, int], size: tuple[int, int], placement: str
) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of all candidate regions."""
    (height, width), (h, w) = shape, size
    if placement == "inside":
        return [(t, left, h, w) for t in range(height - h + 1) for left in range(width - w + 1)]
    return [released_box((i, j), size, shape) for i in range(height) for j in range(width)]


def released_box(
    centre: tuple[int, int], size: tuple[int, int], shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of what Cutout's and CutMix's released code covers about a centre pixel.

    Half of the size, rounded down, to either side, the pixel itself being the first of the second half; what
    lies beyond the border is lost.
    """
    spans = []
    for middle, length, limit in zip(centre, size, shape, strict=True):
        half = length // 2
        covered = [place for place in range(middle - half, middle + half) if 0 <= place < limit]
        spans.append((covered[0] if covered else middle, len(covered)))
    (top, height), (left, width) = spans
    return top, left, height, width


def importance(heat: Tensor, box: tuple[int, int, int, int]) -> float:
    """I(S) = sum of g over S (Eq. 1)."""
    top, left, height, width = box
    return math.fsum(float(heat[i, j]) for i in range(top, top + height) for j in range(left, left + width))


def allowed(heat: Tensor, size: tuple[int, int], tau: float, prefer: str, placement: str) -> set[int]:
    """Indices of the candidates below (above) the tau-quantile of all candidates' importance (the Remark)."""
    scores = [importance(heat, box) for box in candidates(tuple(heat.shape), size, placement)]
    number = len(scores)
    below = math.floor(tau * number + 1e-9)
    if prefer == "low":
        limit = max(1, below)
        return {i for i, s in enumerate(scores) if sum(o < s for o in scores) < limit}
    limit = max(1, number - below)
    return {i for i, s in enumerate(scores) if sum(o > s for o in scores) < limit}


def cut(image: Tensor, box: tuple[int, int, int, int], fill: float) -> Tensor:
    """(1 - M) x + M fill (Eq. 2)."""
    top, left, height, width = box
    out = image.clone()
    for i in range(top, top + height):
        for j in range(left, left + width):
            out[:, i, j] = fill
    return out


def paste(source: Tensor, target: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """M x + (1 - M) x' (Eq. 3)."""
    top, left, height, width = box
    out = target.clone()
    for i in range(top, top + height):
        for j in range(left, left + width):
            out[:, i, j] = source[:, i, j]
    return out


def google_operation(
    name: str, image: Image.Image, level: float, sign: int, fill: tuple[int, int, int], code: str
) -> Image.Image:
    """One operation of AutoAugment's and RandAugment's released code on an RGB image, with PIL's own
    functions.

    From their descriptions: a level up to 10 of shears up to 0.3, rotations up to 30 degrees, enhancers from
    0.1 to 1.9; then the code for CIFAR-10 has translations up to 10 of 32 pixels, 4 - int(0.4 level) bits and
    a threshold of 256 - int(25.6 level), the code for ImageNet 100 of 224 pixels, int(0.4 level) bits and a
    threshold of int(25.6 level). AugMix's is CIFAR-10's with a third of the side and bilinear interpolation.
    """
    width, height = image.size
    resample = Image.Resampling.BILINEAR if code == "augmix" else Image.Resampling.NEAREST
    part = {"cifar10": (10, 32), "imagenet": (100, 224), "augmix": (1, 3)}[code]

    def affine(*matrix: float) -> Image.Image:
        return image.transform(
            (width, height), Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill
        )

    match name:
        case "Identity":
            return image
        case "Invert":
            return ImageOps.invert(image)
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Posterize":
            bits = int(level * 4 / 10) if code == "imagenet" else 4 - int(level * 4 / 10)
            return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)
        case "Solarize":
            threshold = int(level * 256 / 10)
            return ImageOps.solarize(image, threshold if code == "imagenet" else 256 - threshold)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return getattr(ImageEnhance, name)(image).enhance(level * 1.8 / 10 + 0.1)
        case "ShearX":
            return affine(1, sign * level * 0.3 / 10, 0, 0, 1, 0)
        case "ShearY":
            return affine(1, 0, 0, sign * level * 0.3 / 10, 1, 0)
        case "TranslateX":
            return affine(1, 0, -sign * int(level * width * part[0] / part[1] / 10), 0, 1, 0)
        case "TranslateY":
            return affine(1, 0, 0, 0, 1, -sign * int(level * height * part[0] / part[1] / 10))
        case "Rotate":
            return image.rotate(sign * int(level * 30 / 10), resample=resample, fillcolor=fill)
    raise AssertionError(name)


def covered_share(regions: Any, boxes: Tensor) -> Tensor:
    """(N,) share of each (N, 4) top/left/height/width box that its region covers, by counting pixels."""
    shares = []
    for index, (top, left, height, width) in enumerate(boxes.tolist()):
        first, begin, rows, columns = (
            int(part[index]) for part in (regions.top, regions.left, regions.height, regions.width)
        )
        down = sum(first <= y < first + rows for y in range(top, top + height))
        across = sum(begin <= x < begin + columns for x in range(left, left + width))
        shares.append(down * across / (height * width))
    return torch.tensor(shares, dtype=torch.float64)
