"""Gradient saliency of a classifier's logit (section 3 and 3.1 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from keepaug.choices import OF
from keepaug.modes import evaluating
from keepaug.transfer import to_device

__all__ = ["saliency_map", "unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel or DataParallel; others (torch.compile's too) as they
    are.
    """
    inner = getattr(model, "_orig_mod", model)  # compiled DDP: the wrapper would reduce gradients
    if isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return cast(nn.Module, inner.module)
    return model


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; every flag and the random state as found outside."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluating(model):
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)  # a compiled graph would compute their gradients otherwise
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def _check(images: Tensor, labels: Tensor | None, scale: float, upsample: str) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"images must have the shape (N, C, H, W), got {tuple(images.shape)}; add the batch dimension "
            f"with [None]"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point and normalised as in training, got {images.dtype}")
    if labels is not None:
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels must have the shape ({images.shape[0]},), got {tuple(labels.shape)}; "
                "soft or one-hot labels have no single logit: pass their argmax"
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"labels must be class indices of an integer dtype, got {labels.dtype}")
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], got {scale}; 0.5 halves the resolution")
    if upsample not in ("bilinear", "nearest"):
        raise ValueError(f"upsample must be 'bilinear' or 'nearest', got {upsample!r}")


def _is_compiled(forward: object) -> bool:
    """A module or a function that torch.compile wrapped."""
    return hasattr(forward, "_orig_mod") or hasattr(forward, "_torchdynamo_orig_callable")


def _pick(logits: Tensor, labels: Tensor | None, num_images: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != num_images:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the forward pass must return logits of the shape ({num_images}, classes), got {got}; "
            "pass forward=lambda x: model(x)[...] to pick them"
        )
    if labels is None:
        return logits.amax(dim=1)
    if labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"labels must be in [0, {logits.shape[1] - 1}], got {low} to {high}")
    return logits.gather(1, to_device(labels, logits.device, torch.int64)[:, None])[:, 0]


def saliency_map(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    only: Tensor | None = None,
    of: str = "logit",
    forward: Callable[[Tensor], Tensor] | None = None,
    scale: float = 1.0,
    upsample: str = "bilinear",
) -> Tensor:
    """Absolute gradient of a logit with respect to the pixels, maximum over the channels.

    The network runs in evaluation mode, so that BatchNorm does not mix the images; modes, BatchNorm
    statistics, `.grad`, `requires_grad` and the random state are left as found, no weight gradient is
    computed, and DistributedDataParallel is bypassed. Autocast stays as the caller set it.

    Args:
        model: the classifier, also wrapped by DistributedDataParallel or torch.compile.
        images: (N, C, H, W) floating, normalised as in training.
        labels: (N,) integer classes, whose logit is used; None uses the largest logit (section 4.3, UDA).
        only: (N,) bool, the images whose maps are wanted (`keep.draw(images).applied`); the other maps are 0
            and cost nothing. On the CPU, where generators without a device draw it: a mask on a GPU is not
            read back, which would stall the queue, and all maps are computed. None: all images.
        of: "logit", or "loss": the cross-entropy of the same class. The paper has the logit for the whole
            network (section 3) and "this loss" for an early head (section 3.1).
        forward: another forward pass of the same network, for example an early head's logits
            (section 3.1); None calls the network.
        scale: below 1 the map is computed on a copy shrunk by antialiased bicubic interpolation and mapped
            back to (H, W); the paper's low-resolution approximation is 0.5 (section 3.1).
        upsample: how a low-resolution map is mapped back, "bilinear" or "nearest".

    Returns:
        (N, H, W) float32, >= 0, detached.

    Raises:
        ValueError: wrong shapes, labels out of range, scale outside (0, 1], unknown upsample or `of`.
        TypeError: images not floating point, labels not integer.

    Example:
        >>> heat = saliency_map(model, images, labels, scale=0.5)
        >>> loss = F.cross_entropy(model(keep(images, heat)), labels)
    """
    _check(images, labels, scale, upsample)
    if of not in OF:
        raise ValueError(f"of must be one of {', '.join(OF)}, got {of!r}")
    if only is not None:
        options: dict[str, Any] = {"of": of, "forward": forward, "scale": scale, "upsample": upsample}
        return _maps_of_some(model, images, labels, only, options)
    num_images, _, height, width = images.shape
    if images.numel() == 0:
        return torch.zeros(num_images, height, width, device=images.device)
    network = unwrap(model)
    # A map made under inference_mode could not be used by autograd-aware code outside it.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.detach()
        if pixels.is_inference():
            pixels = pixels.clone()
        if scale < 1:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            pixels = _resize_bicubic(pixels, size)
        with _undisturbed(network, images.device):
            pixels = pixels.detach().requires_grad_(True)
            logits = (forward or network)(pixels)
            target = _pick(logits, labels, num_images).sum()
            if of == "loss":
                target = logits.float().logsumexp(dim=1).sum() - target
            if not target.requires_grad:
                raise ValueError(
                    "the logits do not depend on the images by a gradient; the forward pass must not detach "
                    "them"
                )
            (gradient,) = torch.autograd.grad(target, pixels)
        heat = gradient.abs().amax(dim=1).float()
        if heat.shape[1:] != (height, width):
            options = {"align_corners": False} if upsample == "bilinear" else {}
            heat = F.interpolate(heat[:, None], size=(height, width), mode=upsample, **options)[:, 0]
        return heat


def _maps_of_some(
    model: nn.Module, images: Tensor, labels: Tensor | None, only: Tensor, options: dict[str, Any]
) -> Tensor:
    """Maps where `only` holds and 0 elsewhere."""
    num, device = len(images), images.device
    if only.shape != (num,) or only.dtype != torch.bool:
        raise ValueError(
            f"only must be a bool tensor of the shape ({num},), got {only.dtype} {tuple(only.shape)}"
        )
    if only.device.type != "cpu":
        heat = saliency_map(model, images, labels, **options)
        return heat.masked_fill(~to_device(only, device)[:, None, None], 0)
    rows = only.nonzero()[:, 0]
    heat = torch.zeros(num, *images.shape[2:], device=device)
    padded = rows
    if not len(rows):
        if not dist.is_available() or not dist.is_initialized():
            return heat
        padded = torch.zeros(1, dtype=torch.int64)  # a sharded network (FSDP) waits for all processes
    elif device.type == "cuda" or _is_compiled(options["forward"] or unwrap(model)):
        # Of eight sizes rather than of all: a new one costs a GPU a search for kernels, and a compiler a
        # compilation.
        step = -(-num // 8)
        padded = torch.cat([rows, rows[-1:].expand(-len(rows) % step)])
    place = to_device(padded, device)
    some = images[place]
    if images.is_contiguous(memory_format=torch.channels_last):
        some = some.contiguous(memory_format=torch.channels_last)
    own = None if labels is None else labels[to_device(padded, labels.device)]
    return heat.index_copy_(0, place[: len(rows)], saliency_map(model, some, own, **options)[: len(rows)])


def _resize_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink, keeping dtype and memory format."""
    # CPU bicubic has no float16 kernel on every version.
    small = F.interpolate(images.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
    small = small.to(images.dtype)
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        small = small.contiguous(memory_format=torch.channels_last)
    return small
