"""What the drawn datasets share: batched drawing, and folders that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def named_stream(seed: int, *names: str) -> torch.Generator:
    """An independent stream per name, the same on every machine."""
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers of the shape in [low, high)."""
    return torch.rand(tuple(shape), generator=generator) * (high - low) + low


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixel centres: y (1,H,1) and x (1,1,W)."""
    y = torch.arange(height, dtype=torch.float32).add_(0.5).view(1, height, 1)
    x = torch.arange(width, dtype=torch.float32).add_(0.5).view(1, 1, width)
    return y, x


def turned(size: tuple[int, int], centre_y: Tensor, centre_x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (N,H,W) along and across a direction, in pixels from the centre."""
    y, x = _grid(*size)
    dy, dx = y - centre_y.view(-1, 1, 1), x - centre_x.view(-1, 1, 1)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    return dx * cos + dy * sin, dy * cos - dx * sin


def blend(canvas: Tensor, alpha: Tensor, colour: Tensor) -> Tensor:
    """Lay a colour (N,3) with opacity (N,H,W) over the canvas (N,3,H,W)."""
    return torch.lerp(canvas, colour[:, :, None, None], alpha.unsqueeze(1))


def draw_backgrounds(num: int, size: tuple[int, int], *, generator: torch.Generator) -> Tensor:
    """Cluttered backgrounds without any object.

    Args:
        num: number of images.
        size: (height, width) in pixels.
        generator: the only source of randomness.

    Returns:
        (num, 3, height, width) float32 in [0, 1]: a smooth colour field, soft blobs, strokes and dots.
    """
    height, width = size
    scale = (height + width) / 2
    field = F.interpolate(
        torch.rand(num, 3, 4, 4, generator=generator), size=size, mode="bicubic", align_corners=False
    ).clamp_(0, 1)
    canvas = field * 0.6 + uniform((num, 3, 1, 1), 0.0, 0.4, generator)
    density = height * width / 64**2  # the same amount of clutter per area at every image size

    def places(margin: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        return (
            uniform((num,), -margin, height + margin, generator),
            uniform((num,), -margin, width + margin, generator),
            uniform((num,), 0.0, math.pi, generator),
        )

    for _ in range(max(2, round(3 * density))):  # blobs
        across, along = turned(size, *places(4.0))
        radius = uniform((2, num, 1, 1), 3.0, 9.0, generator)
        alpha = torch.exp(-((along / radius[0]) ** 2 + (across / radius[1]) ** 2))
        canvas = blend(canvas, alpha * 0.8, torch.rand(num, 3, generator=generator))
    for _ in range(max(2, round(3 * math.sqrt(density)))):  # strokes
        along, across = turned(size, *places())
        half = uniform((num, 1, 1), 0.6, 1.8, generator)
        length = uniform((num, 1, 1), 0.1, 0.6, generator) * scale
        alpha = (half + 0.5 - across.abs()).clamp_(0, 1) * (length - along.abs()).clamp_(0, 1)
        canvas = blend(canvas, alpha * 0.8, torch.rand(num, 3, generator=generator))
    for _ in range(max(2, round(5 * density))):  # dots
        along, across = turned(size, *places())
        radius = uniform((num, 1, 1), 0.7, 2.2, generator)
        alpha = (radius + 0.5 - (along**2 + across**2).sqrt()).clamp_(0, 1)
        canvas = blend(canvas, alpha, torch.rand(num, 3, generator=generator))
    return canvas


def tight_boxes(covered: Tensor) -> Tensor:
    """Boxes (N,4) int64 top/left/height/width around the True pixels of (N,H,W); 0 x 0 without any."""
    rows, columns = covered.any(2), covered.any(1)
    top, left = rows.int().argmax(1), columns.int().argmax(1)
    bottom = covered.shape[1] - rows.flip(1).int().argmax(1)
    right = covered.shape[2] - columns.flip(1).int().argmax(1)
    boxes = torch.stack([top, left, bottom - top, right - left], dim=1)
    return boxes * rows.any(1)[:, None]


def to_uint8(canvas: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Pixels in [0, 1] with noise of a strength of their own per image, at most `noise`, to uint8."""
    strength = uniform((len(canvas), 1, 1, 1), 0.3 * noise, noise, generator)
    noisy = canvas + torch.randn(canvas.shape, generator=generator) * strength
    return noisy.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def save_png(image: Tensor, path: Path) -> None:
    """Write one (3,H,W) uint8 image."""
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path, compress_level=1)


def prepare_folder(root: Path, identity: dict[str, object]) -> Path | None:
    """The folder to draw in, or None when the very dataset is there already.

    It is drawn beside its place and renamed at the end, so that half a dataset is never read.
    """
    sheet = root / "dataset.json"
    if sheet.is_file():
        if json.loads(sheet.read_text()) == identity:
            return None
        raise ValueError(f"{root} holds another dataset ({sheet} differs): remove it or take another folder")
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} exists, is not empty and has no dataset.json: choose another folder")
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish_folder(partial: Path, root: Path, identity: dict[str, object]) -> None:
    """Write the identity card dataset.json and put the folder in its place."""
    (partial / "dataset.json").write_text(json.dumps(identity, indent=1) + "\n")
    if root.exists():
        root.rmdir()
    partial.rename(root)
