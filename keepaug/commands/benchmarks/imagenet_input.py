"""Images per second and core of ImageNet's input, beside timm's transforms."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from keepaug.data.drawing import draw_backgrounds
from keepaug.data.imagenet import read_train
from keepaug.data.images import FileImages
from keepaug.data.reading import read_image
from keepaug.policies import rand_augment
from keepaug.runs.timing import Table, interleaved


def imagenet_section(
    device: torch.device, *, rounds: int = 3, shrink: bool = False
) -> tuple[Table, dict[str, Any]]:
    """One thread's processor time from 640 x 480 JPEGs to uint8 of 224 x 224: one view, and two (RandAugment).

    timm's second view is its own way of more views: the transforms before the policy are shared. Both get the
    same files and two operations per image, and neither normalises.
    """
    del device
    with tempfile.TemporaryDirectory() as folder:
        paths = _draw(Path(folder), 8 if shrink else 48)
        variants = _variants(paths)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            seconds = interleaved(variants, 1 if shrink else rounds, torch.device("cpu"), processor_time=True)
        finally:
            torch.set_num_threads(threads)
        size = sum(os.path.getsize(path) for path in paths) / len(paths)
    speed = {name: len(paths) / value for name, value in seconds.items()}
    rows = [[name, f"{value:.0f}", f"{1000 / value:.2f}"] for name, value in speed.items()]
    ratios = {
        f"{views}, of timm's": speed[f"keepaug, {views}"] / speed[f"timm, {views}"]
        for views in ("one view", "two views")
        if f"timm, {views}" in speed
    }
    rows += [[name, f"{value:.2f}", ""] for name, value in ratios.items()]
    return ([f"640 x 480 JPEGs of {size / 1000:.0f} kB", "images/s", "ms"], rows), speed | ratios


def _draw(folder: Path, num: int) -> list[Path]:
    """Files whose coefficients take about as many bits per pixel as photographs' do."""
    paths = []
    for number in range(num):
        generator = torch.Generator().manual_seed(number)
        pixels = draw_backgrounds(1, (480, 640), generator=generator)[0] * 255
        pixels += 12 * torch.randn(1, 480, 640, generator=generator)
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(path, quality=82)
        paths.append(path)
    return paths


def _variants(paths: list[Path]) -> dict[str, Callable[[], object]]:
    labels, places = torch.zeros(len(paths), dtype=torch.int64), torch.arange(len(paths))

    def ours(policy: Any) -> Callable[[], object]:
        images = FileImages(paths, labels, ["x"], read=read_train, policy=policy)
        generator = torch.Generator().manual_seed(0)
        return lambda: images.load(places, torch.randint(2**62, (len(paths),), generator=generator))

    variants = {
        "decoding by Pillow alone": lambda: [read_image(path) for path in paths],
        "keepaug, one view": ours(None),
        "keepaug, two views": ours(rand_augment(2, 9)),
    }
    try:
        from timm.data import create_transform
    except ImportError:
        return variants
    options: dict[str, Any] = {
        "is_training": True,
        "interpolation": "bilinear",
        "color_jitter": None,
        "use_prefetcher": True,
    }
    one = create_transform(224, **options)
    first, policy, last = create_transform(224, auto_augment="rand-m9-n2-p1", separate=True, **options)

    def both() -> list[tuple[object, object]]:
        cropped = (first(Image.open(path).convert("RGB")) for path in paths)
        return [(last(image), last(policy(image))) for image in cropped]

    return variants | {
        "timm, one view": lambda: [one(Image.open(path).convert("RGB")) for path in paths],
        "timm, two views": both,
    }
