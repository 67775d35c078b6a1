"""Gradient saliency of a classifier's logit (section 3 and 3.1 of the paper)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from keepaug.choices import OF
from keepaug.modes import evaluating
from keepaug.ops import check_batch, check_labels
from keepaug.transfer import to_device


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel or DataParallel; others (compiled too) as they are."""
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


def _check(model: nn.Module, images: Tensor, labels: Tensor | None, scale: float, upsample: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            "model must be the nn.Module itself, whose modes and gradients are left as found, got "
            f"{type(model).__name__}; saliency_map(network, images, labels, forward=function) calls a "
            "function of it"
        )
    if any(module.__dict__.get("_use_orig_params") is False for module in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel with use_orig_params=False trains wrongly after its parameters were "
            "frozen for a saliency pass: wrap with use_orig_params=True, or take fully_shard (FSDP2)"
        )
    check_batch(images)
    if labels is not None:
        check_labels(images, labels)
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point and normalised as in training, got {images.dtype}")
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], got {scale}; 0.5 halves the resolution")
    if upsample not in ("bilinear", "nearest"):
        raise ValueError(f"upsample must be 'bilinear' or 'nearest', got {upsample!r}")


def _is_compiled(forward: object) -> bool:
    """A module or a function that torch.compile wrapped."""
    return hasattr(forward, "_orig_mod") or hasattr(forward, "_torchdynamo_orig_callable")


def _forward_of(model: nn.Module) -> Callable[[Tensor], Any]:
    """The forward pass past wrappers that reduce gradients, or allow no backward pass but their own."""
    strategy, inner = getattr(model, "_strategy", None), getattr(model, "_forward_module", None)
    if strategy is None or inner is None:
        return unwrap(model)
    precision, network = strategy.precision, unwrap(inner)  # Lightning Fabric's wrapper

    def forward(pixels: Tensor) -> Any:
        with precision.forward_context():
            return precision.convert_output(network(precision.convert_input(pixels)))

    return forward


_refused: WeakKeyDictionary[nn.Module, set[tuple[int, ...]]] = WeakKeyDictionary()  # sizes, of each network
_reentrant: WeakSet[nn.Module] = WeakSet()  # networks that allow no gradient of the pixels alone


def _run(
    model: nn.Module, forward: Callable[[Tensor], Any] | None, pixels: Tensor, size: tuple[int, int]
) -> Any:
    """What the network says of a shrunk copy; enlarged to `size` again where it takes no other size."""
    forward = forward or _forward_of(model)
    shrunk = (pixels.shape[2], pixels.shape[3])
    if shrunk == size:
        return forward(pixels.clone())  # a copy: the network's first operation may be in place
    if shrunk not in _refused.get(model, ()):
        try:
            return forward(pixels.clone())
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            refusal = (str(error).strip() or type(error).__name__).splitlines()[0]
    output = forward(F.interpolate(pixels, size=size, mode="bilinear", align_corners=False))
    if shrunk not in _refused.setdefault(model, set()):
        _refused[model].add(shrunk)
        warnings.warn(
            f"{type(model).__name__} takes no images of {shrunk[0]} x {shrunk[1]} ({refusal}): they are "
            f"enlarged again to {size[0]} x {size[1]}, and a map costs as much as one at scale=1",
            stacklevel=5,
        )
    return output


def _gradient(model: nn.Module, target: Callable[[Tensor], Tensor], pixels: Tensor, *, whole: bool) -> Tensor:
    """Of `target(pixels)`, without a trace in any other `.grad`; `whole`: it calls the network itself."""
    if model not in _reentrant:
        try:
            (gradient,) = torch.autograd.grad(target(pixels), pixels)
            return gradient
        except RuntimeError as error:
            if "use_reentrant" not in str(error) or not whole:
                raise
            _reentrant.add(model)
    target(pixels).backward()  # type: ignore[no-untyped-call]  # nothing else requires a gradient: all is frozen
    return cast(Tensor, pixels.grad)


def _target(output: Any, labels: Tensor | None, num_images: int, of: str) -> Tensor:
    """The sum of the logits, or of the losses, whose gradient is wanted."""
    logits = getattr(output, "logits", output)  # Hugging Face's networks return more
    if isinstance(logits, Tensor) and logits.ndim == 1:
        logits = logits[:, None]
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != num_images:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the forward pass must return logits of the shape ({num_images}, classes), got {got}; "
            "pass forward=lambda x: model(x)[...] to pick them"
        )
    if not logits.requires_grad:
        raise ValueError("the logits do not depend on the images; the forward pass must not detach them")
    classes = logits.shape[1]
    if labels is not None:
        labels = _checked(labels, classes)
        labels = to_device(labels, logits.device)
    if classes == 1:  # one logit, for yes; that of no is its negative, of the same map
        if of == "logit":
            return logits.sum()
        yes = logits[:, 0].detach() > 0 if labels is None else labels
        return F.binary_cross_entropy_with_logits(logits[:, 0].float(), yes.float(), reduction="sum")
    if labels is None:
        labels = logits.argmax(dim=1)
    if labels.ndim == 1:
        labels = labels.to(torch.int64)
    if of == "loss":
        target = labels if labels.ndim == 1 else labels.float()
        return F.cross_entropy(logits.float(), target, reduction="sum")
    if labels.ndim == 2:  # one-hot: the logit of the class; soft: the logits by their shares
        return (logits * labels.to(logits.dtype)).sum()
    return logits.gather(1, labels[:, None]).sum()


def _checked(labels: Tensor, classes: int) -> Tensor:
    """Labels that fit the logits: (N,), or (N, classes) one-hot or soft."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        if labels.shape[1] != classes:
            raise ValueError(
                f"one-hot or soft labels must be of the {classes} classes of the logits, got "
                f"{labels.shape[1]}"
            )
        return labels
    if classes > 1 and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise TypeError(
            f"labels must be class indices of an integer dtype, got {labels.dtype}: pass labels.long()"
        )
    if labels.device.type == "cpu" and labels.numel():
        low, high, last = labels.min().item(), labels.max().item(), max(classes - 1, 1)
        if low < 0 or high > last:
            raise ValueError(f"labels must be in [0, {last}], got {low} to {high}")
    return labels


_looked_at: set[torch.device] = set()


def _warn_of_zeros(heat: Tensor, dtype: torch.dtype) -> None:
    """Say where a map says nothing; on a GPU, where looking waits, of the first in float16 alone."""
    device = heat.device
    if device.type != "cpu":
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        if dtype != torch.float16 or device in _looked_at:
            return
        _looked_at.add(device)
    if not bool(heat.flatten(1).any(dim=1).all()):
        warnings.warn(
            "a saliency map is 0 everywhere, so that Keep augments as if it knew nothing: float16 loses "
            "small gradients (take bfloat16, or call saliency_map under torch.autocast(..., enabled=False)), "
            "or the logits do not depend on these images (a last layer that starts at 0, dead units)",
            stacklevel=3,
        )


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
    if torch.compiler.is_compiling():
        disable: Any = torch.compiler.disable
        eager = disable(saliency_map, reason="compute the map before the compiled step")
        options = {"only": only, "of": of, "forward": forward, "scale": scale, "upsample": upsample}
        return cast(Tensor, eager(model, images, labels, **options))
    _check(model, images, labels, scale, upsample)
    if of not in OF:
        raise ValueError(f"of must be one of {', '.join(OF)}, got {of!r}")
    if only is not None:
        options = {"of": of, "forward": forward, "scale": scale, "upsample": upsample}
        return _maps_of_some(model, images, labels, only, options)
    num_images, _, height, width = images.shape
    if images.numel() == 0:
        return torch.zeros(num_images, height, width, device=images.device)
    # A map made under inference_mode could not be used by autograd-aware code outside it.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.detach()
        if pixels.is_inference():
            pixels = pixels.clone()
        if scale < 1:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            pixels = _resize_bicubic(pixels, size)

        def target(pixels: Tensor) -> Tensor:
            return _target(_run(model, forward, pixels, (height, width)), labels, num_images, of)

        with _undisturbed(model, images.device):
            pixels = pixels.detach().requires_grad_(True)
            gradient = _gradient(model, target, pixels, whole=forward is None)
        heat = gradient.abs().amax(dim=1).float()
        _warn_of_zeros(heat, images.dtype)
        if heat.shape[1:] != (height, width):
            corners = {"align_corners": False} if upsample == "bilinear" else {}
            heat = F.interpolate(heat[:, None], size=(height, width), mode=upsample, **corners)[:, 0]
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
