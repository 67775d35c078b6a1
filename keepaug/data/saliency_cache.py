"""Saliency maps kept per image and carried through crop and flip, so that most steps need no saliency pass.

The paper computes a map in every step. A network changes slowly and an image does not change at all: a map of
an earlier epoch, put where the image now lies, says nearly the same (`keepaug benchmark fidelity`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from keepaug.data.batch_transforms import CropFlip, crop_flip, undo_crop_flip
from keepaug.transfer import to_device

DTYPES = {"uint8": torch.uint8, "float16": torch.float16}


class SaliencyCache:
    """One map of each whole image, as shares of the map's largest value.

    Kept as square roots in 8 bits (or 16): saliency has few large values and many small ones, and a region's
    score is mostly made of the latter. CIFAR-10's 50,000 maps of 32 x 32 take 51 MB in uint8, 102 MB in
    float16. What a map is multiplied by does not matter to the choice of regions, which compares scores of
    one image; it is kept all the same.

    Args:
        num_images: size of the dataset.
        size: (height, width) of the whole images.
        dtype: "uint8" or "float16".

    Raises:
        ValueError: unknown dtype.
    """

    def __init__(self, num_images: int, size: tuple[int, int], *, dtype: str = "uint8") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.maps = torch.zeros(num_images, *size, dtype=DTYPES[dtype])
        self.largest = torch.zeros(num_images)
        self.epochs = torch.full((num_images,), -1, dtype=torch.int32)
        self._changed = torch.zeros(num_images, dtype=torch.uint8)

    def update(self, indices: Tensor, maps: Tensor, place: CropFlip, *, epoch: int) -> None:
        """Store maps of cropped and flipped images.

        What a crop did not show keeps its earlier value or, without one, gets the mean of what it did show.

        Args:
            indices: (N,) positions in the dataset, each at most once.
            maps: (N, H, W) >= 0, of the images as they were cropped and flipped.
            place: the crop and flip.
            epoch: when they were computed.

        Raises:
            ValueError: maps of another size than the images.
        """
        if maps.shape[1:] != self.maps.shape[1:]:
            raise ValueError(
                f"the cache is for maps of {tuple(self.maps.shape[1:])}, got {tuple(maps.shape[1:])}; "
                "low-resolution maps are mapped back to the image's size before they are stored"
            )
        indices, maps = indices.cpu(), maps.detach().float().cpu()
        place = _on_cpu(place)
        whole, shown = undo_crop_flip(maps[:, None], place)
        whole = whole[:, 0]
        mean = whole.sum(dim=(1, 2)) / shown.sum(dim=(1, 2)).clamp(min=1)
        known = (self.epochs[indices] >= 0)[:, None, None]
        earlier = torch.where(known, self._read(indices), mean[:, None, None])
        whole = torch.where(shown, whole, earlier)
        largest = whole.amax(dim=(1, 2))
        shares = (whole / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]).sqrt()
        self.maps[indices] = (shares * 255).round().to(torch.uint8) if self._is_uint8 else shares.half()
        self.largest[indices] = largest
        self.epochs[indices] = epoch
        self._changed[indices] = 1

    def lookup(self, indices: Tensor, place: CropFlip) -> Tensor:
        """Maps of the images as they lie now; zero padding has saliency 0, reflected has what it shows.

        Args:
            indices: (N,) positions in the dataset.
            place: the crop and flip of each.

        Returns:
            (N, H, W) float32 on the device of `indices`.

        Raises:
            ValueError: an image that has no map.
        """
        rows = indices.cpu()
        if bool((self.epochs[rows] < 0).any()):
            missing = rows[self.epochs[rows] < 0]
            raise ValueError(
                f"{len(missing)} images have no map yet, among them {missing[:3].tolist()}; see stale()"
            )
        return crop_flip(self._read(rows)[:, None], _on_cpu(place))[:, 0].to(indices.device)

    def stale(self, indices: Tensor, *, epoch: int, every: int) -> Tensor:
        """Which images need a fresh map in this epoch: (N,) bool on the CPU.

        All in every `every`-th epoch, counted from 0; in between, those that were left out then.
        """
        return self.epochs[indices.cpu()] < epoch // every * every

    def share(self, total: Callable[[Tensor], Tensor]) -> None:
        """Give every process the maps that each has stored since the last call; all must call it together.

        Args:
            total: the sum of a tensor over the processes, which store different images' maps.
        """
        mine, changed = self._changed, total(self._changed) > 0
        for part in (self.maps, self.largest, self.epochs):
            weight = mine.to(part.dtype).view(-1, *[1] * (part.ndim - 1))
            part[changed] = total(part * weight)[changed]
        self._changed = torch.zeros_like(mine)

    def state_dict(self) -> dict[str, Tensor]:
        """The maps and their ages, for the checkpoint."""
        return {"maps": self.maps, "largest": self.largest, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`.

        Raises:
            ValueError: maps of another dataset or dtype.
        """
        if (state["maps"].shape, state["maps"].dtype) != (self.maps.shape, self.maps.dtype):
            raise ValueError(
                f"the checkpoint holds saliency maps {tuple(state['maps'].shape)} of {state['maps'].dtype}, "
                f"this run needs "
                f"{tuple(self.maps.shape)} of {self.maps.dtype}: it cannot be resumed on other data"
            )
        self.maps, self.largest, self.epochs = state["maps"], state["largest"], state["epochs"]

    @property
    def _is_uint8(self) -> bool:
        return self.maps.dtype == torch.uint8

    def _read(self, rows: Tensor) -> Tensor:
        shares = self.maps[rows].float() / (255 if self._is_uint8 else 1)
        return shares.square() * self.largest[rows, None, None]


def _on_cpu(place: CropFlip) -> CropFlip:
    """The same for maps on the CPU, in which a coloured border is empty."""
    border = "reflect" if place.border == "reflect" else "zero"
    return CropFlip(place.top.cpu(), place.left.cpu(), place.mirrored.cpu(), place.padding, border)


def carried_or_fresh(
    cache: SaliencyCache,
    indices: Tensor,
    place: CropFlip,
    compute: Callable[[Tensor], Tensor],
    *,
    epoch: int,
    every: int,
) -> Tensor:
    """Maps of a batch: carried where the cache's are fresh enough, computed and stored elsewhere.

    Args:
        cache: read and updated.
        indices: (N,) positions in the dataset.
        place: the crop and flip of each image.
        compute: from (M,) positions in the batch to fresh maps (M, H, W); called once or not at all.
        epoch: counted from 0.
        every: a map is used for that many epochs; 1 computes every map.

    Returns:
        (N, H, W) float32 on the device of the fresh maps; fresh ones are passed on as they were computed.
    """
    stale = cache.stale(indices, epoch=epoch, every=every)
    rows = stale.nonzero()[:, 0]
    fresh = compute(rows) if len(rows) else None
    if fresh is not None:
        top, left, mirrored = (part.cpu()[rows] for part in place[:3])
        some = CropFlip(top, left, mirrored, place.padding, place.border)
        cache.update(indices.cpu()[rows], fresh, some, epoch=epoch)
        if len(rows) == len(indices):
            return fresh
    heat = cache.lookup(indices, place)
    if fresh is not None:
        heat = to_device(heat, fresh.device)
        heat[to_device(rows, fresh.device)] = fresh
    return heat
