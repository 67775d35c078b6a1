"""Classification images as uint8 batches: in memory (CIFAR-10, small folders) or from files (ImageNet)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from keepaug.data.batch_transforms import Border, CropFlip, crop_flip, draw_crop_flip
from keepaug.data.checking import read_all
from keepaug.data.reading import read_image as decode


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: (N, 3, H, W) uint8, cropped and flipped.
        strong: the strongly augmented view with the same crop and flip, or None; (N, V, 3, H, W) of a policy
            that returns a tuple of V views.
        labels: (N,) int64.
        indices: (N,) int64 positions in the dataset.
        seeds: (N,) int64, deciding crop and flip (`draw_crop_flip`); None where they cannot be redrawn.
    """

    images: Tensor
    strong: Tensor | None
    labels: Tensor
    indices: Tensor
    seeds: Tensor | None = None


class Images(Protocol):
    """What `Loader` takes: a length, and a whole batch for indices and one seed per image."""

    labels: Tensor
    classes: list[str]

    def __len__(self) -> int: ...

    def load(self, indices: Tensor, seeds: Tensor) -> Batch:
        """A batch; the same seed gives the same image, in whatever batch, worker or process."""


Transform = Callable[[Any], Any]
BatchTransform = Callable[[Tensor, Tensor], Tensor]
_SEED_SHIFT = 20  # crop and flip take the lowest bits of a seed, the transforms the rest


def _run(transform: Transform, image: Any, seed: int) -> Any:
    """A torchvision transform, decided by `seed`; torch's global CPU generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return transform(image)


def _as_tensor(views: Any) -> Tensor:
    """What a policy returned, as uint8 (3, H, W); a tuple of views as (V, 3, H, W)."""
    if isinstance(views, tuple):
        return torch.stack([_as_tensor(view) for view in views])
    return views if isinstance(views, Tensor) else pil_to_tensor(views)


def one_by_one(transform: Transform) -> BatchTransform:
    """A transform of a uint8 (3, H, W) tensor for a batch: each image by its own seed; V views are stacked.

    The transform draws from torch's global CPU generator, which stays as it was.
    """
    return functools.partial(_each, transform)


def _each(transform: Transform, images: Tensor, seeds: Tensor) -> Tensor:
    each = zip(images, seeds.tolist(), strict=True)
    return torch.stack([_as_tensor(_run(transform, image, seed)) for image, seed in each])


class MemoryImages:
    """Images of one size held as one uint8 tensor; crop and flip are batched.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        classes: names.
        padding: of the random crop in pixels; None for no crop.
        flip: horizontal flip with probability 0.5.
        alternate: each image is mirrored every second epoch instead; `Loader` must say so (`alternate`).
        border: what is padded with, "zero", "reflect" or a colour.
        policy: strong augmentation for the second view, of uint8 (N, 3, H, W) images by (N,) seeds;
            `one_by_one` makes one of a transform for single images.
        policy_first: the policy sees the whole image, and crop and flip (the same for both views) come after
            it, as in AutoAugment's code for CIFAR-10; otherwise it sees the cropped and flipped image.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        *,
        padding: int | None = None,
        flip: bool = False,
        alternate: bool = False,
        border: Border = "zero",
        policy: BatchTransform | None = None,
        policy_first: bool = False,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"expected uint8 (N, 3, H, W) images and N labels, got {images.dtype} {tuple(images.shape)} "
                f"and {len(labels)} labels"
            )
        self.images, self.labels, self.classes = images, labels, list(classes)
        self.padding, self.flip, self.alternate, self.border = padding, flip, alternate, border
        self.policy, self.policy_first = policy, policy_first

    def __len__(self) -> int:
        return len(self.images)

    def load(self, indices: Tensor, seeds: Tensor) -> Batch:
        """A batch, decided by the seeds."""
        whole = self.images[indices]
        images = self._geometry(whole, seeds)
        strong = None
        if self.policy is not None:
            strong = self.policy(whole if self.policy_first else images, seeds >> _SEED_SHIFT)
            if self.policy_first:
                strong = self._geometry(strong, seeds)
        return Batch(images, strong, self.labels[indices], indices, seeds)

    def _geometry(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Crop and flip of (N, 3, H, W) or, alike in all views, of (N, V, 3, H, W)."""
        if self.padding is None and not self.flip:
            return images
        if images.ndim == 5:
            return torch.stack([self._geometry(view, seeds) for view in images.unbind(dim=1)], dim=1)
        return crop_flip(images, self.place_of(seeds))

    def place_of(self, seeds: Tensor) -> CropFlip:
        """The crop and flip of images loaded with these seeds."""
        return draw_crop_flip(
            seeds, padding=self.padding or 0, flip=self.flip, alternate=self.alternate, border=self.border
        )


class FileImages:
    """Images decoded from files when needed.

    Args:
        paths: image files.
        labels: (N,) int64.
        classes: names.
        read: from path and seed to a uint8 (3, H, W) tensor of the final size, cropped and flipped by seed.
        policy: strong augmentation of that as a PIL image (fastest at this size), for the second view.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        classes: Sequence[str],
        *,
        read: Callable[[Path, int], Tensor],
        policy: Transform | None = None,
    ) -> None:
        self.paths, self.labels, self.classes = paths, labels, list(classes)
        self.read, self.policy = read, policy

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, indices: Tensor, seeds: Tensor) -> Batch:
        """A batch, decided by the seeds."""
        images, strong = [], []
        for index, seed in zip(indices.tolist(), (seeds >> _SEED_SHIFT).tolist(), strict=True):
            images.append(self.read(self.paths[index], seed))
            if self.policy is not None:
                picture = Image.fromarray(images[-1].permute(1, 2, 0).numpy())
                strong.append(_as_tensor(_run(self.policy, picture, seed + 1)))
        augmented = torch.stack(strong) if strong else None
        return Batch(torch.stack(images), augmented, self.labels[indices], indices)


def decode_all(paths: Sequence[Path], description: str) -> Tensor:
    """All images as one (N, 3, H, W) uint8 tensor.

    Raises:
        ValueError: unreadable images, or sizes that differ.
    """

    def one(path: Path) -> Tensor:
        return pil_to_tensor(decode(path))

    images = read_all(one, paths, description)
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{path} is {image.shape[1]} x {image.shape[2]} and {paths[0]} is {images[0].shape[1]} x "
                f"{images[0].shape[2]}; images held in memory must have one size: "
                "set loading=files and image_size, the side that they are brought to"
            )
    return torch.stack(images)
