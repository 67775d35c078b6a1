"""How faithful the approximations of the saliency map are, for `keepaug benchmark`.

The measure: regions are drawn from an approximate map as KeepCutout draws them, and those count that the
exact map forbids. A map that knows nothing lets 1 - tau of them through.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepaug.choices import CIFAR_MEAN, CIFAR_STD
from keepaug.classify.methods import compute_saliency
from keepaug.data.batch_transforms import CropFlip, crop_flip, draw_crop_flip, normalize
from keepaug.data.cifar import load_cifar10
from keepaug.data.saliency_cache import SaliencyCache
from keepaug.models import EarlyHeadNetwork, build_network
from keepaug.models.weights import load_classifier
from keepaug.regions import region_scores, sample_regions
from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.seeds import make_generator
from keepaug.runs.timing import Table


def forbidden_share(
    exact: Tensor, approximate: Tensor, *, size: int, tau: float, draws: int, generator: torch.Generator
) -> float:
    """Share of the regions drawn by one map that another forbids.

    Args:
        exact: (N, H, W), the map that is right.
        approximate: (N, H, W), the map by which regions below its own tau-quantile are drawn.
        size: side of the regions.
        tau: quantile.
        draws: regions per image.
        generator: of the draws.
    """
    scores = region_scores(exact, size)[0]
    columns, flat = scores.shape[2], scores.flatten(1)
    limit = max(1, int(tau * flat.shape[1] + 1e-9))
    wrong = []
    for _ in range(draws):
        drawn = sample_regions(approximate, size, tau=tau, generator=generator)
        own = flat.gather(1, (drawn.top * columns + drawn.left)[:, None])
        wrong.append(((flat < own).sum(dim=1) >= limit).double().mean())
    return float(torch.stack(wrong).mean())


def fidelity_section(
    device: torch.device,
    *,
    weights: Path | None = None,
    data: Path | None = None,
    images: int = 256,
    earlier: Sequence[Path] = (),
    shrink: bool = False,
) -> tuple[Table, dict[str, Any]]:
    """The share for each approximation and for maps carried over from earlier weights.

    Args:
        device: where the network runs.
        weights: weights.pt of a classifier; None takes random weights.
        data: CIFAR-10's folder; None takes drawn images.
        images: how many.
        earlier: checkpoints of the run of `weights`.
        shrink: a few draws on a few images.

    Returns:
        Table and figures.
    """
    size, tau = 16, 0.6
    network, mean, std, trained = _load(weights)
    network.eval().to(device)
    pixels, labels, source = _images(data, 16 if shrink else images, _classes(network))
    inputs = normalize(pixels, mean, std).to(device)
    labels = labels.to(device)
    exact = compute_saliency(network, inputs, labels, "full")

    def share(approximate: Tensor, of: Tensor = exact) -> float:
        generator = make_generator(0, "fidelity", "regions")
        draws = 5 if shrink else 20
        return forbidden_share(of, approximate, size=size, tau=tau, draws=draws, generator=generator)

    figures = {name: share(heat) for name, heat in _approximations(network, inputs, labels, exact).items()}
    with torch.no_grad():
        best = torch.cat([network(part) for part in inputs.split(128)]).argmax(dim=1)
    wrong = best != labels
    largest = compute_saliency(network, inputs, best, "full")
    figures["max logit"] = share(largest)
    if wrong.any():
        name = f"max logit, the {int(wrong.sum())} of {len(wrong)} misclassified images"
        figures[name] = share(largest[wrong], exact[wrong])
    for name, (carried, fresh) in _carried(earlier, network, pixels, labels, mean, std).items():
        figures[name] = share(carried, fresh)
    figures["uniform (chance)"] = share(torch.ones_like(exact))
    rows = [[name, f"{value:.3f}"] for name, value in figures.items()]
    return ([f"approximation; {trained}; {source}", "share of forbidden regions"], rows), figures


class _Weights(NamedTuple):
    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str


def _load(path: Path | None) -> _Weights:
    """weights.pt of a classifier, with its early head if it has one."""
    if path is None:
        torch.manual_seed(0)
        network: nn.Module = EarlyHeadNetwork(build_network("resnet18", 10, stem="cifar"))
        return _Weights(network, CIFAR_MEAN, CIFAR_STD, "random weights (--weights takes trained ones)")
    trained = load_classifier(path)
    network = trained.network if trained.early_head is None else trained.with_early_head()
    return _Weights(network, trained.mean, trained.std, str(path))


def _earlier(path: Path, network: nn.Module) -> tuple[nn.Module, str]:
    """The network with the weights of an earlier checkpoint of its run."""
    content = read_weights_only(path)
    if not isinstance(content, dict) or not {"model", "step"} <= content.keys():
        raise ValueError(f"{path} is no checkpoint.pt of keepaug train-classifier")
    before = copy.deepcopy(network)
    before.load_state_dict(content["model"])
    return before, f"step {content['step']}"


def _classes(network: nn.Module) -> int:
    inner = network.network if isinstance(network, EarlyHeadNetwork) else network
    return [module for module in inner.modules() if isinstance(module, nn.Linear)][-1].out_features


def _images(root: Path | None, num: int, num_classes: int) -> tuple[Tensor, Tensor, str]:
    """Uint8 validation images and labels."""
    generator = make_generator(0, "fidelity", "images")
    if root is None:
        small = torch.rand(num, 3, 8, 8, generator=generator) * 255
        pixels = F.interpolate(small, size=32, mode="bicubic").clamp(0, 255).to(torch.uint8)
        labels = torch.randint(num_classes, (num,), generator=generator)
        return pixels, labels, f"{num} drawn images (--data takes a CIFAR-10 folder)"
    _, (images, labels), _ = load_cifar10(root)
    some = torch.randperm(len(images), generator=generator)[:num]
    return images[some], labels[some], f"{len(some)} validation images"


def _approximations(network: nn.Module, images: Tensor, labels: Tensor, exact: Tensor) -> dict[str, Tensor]:
    with torch.autocast(images.device.type, torch.bfloat16):
        half = compute_saliency(network, images, labels, "full")
    coupled = copy.deepcopy(network.network if isinstance(network, EarlyHeadNetwork) else network).train()
    maps = {
        "bfloat16": half,
        "sum over channels": _gradient(network, images, labels).abs().sum(dim=1),
        "BatchNorm in training mode": _gradient(coupled, images, labels).abs().amax(dim=1),
        "low resolution": compute_saliency(network, images, labels, "low_resolution"),
    }
    if isinstance(network, EarlyHeadNetwork):
        maps["early head"] = compute_saliency(network, images, labels, "early_head")
        mixed = compute_saliency(network, images, labels, "low_resolution_early")
        maps["low resolution and early head"] = mixed
    return maps


def _gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the label's logit, in the network's present mode, in batches of 128 as a training run has them."""
    parts = []
    for some, own in zip(images.split(128), labels.split(128), strict=True):
        pixels = some.detach().requires_grad_()
        target = network(pixels).gather(1, own[:, None]).sum()
        parts.append(torch.autograd.grad(target, pixels)[0])
    return torch.cat(parts)


def _carried(
    earlier: Sequence[Path],
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Maps of one crop and flip, kept and carried to another, beside the fresh map there."""
    indices, device = torch.arange(len(pixels)), labels.device
    first, second = (
        draw_crop_flip(torch.randint(2**62, (len(pixels),), generator=make_generator(0, "fidelity", name)))
        for name in ("first crop", "second crop")
    )

    def fresh(of: nn.Module, place: CropFlip) -> Tensor:
        images = normalize(crop_flip(pixels, place), mean, std).to(device)
        return compute_saliency(of, images, labels, "full")

    def kept(heat: Tensor, dtype: str, place: CropFlip) -> Tensor:
        cache = SaliencyCache(len(pixels), (heat.shape[1], heat.shape[2]), dtype=dtype)
        cache.update(indices, heat, first, epoch=0)
        return cache.lookup(indices, place).to(device)

    before, now = fresh(network, first), fresh(network, second)
    found = {
        "kept in 8 bits, same crop": (kept(before, "uint8", first), before),
        "kept in 16 bits, same crop": (kept(before, "float16", first), before),
        "carried to another crop and flip": (kept(before, "uint8", second), now),
    }
    for path in earlier:
        older, name = _earlier(path, network)
        heat = fresh(older.eval(), first)
        found[f"carried, weights of {name}"] = (kept(heat, "uint8", second), now)
    return found
