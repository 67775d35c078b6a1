"""Small data for the ReID tests: an identity is a colour, a camera is a brightness."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image

from keepaug.runs.config import load_config
from reid.config import ReidConfig, check, resolve

TINY = [
    "arch=resnet18",
    "height=48",
    "width=32",
    "padding=2",
    "identities=4",
    "images=2",
    "epochs=2",
    "lr=0.001",
    "warmup_epochs=1",
    "tensorboard=false",
    "pictures=false",
    "ranked=0",
    "num_workers=1",
    "device=cpu",
]


def write_image(
    path: Path, identity: int, camera: int, number: int, size: tuple[int, int] = (32, 16)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng((abs(identity), camera, number, identity < 0))
    colour = numpy.random.default_rng(identity + 1000).integers(60, 230, 3)
    pixels = numpy.clip(colour + random.normal(0, 15, (*size, 3)) + 6 * camera, 0, 255).astype(numpy.uint8)
    Image.fromarray(pixels).save(path)


def write_market(
    root: Path, *, train: int = 6, test: int = 4, images: int = 3, extension: str = "png"
) -> Path:
    """`train` identities with `images` images; `test` others: a query by camera 1, gallery by 2 and 3."""
    for identity in range(1, train + 1):
        for number in range(images):
            write_image(
                root / "bounding_box_train" / name(identity, 1 + number % 3, number, extension),
                identity,
                1,
                number,
            )
    for identity in range(train + 1, train + test + 1):
        write_image(root / "query" / name(identity, 1, 0, extension), identity, 1, 0)
        for camera in (2, 3):
            write_image(
                root / "bounding_box_test" / name(identity, camera, 0, extension), identity, camera, 0
            )
    return root


def name(identity: int, camera: int, number: int, extension: str = "png") -> str:
    text = f"{identity:04d}" if identity >= 0 else str(identity)
    return f"{text}_c{camera}s1_{number:06d}_00.{extension}"


def tiny_config(root: Path, *overrides: str) -> ReidConfig:
    config = load_config(ReidConfig, None, [*TINY, f"root={root}", *overrides])
    check(resolve(config))
    return config
