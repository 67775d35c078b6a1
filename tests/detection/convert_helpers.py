"""Tensors of classifiers as tests of the conversion need them."""

from __future__ import annotations

import re

import numpy as np
import torch

from detection.architecture import Architecture, detectron2_key

State = dict[str, torch.Tensor]


def state_of(depth: int = 18, shift: float = 0.0, classes: int = 7) -> State:
    """A ResNet's tensors, each constant, unlike the others and stored as one number."""
    shapes = dict(Architecture(depth).expected_shapes())
    if classes:
        shapes |= {"fc.weight": (classes, 512 if depth < 50 else 2048), "fc.bias": (classes,)}
    state = {
        key: torch.tensor(0.5 + shift + number / 1024).expand(shape)
        for number, (key, shape) in enumerate(shapes.items())
    }
    counters = {
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(3)
        for key in state
        if key.endswith("running_mean")
    }
    return state | counters


def trunk(state: State) -> State:
    return {
        k: v for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")
    }


def caffe2(state: State) -> dict[str, np.ndarray]:
    """Detectron's names of a ResNet-50's tensors; the statistics have none."""
    parts = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    found = {}
    for key, value in ((detectron2_key(key), value.numpy()) for key, value in trunk(state).items()):
        if key.endswith(("running_mean", "running_var")):
            continue
        end = {"norm.weight": "bn_s", "norm.bias": "bn_b", "weight": "w"}[re.search(r"(norm\.)?\w+$", key)[0]]
        stage, block, part, *_ = key.split(".")
        if stage == "stem":
            found["res_conv1_bn_" + end[-1] if "bn" in end else "conv1_w"] = value
        else:
            found[f"{stage}_{block}_{parts[part]}_{end}"] = value
    return found
