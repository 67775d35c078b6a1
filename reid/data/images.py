"""Images resized to one size, as uint8 batches: held in memory, or decoded by threads when needed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from keepaug.data.batch_transforms import random_crop_flip
from keepaug.data.checking import check_images, read_all
from keepaug.data.images import Batch
from keepaug.data.reading import read_image


class ResizedImages:
    """Resize, then mirror, zero padding and random crop, as Bag of Tricks does before it normalizes.

    The resize is the same each time, so that resized images can be kept; mirror and crop are batched.

    Args:
        paths: image files.
        labels: (N,) int64 class of each.
        size: (height, width).
        padding: pixels on each side, for `load`.
        flip: mirror half of the images, for `load`.
        in_memory: decode everything once, now; otherwise check now that everything can be decoded.
        threads: that decode.
        description: of the progress bar.

    Raises:
        ValueError: unreadable images, with their number and examples.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        size: tuple[int, int],
        *,
        padding: int = 0,
        flip: bool = False,
        in_memory: bool = True,
        threads: int = 4,
        description: str = "reading images",
    ) -> None:
        if len(paths) != len(labels):
            raise ValueError(f"each image needs a label, got {len(paths)} images and {len(labels)} labels")
        self.paths, self.labels, self.size = list(paths), labels, size
        self.classes = [str(label) for label in sorted(set(labels.tolist()))]
        self.padding, self.flip, self.threads = padding, flip, threads
        self._pool: ThreadPoolExecutor | None = None
        self._cache: Tensor | None = None
        if in_memory:
            self._cache = self._read_all(description)
        else:
            check_images(self.paths, threads=threads, description=description)

    @staticmethod
    def gigabytes(num_images: int, size: tuple[int, int]) -> float:
        """What that many images take in memory."""
        return 3 * num_images * size[0] * size[1] / 1e9

    def __len__(self) -> int:
        return len(self.paths)

    def resized(self, indices: Tensor) -> Tensor:
        """(n, 3, height, width) uint8, neither mirrored nor cropped."""
        if self._cache is not None:
            return self._cache[indices]
        if self._pool is None:  # made late: threads do not survive a fork
            self._pool = ThreadPoolExecutor(self.threads)
        images = list(self._pool.map(self._read, [self.paths[index] for index in indices.tolist()]))
        return torch.stack(images) if images else torch.empty(0, 3, *self.size, dtype=torch.uint8)

    def load(self, indices: Tensor, seeds: Tensor) -> Batch:
        """A training batch; mirror and crop of an image are decided by its seed."""
        images = self.resized(indices)
        if self.padding or self.flip:
            images = random_crop_flip(images, seeds, padding=self.padding, flip=self.flip)
        return Batch(images, None, self.labels[indices], indices)

    def _read(self, path: Path) -> Tensor:
        height, width = self.size
        return pil_to_tensor(read_image(path).resize((width, height), Image.Resampling.BILINEAR))

    def _read_all(self, description: str) -> Tensor:
        images = torch.empty(len(self.paths), 3, *self.size, dtype=torch.uint8)

        def read(index: int) -> None:
            images[index] = self._read(self.paths[index])

        read_all(read, range(len(images)), description, threads=self.threads)
        return images
