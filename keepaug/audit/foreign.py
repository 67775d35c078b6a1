"""Anybody's transform of single images, called as its library wants, with a repeatable draw."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image


def load_object(name: str) -> Any:
    """What `module:object` names; the module is looked for in the working directory too.

    Raises:
        ValueError: no such module or object, or the module fails.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"expected module:object, got {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name.removesuffix(".py").replace("/", "."))
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module raises is theirs to know
        raise ValueError(f"{name} cannot be loaded ({type(error).__name__}: {error})") from error
    return found


@contextmanager
def _own_randomness() -> Iterator[Callable[[int], None]]:
    """Seeds the global generators of python, numpy and torch inside; all as they were outside."""
    python, array = random.getstate(), np.random.get_state()

    def seed_all(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach CUDA too

    try:
        with torch.random.fork_rng(devices=[]):
            yield seed_all
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _array(pixels: Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).contiguous().numpy()


# In the order in which they are tried.
_FEEDS: dict[str, Callable[[Any, Tensor], Any]] = {
    "PIL image": lambda transform, pixels: transform(to_pil_image(pixels)),
    "uint8 tensor": lambda transform, pixels: transform(pixels),
    "numpy array": lambda transform, pixels: transform(_array(pixels)),
    "image=array": lambda transform, pixels: transform(image=_array(pixels)),
    "float tensor in [0, 1], batch of one": lambda transform, pixels: transform(pixels[None].float() / 255),
}
_WANTED = {"albumentations": ("image=array",), "kornia": ("float tensor in [0, 1], batch of one",)}


class Foreign:
    """A transform of torchvision, albumentations, kornia, timm, or any callable, for single uint8 images.

    Args:
        transform: takes an image and returns one of its size.
        name: for messages.

    Raises:
        ValueError: a class instead of an object, or nothing that can be called.
    """

    def __init__(self, transform: Any, name: str) -> None:
        if isinstance(transform, type) or not callable(transform):
            kind = "a class" if isinstance(transform, type) else f"of type {type(transform).__name__}"
            raise ValueError(f"{name} is {kind}; name an object that can be called with an image")
        self.transform, self.name = transform, name
        self._feed: str | None = None
        self._batched: bool | None = None

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """All images through one and the same draw.

        Args:
            images: (P, 3, H, W) uint8.
            seed: decides the draw.

        Returns:
            (P, 3, H, W) uint8.

        Raises:
            ValueError: another size or type comes back, or the transform fails.
        """
        with _own_randomness() as seed_all, torch.no_grad():
            if self._feed is None:
                self._feed = self._find_feed(images[0], seed, seed_all)
                self._batched = self._can_be_batched(images, seed, seed_all)
            if self._batched:
                seed_all(seed)
                return self._checked(self.transform(images), images)
            return torch.stack([self._single(image, seed, seed_all) for image in images])

    def repeats(self, images: Tensor, seed: int) -> bool:
        """Whether the same seed gives the same result."""
        return bool(torch.equal(self(images, seed), self(images, seed)))

    def _single(self, image: Tensor, seed: int, seed_all: Callable[[int], None]) -> Tensor:
        seed_all(seed)
        if hasattr(self.transform, "set_random_seed"):  # albumentations 2 has generators of its own
            self.transform.set_random_seed(seed % 2**32)
        assert self._feed is not None
        try:
            result = _FEEDS[self._feed](self.transform, image)
        except Exception as error:
            raise ValueError(f"{self.name} failed on an image ({type(error).__name__}: {error})") from error
        return self._checked(_to_pixels(result, self.name), image)

    def _find_feed(self, image: Tensor, seed: int, seed_all: Callable[[int], None]) -> str:
        problems, library = [], type(self.transform).__module__.partition(".")[0]
        for kind in _WANTED.get(library, tuple(_FEEDS)):
            seed_all(seed)
            try:
                result = _FEEDS[kind](self.transform, image)
            except Exception as error:  # it wants something else
                first = str(error).splitlines()[0] if str(error) else ""
                problems.append(f"{kind}: {type(error).__name__}: {first}")
                continue
            _to_pixels(result, self.name)
            return kind
        raise ValueError(f"{self.name} takes none of what it was given ({problems[0]})")

    def _can_be_batched(self, images: Tensor, seed: int, seed_all: Callable[[int], None]) -> bool:
        """Torchvision's transforms do the same to all images of a tensor, and faster; believed when seen."""
        if not type(self.transform).__module__.startswith("torchvision.transforms") or len(images) < 2:
            return False
        try:
            for trial in (seed, seed + 1, seed + 2):
                seed_all(trial)
                together = self.transform(images)
                alone = []
                for image in images:
                    seed_all(trial)
                    alone.append(self.transform(image))
                if together.dtype != torch.uint8 or not torch.equal(together, torch.stack(alone)):
                    return False
        except Exception:  # it wants single images
            return False
        self._feed = "uint8 tensor"
        return True

    def _checked(self, result: Tensor, given: Tensor) -> Tensor:
        if result.shape[-2:] != given.shape[-2:]:
            raise ValueError(
                f"{self.name} returned {result.shape[-2]} x {result.shape[-1]} pixels for an image of "
                f"{given.shape[-2]} x {given.shape[-1]}; an audited augmentation keeps the size: leave "
                "resizing out, or let it end in the network's size"
            )
        return result


def _to_pixels(result: Any, name: str) -> Tensor:
    """(3, H, W) uint8 of whatever image came back."""
    if isinstance(result, dict) and "image" in result:
        result = result["image"]
    if isinstance(result, Image.Image):
        return pil_to_tensor(result.convert("RGB"))
    if isinstance(result, np.ndarray) and result.ndim == 3 and result.shape[2] == 3:
        result = torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1)
    if isinstance(result, Tensor):
        result = result.detach().cpu()
        if result.ndim == 4 and len(result) == 1:
            result = result[0]
        if result.ndim == 3 and len(result) == 3:
            if result.dtype == torch.uint8:
                return result.as_subclass(Tensor).contiguous()
            if result.is_floating_point():
                low, high = float(result.min()), float(result.max())
                if low < -0.01 or high > 1.01:
                    raise ValueError(
                        f"{name} returned values from {low:.2f} to {high:.2f}, expected [0, 1]: leave the "
                        "normalisation out, the audit applies the network's own"
                    )
                return (result.clamp(0, 1) * 255).round().to(torch.uint8)
    of = f" of shape {tuple(result.shape)} and {result.dtype}" if hasattr(result, "shape") else ""
    raise ValueError(
        f"{name} returned {type(result).__name__}{of}; expected an RGB image: PIL, a (3, H, W) tensor, a "
        "(H, W, 3) array, or a dict with 'image'"
    )
