"""Networks that are no plain ResNet: told by their keys, or where these are the same by the file's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_ONLY = "only ResNets of torchvision's kind become backbones here"

_DEEP = (
    "a deep stem (ResNet-C, -D or timm's 'd' variants); Detectron2's ResNet has one 7 x 7 convolution: train "
    "the plain variant"
)

# (patterns, each in some key, what the file is): its ResNet is a part of something that changes or trained it
# for another purpose.
PART_OF: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            r"^(module\.)?(proposal_generator|roi_heads|rpn|fpn|head\.cls_subnet)\."
            r"|^(module\.)?backbone\.(fpn|bottom_up|body|0\.body)\.|(^|\.)(bbox_embed|bbox_predictor)\."
            r"|^(module\.)?(rpn_head|roi_head|bbox_head)\.",
        ),
        "these are the weights of a detector, not of a classifier; --reverse takes the backbone out of a "
        "Detectron2 file",
    ),
    (
        (r"^(module\.)?(aux_classifier|classifier\.0\.convs|decode_head|(decoder\.)?aspp)\.",),
        "a segmentation network (FCN, DeepLab), whose ResNet is dilated: its last stages have no stride, "
        "Detectron2's have",
    ),
)

# (patterns, each in some key, what the network is): the first of which all are found is the cause.
NO_RESNET: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"^res[2-5]\.\d+\.conv1\.",), "this is a Detectron2 backbone already; --reverse goes the way back"),
    (
        (r"^res\d_\d+_branch",),
        "a ResNet under Caffe2's names (Detectron2's own R-50.pkl), which is a Detectron2 backbone already: "
        "give it as MODEL.WEIGHTS as it is",
    ),
    # families, before the layers that they have in common
    (
        (r"(^|\.)visual\.(layer1|attnpool)\.",),
        "CLIP's ResNet, with three stem convolutions and attention pooling",
    ),
    ((r"(^|\.)visual\.(transformer|trunk|class_embedding|conv1)\b",), "CLIP's vision transformer"),
    (
        (r"(^|\.)stages\.0\.blocks\.0\.conv2\.weight|(^|\.)body\.block1\.unit01\.",),
        "ResNetV2 or BiT, with the norm before the convolution",
    ),
    ((r"(^|\.)stages\.\d+\.blocks\.\d+\.conv_mid\.|OSA\d_\d",), "VoVNet"),
    ((r"(^|\.)stage2\.\d+\.branches\.",), "HRNet"),
    ((r"(^|\.)layer1\.\d+\.convs\.\d",), "Res2Net, whose 3 x 3 convolutions are split in scales"),
    (
        (r"(^|\.)layer1\.\d+\.conv[12]\.(paths|attn)\.",),
        "SKNet, with selective kernels (attention in the blocks)",
    ),
    ((r"(^|\.)layer1\.\d+\.conv2\.(fc1|bn0)\.",), "ResNeSt, with split attention"),
    ((r"(^|\.)body\.layer1\.\d+\.conv1\.\d",), "TResNet"),
    ((r"(^|\.)layer1\.\d+\.bn\d\.(IN|BN)\.",), "IBN-Net, with instance norms"),
    ((r"(^|\.)layer\d\.\d+\.(conv2_offset|conv2\.conv_offset|conv2\.offset)",), "a deformable ResNet (DCN)"),
    ((r"\.filt$", r"(^|\.)layer1\.0\."), "an anti-aliased ResNet (BlurPool)"),
    (
        (r"(^|\.)layer1\.0\.conv1\.0\.weight$", r"(^|\.)stem\.0\.weight$"),
        "a network of videos (R3D, R(2+1)D)",
    ),
    ((r"(^|\.)(trunk_output\.block\d|s1\.b1\.)",), "RegNet"),
    ((r"(^|\.)denseblock1\.",), "DenseNet"),
    ((r"(^|\.)stage2\.0\.branch[12]\.",), "ShuffleNet"),
    (
        (r"(^|\.)(conv_stem\.|blocks\.0\.0\.conv_dw\.)|(^|\.)features\.\d+\.conv\.0\.0\.|_depthwise_conv\.",),
        "a network of MobileNet's or EfficientNet's kind",
    ),
    (
        (
            r"(^|\.)(stages\.\d+\.blocks\.\d+\.conv_dw|downsample_layers\.0)\."
            r"|(^|\.)features\.1\.0\.layer_scale$",
        ),
        "ConvNeXt or a network of its kind",
    ),
    ((r"(^|\.)(Conv2d_1a_3x3|Mixed_5b|inception3a|conv2d_1a)\.",), "Inception"),
    ((r"(^|\.)features\.\d+\.squeeze\.",), "SqueezeNet"),
    ((r"(^|\.)(base_layer\.0\.|level0\.)",), "DLA"),
    (
        (r"(^|\.)stages\.\d+\.(conv_down\.|\d+\.)",),
        "a network built of stages, as timm's CSPNet, NFNet and CLIP's ResNet are",
    ),
    ((r"(^|\.)mlp_tokens\.",), "an MLP-Mixer"),
    (
        (
            r"(^|\.)(cls_token|class_token|pos_embed|position_embeddings|patch_embed\w*|conv_proj|qkv)\b"
            r"|relative_position_bias_table|(^|\.)(blocks|layers?)\.\d+\.(self_)?(attn|attention)\.",
        ),
        "a transformer",
    ),
    ((r"(^|\.)features\.(3|6|7|8|10)\.weight$",), "VGG, AlexNet or another network of plain features"),
    # what a ResNet may have that Detectron2's has not
    (
        (
            r"(^|\.)(conv1\.\d+\.|stem\.\d+\.|stem\.conv\d\.)|^(conv[23]|conv1_\d)\.weight$",
            r"(^|\.)layer1\.0\.conv1\.|^conv1\.\d",
        ),
        _DEEP,
    ),
    (
        (r"(^|\.)layer\d\.\d+\.(se|se_module|eca|attn|gc|cbam|ca|sa|bam)\.",),
        "attention in the blocks (SE, ECA ...), which Detectron2's ResNet does not have",
    ),
    (
        (r"(^|\.)layer\d\.0\.downsample\.2\.",),
        "average-pooled shortcuts (ResNet-D), which Detectron2's ResNet does not have",
    ),
    # tensors in another form
    (
        (r"\.parametrizations\.|\.weight_(orig|mask|g|v|u)$",),
        "weights in a reparametrised form (pruning, weight or spectral norm); make it permanent "
        "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations) and save again",
    ),
    ((r"(^|\.)_?flat_param\b",), "FSDP's flat parameters; save with FULL_STATE_DICT"),
    (
        (r"\.(lora_[AB]|lora_down|lora_up)\b",),
        "LoRA's differences; merge them into the network and save again",
    ),
    (
        (r"(^|\.)conv1\.(scale|zero_point)$|_packed_params",),
        "quantised weights; export the floating-point network",
    ),
)


def part_of_another(keys: Iterable[str]) -> str | None:
    """What a file is whose ResNet is only a part of it: a detector, a segmenter; None if nothing is found.

    Args:
        keys: of its tensors, as they stand in the file.
    """
    return next((f"{key}: {what}" for key, what in _matches(keys, PART_OF)), None)


def other_network(keys: Iterable[str]) -> str | None:
    """What a file is that is no plain ResNet, with the key that tells; None if nothing is found.

    Args:
        keys: of its tensors.
    """
    for key, what in _matches(keys, NO_RESNET):
        explained = ";" in what or "Detectron2" in what
        return f"{key}: {what}" if explained else f"{key}: {what}, not a plain ResNet; {_ONLY}"
    return None


def _matches(
    keys: Iterable[str], table: tuple[tuple[tuple[str, ...], str], ...]
) -> Iterable[tuple[str, str]]:
    keys = list(keys)
    for patterns, what in table:
        found = [next((key for key in keys if re.search(pattern, key)), None) for pattern in patterns]
        if found[0] is not None and None not in found:
            yield found[0], what


_NAME_KEYS = (
    "arch", "architecture", "architectures", "model", "model_name", "model_arch", "backbone",
    "backbone_name", "network", "net", "encoder", "encoder_name", "base_model", "base_encoder", "base_arch",
    "trunk", "model_type",
)  # fmt: skip
_HOLDERS = (
    "args", "hyper_parameters", "hparams", "config", "cfg", "meta", "opt", "params", "settings",
    "model_args", "pretrained_cfg", "provenance", "spec", "options", "backbone", "model",
    "classy_state_dict",
)  # fmt: skip
# Settings that change the features and not the keys: name -> the values of torchvision's ResNet.
_PLAIN_SETTINGS: dict[str, tuple[Any, ...]] = {
    "last_stride": (2,),
    "output_stride": (32, None),
    "replace_stride_with_dilation": (None, False, [], [False, False, False]),
    "dilated": (False, None),
    "dilations": (None, [1, 1, 1, 1]),
    "strides": (None, [1, 2, 2, 2]),
    "aa_layer": (None, "", False),
    "stride_in_1x1": (False, None),
    "style": (None, "pytorch"),
    "downsample_in_bottleneck": (False, None),
    "deep_stem": (False, None),
    "avg_down": (False, None),
    "first_relu": (True, None),
    "stem": (None, "imagenet"),
}


def named_architectures(info: Any, depth: int = 3) -> list[tuple[str, str]]:
    """(where, name) of everything in a file's own words that may be an architecture.

    Args:
        info: plain values: numbers, strings, lists, dictionaries.
        depth: how deep to look.
    """
    return [(where, name) for where, name in _walk(info, _NAME_KEYS, depth) if isinstance(name, str)]


def _walk(info: Any, wanted: Iterable[str], depth: int, where: str = "") -> list[tuple[str, Any]]:
    if not isinstance(info, Mapping) or depth < 0:
        return []
    found = []
    for key, value in info.items():
        first = value[0] if key == "architectures" and isinstance(value, list) and value else value
        if key in wanted:
            found.append((f"{where}{key}", first))
        if key in _HOLDERS:
            found += _walk(value, wanted, depth - 1, f"{where}{key}.")
    return found


# Attached to "resnet" these make another network, most of them with a plain ResNet's keys.
_ATTACHED = {
    "aa": "anti-aliased by average pooling", "blur": "anti-aliased by blur pooling", "rs": "ResNet-RS",
    "v2": "ResNetV2", "preact": "ResNetV2", "se": "with attention", "eca": "with attention",
    "sk": "with attention", "legacyse": "with attention", "nf": "another network", "csp": "another network",
    "t": "another network", "gc": "with attention", "i": "another network", "ir": "another network",
    "x": "another network", "d": "a deep stem or dilated", "drn": "dilated", "v1c": "of a deep stem",
    "v1d": "of a deep stem", "v1s": "of a deep stem", "v1e": "of a deep stem", "cs": "another network",
}  # fmt: skip
_BESIDE = {
    "aa": "anti-aliased", "blur": "anti-aliased", "antialiased": "anti-aliased", "lpf": "anti-aliased",
    "dilated": "dilated", "dilation": "dilated", "atrous": "dilated", "os8": "dilated", "os16": "dilated",
    "d8": "dilated", "d16": "dilated", "dc5": "dilated",
    "caffe": "with its strides in the 1 x 1 convolutions",
    "msra": "with its strides in the 1 x 1 convolutions", "v1c": "of a deep stem", "v1d": "of a deep stem",
    "v1s": "of a deep stem", "v1e": "of a deep stem", "v2": "ResNetV2", "vd": "of a deep stem",
    "vc": "of a deep stem", "ibn": "with instance norms", "dcn": "deformable", "gelu": "with GELU",
    "silu": "with SiLU", "swish": "with SiLU", "elu": "with ELU", "leaky": "with leaky ReLU",
    "mish": "with Mish", "frelu": "with FReLU", "prelu": "with PReLU", "ws": "with standardised weights",
    "gn": "with group norms", "nf": "without norms", "eca": "with attention", "gc": "with attention",
    "quantized": "quantised", "clip": "CLIP's", "fpn": "a detector", "deeplabv3": "dilated",
    "fcn": "dilated", "pspnet": "dilated",
}  # fmt: skip
_IN_FILE_NAMES = (
    "aa", "blur", "antialiased", "lpf", "dilated", "atrous", "os8", "os16", "caffe", "msra", "ibn",
)  # fmt: skip
_FAMILIES = {
    "vit", "deit", "swin", "beit", "cait", "xcit", "convnext", "convmixer", "efficientnet", "mobilenet",
    "densenet", "vgg", "alexnet", "squeezenet", "shufflenet", "mnasnet", "regnet", "regnetx", "regnety",
    "hrnet", "vovnet", "dla", "resnest", "skresnext", "seresnext", "inception", "googlenet", "xception",
    "nfnet", "dpn", "darknet", "cspresnet", "cspdarknet", "senet", "drn", "maxvit", "coatnet", "poolformer",
    "ghostnet", "levit", "tresnet", "mixer", "wrn", "pyramidnet", "bit", "eva", "dinov2",
}  # fmt: skip


def contradiction(info: Any, file_name: str, *, depth: int, usual_name: str) -> str | None:
    """Why a file is not the plain ResNet that its shapes tell; None if nothing speaks against it.

    Args:
        info: what the file says of itself, plain values.
        file_name: without folders; it counts only where it names a ResNet of another kind.
        depth: told from the shapes.
        usual_name: of the ResNet told from the shapes.
    """
    for where, value in _walk(info, _PLAIN_SETTINGS, 3):
        plain = _PLAIN_SETTINGS[where.rpartition(".")[2]]
        if not any(type(value) is type(one) and value == one for one in plain):
            return (
                f"the file says {where} is {value!r}, a plain ResNet's is {plain[0]!r}: another network with "
                f"{usual_name}'s names and shapes, whose features would differ; train the plain one"
            )
    stem = re.split(r"\.|-[0-9a-f]{8}", file_name)[0]
    for where, name in [*named_architectures(info), ("its own name", stem)]:
        if why := _differs(name, depth, of_file=where == "its own name"):
            return (
                f"the file names {name!r} ({where}), {why}; its tensors have {usual_name}'s names and "
                "shapes, but other features would come out: train the plain one, or say --arch if the name "
                "is wrong"
            )
    return None


def _differs(name: str, depth: int, *, of_file: bool) -> str | None:
    """What other network a name stands for; None for this ResNet and for names that say nothing."""
    plain = name.strip().rpartition("/")[2].rpartition(":")[2].partition(".")[0].lower()
    plain = re.sub(r"\d+x\d+d", "", plain)  # ResNeXt's width
    match = re.search(
        r"([a-z]*)res_?ne[x]?t(?:[_\- ]?(v\d[a-z]?)|([a-z]*))[_\- ]?(\d{2,4})?([a-z]?)(?![a-z])", plain
    )
    words = set(re.findall(r"v\d[a-z]?|os\d+|d\d+|dc5|deeplabv3|[a-z]+", plain))
    if match is None:
        if re.search(r"res2ne[x]?t", plain):
            return "Res2Net"
        return None if of_file or not words & _FAMILIES else "which is no ResNet"
    before, version, attached, number, after = match.groups()
    for part in (before, version, attached):
        if part in _ATTACHED and (not of_file or part in ("aa", "blur", "d")):
            return _ATTACHED[part]
    for word in sorted(words & _BESIDE.keys()):
        if not of_file or word in _IN_FILE_NAMES:
            return _BESIDE[word]
    if of_file:
        return None
    if after in ("c", "d", "s", "t", "e"):
        return "of a deep stem"
    return f"of depth {number}" if number and int(number) != depth else None
