"""torchvision's ResNet as a detector's backbone: C4, FPN, and RetinaNet's FPN."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detection.architecture import Architecture

_STAGES = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


def architecture_of(cfg: Any) -> Architecture:
    """Of the config's MODEL.RESNETS."""
    resnets = cfg.MODEL.RESNETS
    return Architecture(resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP)


def stage_channels(cfg: Any) -> dict[str, int]:
    """Output channels of res2 to res5."""
    first = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
    return {name: first * 2**index for index, name in enumerate(_STAGES)}


def build_resnet(cfg: Any) -> ResNet:
    """The whole network, norms and strides as the config says, initialised as Detectron2 does."""
    network = architecture_of(cfg).build()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Bottleneck) and cfg.MODEL.RESNETS.STRIDE_IN_1X1:
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        freeze_norms(network)
    return network


def freeze_norms(module: nn.Module) -> None:
    """BatchNorm to frozen BatchNorm, weights and statistics kept."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            state = {key: value for key, value in child.state_dict().items() if key != "num_batches_tracked"}
            frozen.load_state_dict(state)
            setattr(module, name, frozen)
        else:
            freeze_norms(child)


class Backbone(nn.Module):
    """Feature maps by Detectron2's names, for a config.

    Args:
        network: from `build_resnet`; its layer4 is not used for C4 (it becomes the head).
        cfg: the config.
    """

    def __init__(self, network: ResNet, cfg: Any) -> None:
        super().__init__()
        self.out_features = list(cfg.MODEL.RESNETS.OUT_FEATURES)
        last = max(self.out_features)
        self.body = nn.ModuleDict({"conv1": network.conv1, "bn1": network.bn1})
        self.relu, self.maxpool = network.relu, network.maxpool
        for name, layer in _STAGES.items():
            if name <= last:
                self.body[layer] = getattr(network, layer)
        self._freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
        self.fpn: FeaturePyramidNetwork | None = None
        self.in_features: list[str] = []
        if "fpn" in cfg.MODEL.BACKBONE.NAME:
            self.in_features = list(cfg.MODEL.FPN.IN_FEATURES)
            channels = [stage_channels(cfg)[name] for name in self.in_features]
            width = cfg.MODEL.FPN.OUT_CHANNELS
            retinanet = "retinanet" in cfg.MODEL.BACKBONE.NAME
            extra = LastLevelP6P7(channels[-1], width) if retinanet else LastLevelMaxPool()
            if retinanet:
                extra.use_P5 = False  # Detectron2 makes P6 from C5 whatever its width
            self.fpn = FeaturePyramidNetwork(channels, width, extra_blocks=extra)
            levels = [name.replace("res", "p") for name in self.in_features]
            self.names = [*levels, "p6", "p7"] if retinanet else [*levels, "p6"]
        else:
            self.names = self.out_features

    def _freeze(self, freeze_at: int) -> None:
        parts = [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]][:freeze_at]
        for name in [name for part in parts for name in part if name in self.body]:
            holder = nn.ModuleDict({name: self.body[name]})
            freeze_norms(holder)
            self.body[name] = holder[name]
            self.body[name].requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        """What the input's sides must be multiples of."""
        return 32 if self.fpn is not None else 1

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of (N, 3, H, W) normalised images."""
        features = self.maxpool(self.relu(self.body["bn1"](self.body["conv1"](images))))
        found: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in _STAGES.items():
            if layer not in self.body:
                break
            features = self.body[layer](features)
            if name in self.out_features:
                found[name] = features
        if self.fpn is None:
            return found
        pyramid = self.fpn(OrderedDict((name, found[name]) for name in self.in_features))
        return dict(zip(self.names, pyramid.values(), strict=True))
