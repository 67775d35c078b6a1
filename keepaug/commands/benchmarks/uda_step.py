"""What KeepRandAugment adds to a UDA step, for `keepaug benchmark uda`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from keepaug.ops import paste
from keepaug.runs.timing import Table, interleaved
from ssl_uda.algorithms.supervised import supervised_losses
from ssl_uda.augment import draw_step, finish_strong, make_views, weak_view
from ssl_uda.config import UdaConfig
from ssl_uda.loop import network_spec
from ssl_uda.policy import OPERATIONS, Draws, apply_policy
from ssl_uda.step import sample_paste, step_loss, targets_and_saliency


def uda_section(
    device: torch.device,
    *,
    arch: Sequence[str] = (),
    rounds: int = 7,
    bf16: bool = False,
    processor_time: bool = False,
    shrink: bool = False,
) -> tuple[Table, dict[str, Any]]:
    """The plain UDA step of the recipe (on a CPU an eighth of its batch) against what is added to it."""
    chosen = [*(name for name in arch if name.startswith("wrn")), "wrn10_1" if shrink else "wrn28_2"][0]
    batch_size = 2 if shrink else (64 if device.type == "cuda" else 8)
    config = UdaConfig(arch=chosen, batch_size=batch_size)
    torch.manual_seed(0)
    network = network_spec(config, 10).build().to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    num = config.batch_size * config.unlabelled_ratio
    pool = torch.randint(256, (num, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (config.batch_size,), device=device)
    draws = draw_step(config, 0, (32, 32))
    mean = std = (0.5, 0.5, 0.5)
    images = torch.randn(config.batch_size, 3, 32, 32, device=device)
    views = make_views(pool, draws, config, mean, std)
    clean = views.clean.contiguous(memory_format=torch.channels_last)
    heat = torch.rand(num, 32, 32, device=device)

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def prepare(settings: UdaConfig = config) -> None:
        """Everything that a step does before its forward pass."""
        drawn = draw_step(config, 6, (32, 32))
        weak_view(pool[: config.batch_size], drawn.labelled_seeds, config)
        made, pasted = make_views(pool, drawn, config, mean, std), None
        if settings.keep:
            pixels = made.clean.contiguous(memory_format=torch.channels_last)
            with autocast():
                _, found = targets_and_saliency(network, pixels, settings, only=drawn.policy.changes)
            assert found is not None
            pasted = sample_paste(found, pixels, settings, 6)
        finish_strong(made, pasted, drawn, config)

    def train(settings: UdaConfig, target: Tensor | None) -> None:
        with autocast():
            parts = step_loss(network, images, labels, views, target, settings, 0)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()

    def step(settings: UdaConfig = config) -> None:
        prepare(settings)
        train(config, None)

    def supervised() -> None:
        with autocast():
            loss = supervised_losses(network(images), labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def saliency(scale: float, only: Tensor | None = None) -> None:
        with autocast():
            targets_and_saliency(network, clean, UdaConfig(keep=True, saliency=_named(scale)), only=only)

    def eval_step(scale: float) -> None:
        """target_mode=eval with Keep: target and saliency first, then the training pass."""
        settings = UdaConfig(arch=chosen, keep=True, target_mode="eval", saliency=_named(scale))
        prepare()
        with autocast():
            target, _ = targets_and_saliency(network, clean, settings)
        train(settings, target)

    def select() -> None:
        paste(views.clean, views.strong, sample_paste(heat, views.clean, config, 0))

    variants: dict[str, Callable[[], object]] = {
        "plain UDA step": step,
        "supervised step": supervised,
        "Keep step, low resolution": functools.partial(step, UdaConfig(keep=True)),
        "Keep step, full resolution": functools.partial(step, UdaConfig(keep=True, saliency="full")),
        "saliency where the policy changes an image, low resolution": functools.partial(
            saliency, 0.5, draws.policy.changes
        ),
        "saliency, low resolution": functools.partial(saliency, 0.5),
        "saliency, full resolution": functools.partial(saliency, 1.0),
        "region selection and paste": select,
        "views, policy and Cutout (in the plain step)": prepare,
        "policy alone, batched": lambda: apply_policy(pool, draws.policy),
        "policy alone, torchvision image by image": lambda: one_by_one(pool, draws.policy),
        "Keep step, target_mode=eval, low resolution": functools.partial(eval_step, 0.5),
        "Keep step, target_mode=eval, full, shared pass": functools.partial(eval_step, 1.0),
    }
    seconds = interleaved(variants, 1 if shrink else rounds, device, processor_time=processor_time)
    base = seconds["plain UDA step"]
    rows = [[name, f"{1000 * value:.1f}", f"{value / base:.3f}"] for name, value in seconds.items()]
    title = f"{chosen}, {config.batch_size} + 2 x {num} images, 32 px{', bf16' if bf16 else ''}"
    figures = {name: value / base for name, value in seconds.items()} | {"plain UDA step (s)": base}
    return ([title, "ms", "share of the plain UDA step"], rows), figures


def one_by_one(images: Tensor, draws: Draws) -> Tensor:
    """The policy as usual, a call per image and operation; close to `apply_policy`, not equal to the bit."""
    done = []
    for number, image in enumerate(images):
        for turn in range(draws.operation.shape[1]):
            if not draws.applied[number, turn]:
                continue
            level = int(draws.level[number, turn])
            sign = -1 if draws.negative[number, turn] else 1
            image = _usual(OPERATIONS[int(draws.operation[number, turn])], image, level, sign)
        done.append(image)
    return torch.stack(done)


def _usual(name: str, image: Tensor, level: int, sign: int) -> Tensor:
    strength = level * 0.18 + 0.1
    match name:
        case "Invert":
            return tv.invert(image)
        case "AutoContrast":
            return tv.autocontrast(image)
        case "Equalize":
            return tv.equalize(image)
        case "Posterize":
            return tv.posterize(image, 4 - int(level * 0.4))
        case "Solarize":
            return tv.solarize(image, 256 - int(level * 25.6))
        case "Color":
            return tv.adjust_saturation(image, strength)
        case "Contrast":
            return tv.adjust_contrast(image, strength)
        case "Brightness":
            return tv.adjust_brightness(image, strength)
        case "Sharpness":
            return tv.adjust_sharpness(image, strength)
        case "Cutout":
            return tv.erase(image, 8, 8, level, level, image.new_zeros(3, 1, 1))
    angle = sign * level * 3.0 if name == "Rotate" else 0.0
    move = [sign * level if name == "TranslateX" else 0, sign * level if name == "TranslateY" else 0]
    shear = [sign * level * 1.7 if name == "ShearX" else 0.0, sign * level * 1.7 if name == "ShearY" else 0.0]
    return tv.affine(image, angle, move, 1.0, shear)


def _named(scale: float) -> str:
    return "full" if scale == 1 else "low_resolution"
