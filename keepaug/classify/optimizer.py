"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from keepaug.classify.config import ClassifyConfig

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(config: ClassifyConfig, network: nn.Module) -> torch.optim.SGD:
    """SGD with momentum; the biases of normalisation layers at `norm_bias_factor` times the rate.

    With `decoupled_decay`, a step at the highest learning rate takes `weight_decay` of every parameter,
    whatever that rate is; otherwise `weight_decay` times the rate, as in PyTorch.
    """
    biases = {
        id(bias)
        for module in network.modules()
        if isinstance(module, _NORMS) and (bias := module.bias) is not None
    }
    parameters = list(network.parameters())
    if config.norm_bias_factor == 1:
        biases = set()
    groups: list[dict[str, Any]] = [
        {"params": [one for one in parameters if id(one) not in biases], "factor": 1.0},
        {"params": [one for one in parameters if id(one) in biases], "factor": config.norm_bias_factor},
    ]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        highest = config.lr * group["factor"]
        group["weight_decay"] = config.weight_decay / (highest if config.decoupled_decay else 1)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def learning_rate(config: ClassifyConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate: linear warm-up, then cosine to 0 per step or steps at epochs; or a triangle."""
    epoch = step / steps_per_epoch
    if config.schedule == "triangle":
        return config.lr * _triangle(epoch / config.epochs, *config.triangle)
    if epoch < config.warmup_epochs:
        return config.lr * (step + 1) / (config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        total = config.epochs - config.warmup_epochs
        return config.lr * 0.5 * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / total))
    return config.lr * config.gamma ** sum(int(epoch) >= milestone for milestone in config.milestones)


def _triangle(progress: float, start: float, peak: float, end: float) -> float:
    """Linear from `start` to 1 at `peak`, and on to `end` at 1."""
    if progress < peak:
        return start + (1 - start) * progress / peak
    return 1 + (end - 1) * (progress - peak) / (1 - peak)
