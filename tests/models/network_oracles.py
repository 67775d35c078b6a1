"""The networks for small images written out from their papers, on a state dict, in evaluation mode."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    mean, variance = state[f"{name}.running_mean"].view(shape), state[f"{name}.running_var"].view(shape)
    x = (x - mean) / (variance + 1e-5).sqrt()
    return x * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)


def conv3(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=1)


def conv1(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], stride=stride)


def pool_and_classify(state: State, x: Tensor) -> Tensor:
    return x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3]) @ state["fc.weight"].T + state["fc.bias"]


def strides(num_blocks: int) -> list[tuple[str, int]]:
    return [
        (f"stages.{stage}.{block}", 2 if stage and not block else 1)
        for stage in range(3)
        for block in range(num_blocks)
    ]


def wide_resnet(state: State, x: Tensor, num_blocks: int, shortcut: str) -> Tensor:
    x = conv3(state, "stem", x)
    for name, stride in strides(num_blocks):
        active = batch_norm(state, f"{name}.bn1", x).relu()
        hidden = batch_norm(state, f"{name}.bn2", conv3(state, f"{name}.conv1", active, stride)).relu()
        if f"{name}.shortcut.weight" in state:
            x = conv1(state, f"{name}.shortcut", active if shortcut == "activated" else x, stride)
        x = x + conv3(state, f"{name}.conv2", hidden)
    return pool_and_classify(state, batch_norm(state, "tail.0", x).relu())


def cifar_resnet(state: State, x: Tensor, num_blocks: int, shortcut: str) -> Tensor:
    x = batch_norm(state, "stem.1", conv3(state, "stem.0", x)).relu()
    for name, stride in strides(num_blocks):
        hidden = batch_norm(state, f"{name}.bn1", conv3(state, f"{name}.conv1", x, stride)).relu()
        hidden = batch_norm(state, f"{name}.bn2", conv3(state, f"{name}.conv2", hidden))
        if stride == 2 and shortcut == "padded":
            zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
        elif stride == 2:
            x = batch_norm(state, f"{name}.shortcut.1", conv1(state, f"{name}.shortcut.0", x, 2))
        x = (x + hidden).relu()
    return pool_and_classify(state, x)


def shake_shake(state: State, x: Tensor, num_blocks: int) -> Tensor:
    x = batch_norm(state, "stem.1", conv3(state, "stem.0", x))
    for name, stride in strides(num_blocks):
        active, branches = x.relu(), []
        for branch in ("branch1", "branch2"):
            hidden = conv3(state, f"{name}.{branch}.conv1", active, stride)
            hidden = batch_norm(state, f"{name}.{branch}.bn1", hidden).relu()
            hidden = conv3(state, f"{name}.{branch}.conv2", hidden)
            branches.append(batch_norm(state, f"{name}.{branch}.bn2", hidden))
        if f"{name}.shortcut.bn.weight" in state:
            moved = torch.zeros_like(active)  # the pixel to the right and below
            moved[:, :, :-1, :-1] = active[:, :, 1:, 1:]
            both = [
                conv1(state, f"{name}.shortcut.conv1", active, stride),
                conv1(state, f"{name}.shortcut.conv2", moved, stride),
            ]
            x = batch_norm(state, f"{name}.shortcut.bn", torch.cat(both, dim=1))
        x = x + (branches[0] + branches[1]) / 2
    return pool_and_classify(state, x.relu())


def pyramid_net(state: State, x: Tensor, num_blocks: int, shake_drop: float) -> Tensor:
    x = batch_norm(state, "stem.1", conv3(state, "stem.0", x))
    for number, (name, stride) in enumerate(strides(num_blocks), start=1):
        hidden = conv1(state, f"{name}.conv1", batch_norm(state, f"{name}.bn1", x))
        hidden = conv3(state, f"{name}.conv2", batch_norm(state, f"{name}.bn2", hidden).relu(), stride)
        hidden = conv1(state, f"{name}.conv3", batch_norm(state, f"{name}.bn3", hidden).relu())
        hidden = batch_norm(state, f"{name}.bn4", hidden)
        if stride == 2:
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        zeros = torch.zeros_like(hidden[:, x.shape[1] :])
        x = hidden * (1 - shake_drop * number / (3 * num_blocks)) + torch.cat([x, zeros], dim=1)
    return pool_and_classify(state, batch_norm(state, "tail.0", x).relu())
