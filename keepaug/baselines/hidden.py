"""Manifold Mixup: the hidden states of a random layer are mixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from keepaug.baselines.common import check_alpha, check_per, check_probability, permutation_of, uniform
from keepaug.baselines.mixing import MixedLabels, Mixup, blend
from keepaug.ops import check_labels
from keepaug.transfer import to_device


class HiddenMix(NamedTuple):
    """What is mixed where; `labels` are those of the mixed batch.

    Attributes:
        layer: 0: the images (they are mixed already); k: the output of the k-th module, from 1.
        permutation: (N,) int64, the partners.
        labels: of the batch, with lambda (N,).
    """

    layer: int
    permutation: Tensor
    labels: MixedLabels


@dataclass(frozen=True)
class ManifoldMixup:
    """Mixup of the images or a hidden layer's output, the layer drawn for each batch (Verma et al., 2019).

    The layer is one for the whole batch, because a partner's hidden state must itself be unmixed; lambda is
    one per image or one per batch.

    Args:
        alpha: lambda ~ Beta(alpha, alpha); 2 on CIFAR-10 in the paper.
        num_layers: number of layers to draw from, the images (layer 0) among them: 3 in the released code for
            residual networks: the images and the outputs of the first two stages.
        p: probability that it is applied, per image, or per batch with `per="batch"`.
        per: "image" or "batch" (as in the released code).

    Example:
        >>> images, mix = ManifoldMixup()(images, labels)
        >>> with mix_hidden_features([model.layer1, model.layer2], mix):
        ...     loss = mixed_cross_entropy(model(images), mix.labels)
    """

    alpha: float = 2.0
    num_layers: int = 3
    p: float = 1.0
    per: str = "image"

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_alpha(self.alpha)
        check_per(self.per)
        if self.num_layers < 1:
            raise ValueError(f"num_layers counts the images too and must be 1 or more, got {self.num_layers}")

    def sample(self, labels: Tensor, *, generator: torch.Generator | None = None) -> HiddenMix:
        """Layer, partners and shares of one batch.

        Args:
            labels: (N,) integer classes, or (N, classes) one-hot or soft.
            generator: source of randomness; None is torch's global one.
        """
        layer = min(int(uniform((1,), generator) * self.num_layers), self.num_layers - 1)
        lam = Mixup(self.alpha, self.p, self.per).sample(len(labels), generator=generator)
        permutation = permutation_of(len(labels), generator)
        partner = labels[to_device(permutation, labels.device)]
        return HiddenMix(layer, permutation, MixedLabels(labels, partner, to_device(lam, labels.device)))

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        saliency: Tensor | None = None,
        *,
        mix: HiddenMix | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, HiddenMix]:
        """Draw what to mix, and mix the images if it is them.

        Args:
            images: (N, C, H, W) floating.
            labels: (N,) integer classes, or (N, classes) one-hot or soft.
            saliency: ignored.
            mix: what to mix instead of a drawn one.
            generator: source of randomness; None is torch's global one.

        Returns:
            The images, mixed where the layer is 0, and what `mix_hidden_features` needs.

        Raises:
            ValueError: wrong shapes.
            TypeError: images that are not floating point.
        """
        check_labels(images, labels)
        if mix is None:
            mix = self.sample(labels, generator=generator)
        if mix.layer > 0:
            return images, mix
        return blend(images, to_device(mix.permutation, images.device), mix.labels.lam), mix


@contextmanager
def mix_hidden_features(modules: Sequence[nn.Module], mix: HiddenMix) -> Iterator[None]:
    """Around one forward pass: mixes the output of the drawn module.

    A hook does it, within the block alone; code that torch.compile traced before does not see it.

    Args:
        modules: in the order of the forward pass, the first is layer 1: a residual network's stages, say.
        mix: as `ManifoldMixup` returned it.

    Raises:
        ValueError: the layer is not among the modules.
        RuntimeError: the forward pass never came to the module.
    """
    if mix.layer == 0:
        yield
        return
    if mix.layer > len(modules):
        raise ValueError(
            f"layer {mix.layer} was drawn and there are {len(modules)} modules: pass "
            f"num_layers={len(modules) + 1} or less"
        )
    calls = 0

    def mixed(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return blend(output, to_device(mix.permutation, output.device), mix.labels.lam)

    handle = modules[mix.layer - 1].register_forward_hook(mixed)
    try:
        yield
    finally:
        handle.remove()
    if calls != 1:
        raise RuntimeError(
            f"the module of layer {mix.layer} ran {calls} times in the forward pass, once is needed; a "
            "compiled network does not see the hook"
        )
