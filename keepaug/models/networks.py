"""Networks by name: the paper's for small images, torchvision's and timm's.

Names are checked without torch, which is imported when a network is built.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepaug.choices import STEMS

if TYPE_CHECKING:
    from torch import nn

# What can become a Detectron2 backbone.
ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101")
# The networks of the paper's tables for CIFAR-10, beside resnet18.
PAPER = ("resnet110", "wrn28_10", "wrn28_2", "shake_shake_26_2x32d", "shake_shake_26_2x96d", "pyramidnet272")
# The depths of He et al. without those that are torchvision's; 8 and 14 to try things out.
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)
# For experiments with many seeds.
FAST = ("lab", "lab_large")

# The numbers of a name, in their order, are the first arguments; a missing one is 0.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (rf"resnet({'|'.join(map(str, CIFAR_DEPTHS))})", "keepaug.models.cifar_resnet:cifar_resnet"),
    (r"wrn(\d+)_(\d+)", "keepaug.models.wide_resnet:wide_resnet"),
    (r"shake_shake_(\d+)_2x(\d+)d", "keepaug.models.shake_shake:shake_shake_network"),
    (r"pyramidnet(\d+)(?:_a(\d+))?", "keepaug.models.pyramid_net:pyramid_net"),
)


def check_arch(arch: str) -> None:
    """Refuse names that `build_network` does not know.

    Raises:
        ValueError: with the closest names.
        ImportError: a timm name without timm.
    """
    source, _, name = arch.rpartition(":")
    if source == "timm":
        import_timm()
        known = _timm_names()
        found = name.partition(".")[0] in known
    elif source == "torchvision":
        known = _torchvision_names()
        found = name in known
    else:
        known = [*ARCHITECTURES, *PAPER, *FAST]
        found = arch in (*ARCHITECTURES, *FAST) or any(re.fullmatch(one, arch) for one, _ in _PATTERNS)
    if found:
        return
    if source in ("timm", "torchvision"):
        close = [f"{source}:{one}" for one in difflib.get_close_matches(name, known, n=3)]
    else:
        elsewhere = [f"torchvision:{arch}"] if arch in _torchvision_names() else []
        close = elsewhere + difflib.get_close_matches(arch, known, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"arch must be one of {', '.join(ARCHITECTURES)}, {', '.join(PAPER)}, another depth or width of "
        f"these, {', '.join(FAST)}, torchvision:NAME or timm:NAME, got {arch!r}{hint}"
    )


def build_network(
    arch: str,
    num_classes: int,
    *,
    stem: str = "imagenet",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    drop_block: float = 0.0,
    **options: Any,
) -> nn.Module:
    """A network with random weights.

    Args:
        arch: a ResNet of torchvision (`ARCHITECTURES`); for small images `resnet110` (20, 32, 44, 56, 1202),
            `wrn28_10`, `shake_shake_26_2x32d`, `pyramidnet272` (alpha 200; `pyramidnet110_a48`) and the like
            with other depths and widths; `lab` and `lab_large`, which learn CIFAR-10 in minutes; any
            classification network as `torchvision:NAME` or `timm:NAME`.
        num_classes: size of the output.
        stem: "imagenet" (7 x 7 stride 2 and max pooling), or "cifar" (3 x 3 stride 1, no pooling, and
            PyTorch's own initialisation of convolutions, whose standard deviation is about 0.6 of
            torchvision's for ResNets), as the ResNet-18 of Cutout's released code; for torchvision's ResNets.
            Only the former can become a Detectron2 backbone.
        dropout: in the blocks of torchvision's ResNets (`drop_resnet`) and Wide ResNets; timm's `drop_rate`.
        drop_path: in torchvision's ResNets; timm's `drop_path_rate`.
        drop_block: in torchvision's ResNets; timm's `drop_block_rate`.
        options: of the architecture: `shortcut` of Wide ResNets and of ResNet-110, `shake_drop` of
            PyramidNets, what torchvision's and timm's functions take.

    Raises:
        ValueError: unknown architecture (with close names), stem or option, fewer than one class.
        ImportError: timm is needed and not installed.
    """
    check_arch(arch)
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
    drops = {"dropout": dropout, "drop_path": drop_path, "drop_block": drop_block}
    options = {**{name: value for name, value in drops.items() if value}, **options}
    try:
        network = _build(arch, num_classes, options)
    except TypeError as error:
        if not options or "argument" not in str(error):
            raise
        raise ValueError(f"{arch} does not take these options: {options} ({error})") from error
    if stem == "cifar":
        _use_cifar_stem(network, arch)
    return network


def _build(arch: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    if arch in FAST:
        from keepaug.models.lab import lab_network

        return lab_network(arch, num_classes, **options)
    for pattern, builder in _PATTERNS:
        if match := re.fullmatch(pattern, arch):
            build = pkgutil.resolve_name(builder)
            return build(*(int(group) for group in match.groups("0")), num_classes, **options)
    source, _, name = arch.rpartition(":")
    if source == "timm":
        names = {"dropout": "drop_rate", "drop_path": "drop_path_rate", "drop_block": "drop_block_rate"}
        renamed = {names.get(key, key): value for key, value in options.items()}
        return import_timm().create_model(name, pretrained=False, num_classes=num_classes, **renamed)
    from torchvision import models

    from keepaug.models.drop_resnet import drop_resnet

    if source == "torchvision":
        if name in ("googlenet", "inception_v3"):  # their own heads would change what the network returns
            options = {"aux_logits": False, "init_weights": True, **options}
    elif set(options) & {"dropout", "drop_path", "drop_block"}:
        return drop_resnet(arch, num_classes, **options)
    return models.get_model_builder(name)(weights=None, num_classes=num_classes, **options)


def _use_cifar_stem(network: nn.Module, arch: str) -> None:
    from torch import nn
    from torchvision.models import ResNet

    if isinstance(network, ResNet):
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        network.maxpool = nn.Identity()  # type: ignore[assignment]
    elif ":" in arch:
        raise ValueError(f"stem=cifar is for torchvision's ResNets, got {arch}: set stem=imagenet")


def import_timm() -> Any:
    """The timm package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError("networks named timm:NAME need timm: pip install timm") from error
    return timm


def _timm_names() -> list[str]:
    return list(import_timm().list_models())


@functools.cache
def _torchvision_names() -> list[str]:
    """As `torchvision.models.list_models` has them, read off its files: to import it takes two seconds."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    files = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    return [name for file in files for name in re.findall(_REGISTERED, file.read_text())]


_REGISTERED = r"@register_model\(\)\n(?:@.*\n)*def (\w+)\("
