"""Backbone, neck and identity classifier of Bag of Tricks (Luo et al., 2019)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from keepaug.models.networks import ARCHITECTURES, build_network
from reid.config import TORCHREID
from reid.torchreid_api import torchreid_module


class ReidNetwork(nn.Module):
    """Features before the neck for triplet and center loss, after it for identity loss and ranking.

    Args:
        backbone: images to features (N, D).
        feature_dim: D.
        num_identities: classes of the identity classifier.
        neck: "bnneck" (BatchNorm with bias frozen at 0, classifier without) or "none" (classifier with bias).
    """

    def __init__(
        self, backbone: nn.Module, feature_dim: int, num_identities: int, *, neck: str = "bnneck"
    ) -> None:
        super().__init__()
        if neck not in ("bnneck", "none"):
            raise ValueError(f"neck must be 'bnneck' or 'none', got {neck!r}")
        self.backbone, self.feature_dim, self.num_identities = backbone, feature_dim, num_identities
        self.neck: nn.Module = nn.Identity()
        self.classifier = nn.Linear(feature_dim, num_identities, bias=neck == "none")
        if neck == "bnneck":
            batch_norm = nn.BatchNorm1d(feature_dim)
            batch_norm.bias.requires_grad_(False)
            self.neck = batch_norm
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, identities) and features (N, D) before the neck."""
        features = self.backbone(images)
        return self.classifier(self.neck(features)), features

    def logits(self, images: Tensor) -> Tensor:
        """The identity classifier's logits, for the saliency map."""
        logits, _ = self(images)
        return logits

    def features(self, images: Tensor, *, after_neck: bool = True) -> Tensor:
        """(N, D) features for the ranking; call in evaluation mode."""
        features: Tensor = self.backbone(images)
        return self.neck(features) if after_neck else features


class _ResNetFeatures(nn.Module):
    """torchvision's ResNet up to the average pooling; state_dict keys stay torchvision's, without fc."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        for name, module in network.named_children():
            if name != "fc":
                self.add_module(name, module)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for module in self.children():
            x = module(x)
        return x.flatten(1)


class _TorchreidFeatures(nn.Module):
    """A network of torchreid, whose own classifier is taken out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        features: Tensor = output[1] if self.training else output
        return features


def build_reid_network(
    arch: str,
    num_identities: int,
    *,
    last_stride: int = 1,
    neck: str = "bnneck",
    first_relu: bool = True,
    size: tuple[int, int] = (256, 128),
) -> ReidNetwork:
    """A network with random weights (drawn from torch's global generator).

    Args:
        arch: a ResNet of torchvision by name, or "torchreid:NAME".
        num_identities: training identities.
        last_stride: of the last stage, 1 or 2; torchreid's networks keep their own.
        neck: "bnneck" or "none".
        first_relu: False leaves out the ReLU after the first BatchNorm, as the release of Bag of Tricks.
        size: (height, width) of the images, with which a network of torchreid is tried out.

    Raises:
        ValueError: unknown architecture, or a network of torchreid that does not give one vector per image.
        ImportError: torchreid is asked for and missing.
    """
    if num_identities < 2:
        raise ValueError(f"there must be two identities or more to tell apart, got {num_identities}")
    if arch.startswith(TORCHREID):
        backbone, feature_dim = _torchreid_backbone(arch.removeprefix(TORCHREID), size)
        return ReidNetwork(backbone, feature_dim, num_identities, neck=neck)
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)} or {TORCHREID}NAME, got {arch!r}")
    if last_stride not in (1, 2):
        raise ValueError(f"last_stride must be 1 or 2, got {last_stride}")
    network: Any = build_network(arch, 1)
    feature_dim = int(network.fc.in_features)
    if last_stride == 1:
        _set_stride(network.layer4[0])
    if not first_relu:
        network.relu = nn.Identity()
    return ReidNetwork(_ResNetFeatures(network), feature_dim, num_identities, neck=neck)


def _set_stride(block: nn.Module) -> None:
    if isinstance(block, Bottleneck):
        block.conv2.stride = (1, 1)
    elif isinstance(block, BasicBlock):
        block.conv1.stride = (1, 1)
    else:
        raise TypeError(f"expected a block of torchvision's ResNet, got {type(block).__name__}")
    block.stride = 1
    downsample: Any = block.downsample
    downsample[0].stride = (1, 1)


@torch.no_grad()
def _torchreid_backbone(name: str, size: tuple[int, int]) -> tuple[nn.Module, int]:
    models = torchreid_module("models")
    try:
        network = models.build_model(name, num_classes=2, loss="triplet", pretrained=False, use_gpu=False)
    except KeyError as error:
        raise ValueError(f"torchreid has no network {name!r}: {error.args[0]}") from error
    problem = f"torchreid's {name} does not give one feature vector per image before its classifier"
    if not isinstance(getattr(network, "classifier", None), nn.Linear):
        raise ValueError(f"{problem} (its classifier is not one linear layer); take another (osnet_x1_0)")
    network.classifier = nn.Identity()
    backbone = _TorchreidFeatures(network)
    images = torch.zeros(2, 3, *size)
    found = []
    for training in (True, False):
        trial = copy.deepcopy(backbone).train(training)  # a copy: BatchNorm statistics move
        try:
            features = trial(images)
        except Exception as error:
            raise ValueError(
                f"torchreid's {name} does not run on images of {size[0]} x {size[1]}: {error}"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            raise ValueError(f"{problem}; take another, for example osnet_x1_0")
        found.append(features.shape[1])
    if found[0] != found[1]:
        raise ValueError(f"{problem}: {found[0]} numbers in training and {found[1]} in evaluation")
    return backbone, found[0]
