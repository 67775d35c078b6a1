"""The audited network, from a file or a name: what gives logits, and what it wants as input.

Files are data here: weights are read with `weights_only`, TorchScript by its own reader (which builds tensors
and TorchScript's classes, and runs TorchScript alone), a torch.export archive only when nothing in it could
start a program. `module:function` is the user's own code and is run.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepaug.audit.foreign import load_object
from keepaug.choices import IMAGENET_MEAN, IMAGENET_STD
from keepaug.models.networks import build_network, import_timm
from keepaug.models.weights import Classifier, load_classifier, misfit_of
from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.files import sha256_of
from keepaug.runs.shapes import check_shape, read_yaml

_UNKNOWN = "what the network expects is not known: give mean, std ({known}) and size"


@dataclass(frozen=True)
class AuditedNetwork:
    """A classifier and what it wants.

    Attributes:
        module: (N, 3, H, W) normalised images to (N, classes) logits.
        mean: of the normalisation, RGB in [0, 1].
        std: of it.
        size: side of its images in pixels; None: as the images are.
        classes: names in the order of the logits, or None.
        name: for people.
        identity: checksum of what it computes, for the cache; None: unknown.
    """

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None
    classes: list[str] | None
    name: str
    identity: str | None


def open_network(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
) -> AuditedNetwork:
    """The network that a string names.

    Args:
        spec: weights.pt or checkpoint.pt of a run of ours; `torchvision:NAME` or `timm:NAME` with weights; a
            TorchScript or torch.export file; `module:function` (or a network object) of the user's code.
        weights: state dict (.pt, .pth, .safetensors) for `torchvision:` and `timm:`, "DEFAULT" to download
            theirs, or "RANDOM" for an untrained network.
        mean: instead of what the file says.
        std: instead of what the file says.
        size: instead of what the file says, in pixels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, weights that do not fit, or what the network expects is not known.
        ImportError: timm is needed and missing.
    """
    text = str(spec)
    path = Path(text).expanduser()
    source = text.partition(":")[0]
    if source in ("torchvision", "timm"):
        if weights is None:
            raise ValueError(
                f"{text} needs weights: a state dict's file, DEFAULT to download {source}'s own, or RANDOM "
                "for an untrained network"
            )
        found = _named(text, weights)
    elif path.is_file():
        if weights is not None:
            raise ValueError(f"{text} is a file and has its weights; leave weights={weights} out")
        found = _from_file(path)
    elif ":" in text and not path.suffix:
        found = _from_code(text)
    else:
        raise FileNotFoundError(
            f"no file {text}; a network is a weights.pt, a TorchScript or torch.export file, "
            "torchvision:NAME, timm:NAME or module:function"
        )
    return _completed(found, mean, std, size)


def wrap_network(
    model: nn.Module | Callable[[Tensor], Tensor],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    classes: Sequence[str] | None = None,
) -> AuditedNetwork:
    """A network of the caller's: any differentiable callable from normalised images to logits.

    Raises:
        ValueError: mean and std were not given, or nothing that can be called.
    """
    if not callable(model):
        raise ValueError(f"a network is called with images; got {type(model).__name__}")
    module = model if isinstance(model, nn.Module) else _Called(model)
    identity = _state_checksum(module) if isinstance(model, nn.Module) else None
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "function")
    found = AuditedNetwork(module, (), (), None, list(classes) if classes else None, name, identity)
    return _completed(found, mean, std, size)


class _Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class _FixedBatch(nn.Module):
    """An exported program that was traced with one batch size."""

    def __init__(self, module: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.module, self.batch_size = module, batch_size

    def forward(self, images: Tensor) -> Tensor:
        parts = []
        for part in images.split(self.batch_size):
            missing = self.batch_size - len(part)
            full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            parts.append(self.module(full)[: len(part)])
        return torch.cat(parts)


def _completed(
    found: AuditedNetwork, mean: Sequence[float] | None, std: Sequence[float] | None, size: int | None
) -> AuditedNetwork:
    if (mean is None and not found.mean) or (std is None and not found.std):
        imagenet = " and ".join(",".join(map(str, three)) for three in (IMAGENET_MEAN, IMAGENET_STD))
        raise ValueError(
            f"{found.name}: the normalisation that the network was trained with is not known: give mean and "
            f"std, RGB in [0, 1] (ImageNet's are {imagenet}; 0,0,0 and 1,1,1 for none)"
        )
    if size is not None and not 8 <= size <= 4096:
        raise ValueError(f"size is the side of the network's images in pixels, 8 to 4096, got {size}")
    values = []
    for name, given, known in (("mean", mean, found.mean), ("std", std, found.std)):
        three = tuple(float(value) for value in (given if given is not None else known))
        if len(three) != 3 or (name == "std" and min(three) <= 0) or max(map(abs, three)) > 10:
            raise ValueError(f"{name} must be three numbers, RGB in [0, 1], got {three}")
        values.append(three)
    return replace(found, mean=values[0], std=values[1], size=size or found.size)


def _from_code(text: str) -> AuditedNetwork:
    found = load_object(text)
    if not isinstance(found, nn.Module) and callable(found):
        try:
            found = found()
        except TypeError as error:
            raise ValueError(
                f"{text} must be callable without arguments and return the network ({error})"
            ) from error
    if not callable(found):
        raise ValueError(f"{text} gave {type(found).__name__}, expected a network")
    config = getattr(found, "pretrained_cfg", None) or {}
    side = config.get("input_size", (3, None, None))[-1]
    wrapped = found if isinstance(found, nn.Module) else _Called(found)
    identity = _state_checksum(wrapped) if isinstance(found, nn.Module) else None
    mean, std = tuple(config.get("mean", ())), tuple(config.get("std", ()))
    return AuditedNetwork(wrapped, mean, std, side, None, text, identity)


def _named(text: str, weights: str | Path) -> AuditedNetwork:
    source, _, name = text.partition(":")
    if source == "torchvision":
        import torchvision

        try:
            enum = torchvision.models.get_model_weights(name)
        except ValueError:
            build_network(text, 10)  # names the closest ones
            raise
        default = enum["DEFAULT"]
        preset = default.transforms()
        mean, std, side = tuple(preset.mean), tuple(preset.std), int(preset.crop_size[0])
        classes, downloaded = list(default.meta["categories"]), default.get_state_dict
    else:
        timm = import_timm()
        build_network(f"timm:{name.partition('.')[0]}", 10)
        mean, std, side, classes = IMAGENET_MEAN, IMAGENET_STD, 224, None
        if (config := timm.get_pretrained_cfg(name)) is not None:
            mean, std, side = tuple(config.mean), tuple(config.std), int(config.input_size[-1])

        def downloaded(**kwargs: Any) -> dict[str, Tensor]:
            return timm.create_model(name, pretrained=True).state_dict()

    if str(weights) == "RANDOM":
        module = build_network(text, len(classes) if classes else 1000)
        return AuditedNetwork(module, mean, std, side, classes, f"{text}, untrained", _state_checksum(module))
    if str(weights) == "DEFAULT":
        try:
            state, label = downloaded(progress=False), f"{text}, its own weights"
        except Exception as error:  # each library's hub raises its own
            raise ValueError(
                f"{source}'s own weights of {name} cannot be downloaded ({type(error).__name__}); "
                "give their file as weights"
            ) from error
    else:
        state, label = _read_state(Path(weights).expanduser()), f"{text}, {Path(weights).name}"
    module = _fitting(text, state, weights)
    if classes is not None and _num_outputs(module) != len(classes):
        classes = None
    return AuditedNetwork(module, mean, std, side, classes, label, _state_checksum(module))


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}; DEFAULT downloads them, RANDOM takes untrained ones")
    content = read_weights_only(path)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict (names and tensors), but a {type(content).__name__}")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _fitting(text: str, state: dict[str, Tensor], weights: str | Path) -> nn.Module:
    """The network with as many classes as the last matrix of the weights has rows."""
    matrices = [value for key, value in state.items() if value.ndim in (2, 4) and key.endswith("weight")]
    if not matrices:
        raise ValueError(f"{weights} has no weight matrices; it is no classifier's state dict")
    module = build_network(text, len(matrices[-1]))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {text}: {misfit_of(error)}") from error
    return module


def _num_outputs(module: nn.Module) -> int | None:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    last = layers[-1] if layers else None
    if isinstance(last, nn.Linear):
        return last.out_features
    return last.out_channels if isinstance(last, nn.Conv2d) else None


def _state_checksum(module: nn.Module) -> str:
    digest = hashlib.sha256(repr(type(module)).encode())
    for key, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _from_file(path: Path) -> AuditedNetwork:
    kind = _kind_of(path)
    if kind != "weights":
        module = _load_torchscript(path) if kind == "TorchScript" else _load_exported(path)
        return AuditedNetwork(module, (), (), None, None, f"{path.name} ({kind})", sha256_of(path)[:32])
    content = read_weights_only(path)
    if isinstance(content, dict) and {"arch", "classes", "mean", "std"} <= content.keys():
        loaded = load_classifier(path)
        module, checksum = loaded.network, _state_checksum(loaded.network)
        classes = list(loaded.classes)
        side = _side_of(loaded)
        return AuditedNetwork(module, loaded.mean, loaded.std, side, classes, _run_name(path), checksum)
    if isinstance(content, dict) and {"model", "step"} <= content.keys():
        return _from_checkpoint(path, content)
    raise ValueError(
        f"{path} is no network: a state dict alone does not say of which; give torchvision:NAME or timm:NAME "
        "with these weights, or module:function"
    )


def _side_of(loaded: Classifier) -> int | None:
    """Of the images that a run brought to one size; None: it took them as they are."""
    recipe = loaded.provenance.get("recipe")
    side = recipe.get("image_size") if isinstance(recipe, dict) else None
    return side if isinstance(side, int) and 8 <= side <= 4096 else None


def _run_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def _from_checkpoint(path: Path, content: dict[str, Any]) -> AuditedNetwork:
    """A checkpoint of a run; what its network is stands in the weights.pt or config.yaml beside it."""
    check_shape(content, {"model": {str: Any}, str: Any}, path)
    beside = path.parent / "weights.pt"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    side, classes = None, None
    if beside.is_file():
        like = load_classifier(beside)
        side = _side_of(like)
        module, mean, std, classes = like.spec.build(), like.mean, like.std, list(like.classes)
    else:
        file = path.parent / "config.yaml"
        config = read_yaml(file) if file.is_file() else {}
        matrices = [one for one in content["model"].values() if isinstance(one, Tensor) and one.ndim == 2]
        if "arch" not in config or not matrices:
            raise ValueError(
                f"{path} is a checkpoint and needs its run's weights.pt or config.yaml beside it"
            )
        check_shape(config, {"arch": str, "stem?": str, str: Any}, file)
        options = {"stem": config["stem"]} if "stem" in config else {}
        module = build_network(config["arch"], len(matrices[-1]), **options)
    state = {
        key.removeprefix("network."): value
        for key, value in content["model"].items()
        if not key.startswith("head.") or not any(name.startswith("network.") for name in content["model"])
    }
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its run's network: {misfit_of(error)}") from error
    name = f"{_run_name(path)}, step {content['step']}"
    return AuditedNetwork(module, mean, std, side, classes, name, _state_checksum(module))


def _kind_of(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:  # none, or a damaged one, whose reader says so
        return "weights"
    if any("/code/" in f"/{name}" for name in names):
        return "TorchScript"
    if any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in names):
        return "torch.export"
    return "weights"


def _load_torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated, and what people have
            return torch.jit.load(path, map_location="cpu")  # type: ignore[no-any-return, no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as TorchScript ({str(error).splitlines()[0]})") from error


# What torch writes into the expressions of a program's sizes; they are evaluated as Python when it is read.
_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(?:, \w+=(?:True|False))*\)")
_WORDS = re.compile(
    r"[a-z]+\d+|Integer|Rational|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|Where|"
    r"Max|Min|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|Equality|"
    r"Unequality|True|False|true|false|oo|int_oo"
)
_OPERATORS = ("torch.ops.", "_operator.", "math.", "torch.sym_", "torch._sym_")
_PLAIN = re.compile(r"[\w\s+\-*/(),<>=&|~.]*")


def _is_size(expression: str) -> bool:
    plain = _SYMBOL.sub("s0", expression)
    return bool(_PLAIN.fullmatch(plain)) and all(map(_WORDS.fullmatch, re.findall(r"[A-Za-z_]\w*", plain)))


def _refuse_programs(path: Path) -> None:
    """Raise unless a torch.export archive is data alone.

    torch.export.load falls back to full unpickling for parts that restricted unpickling refuses, evaluates
    size expressions, and looks the called functions up by name.

    Raises:
        ValueError: a part that needs unpickling, an expression not of sizes, or a call of no operator.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".json"):
                try:
                    _refuse_code(json.loads(content), path)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}: {name} is damaged ({error})") from error
            elif content[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                _refuse_pickles(content, name, path)


def _refuse_pickles(content: bytes, name: str, path: Path) -> None:
    if content[:2] != b"PK" and "/weights/" in name:
        return  # raw numbers, which begin as they like; those that are pickled are torch.save's archives
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types
        raise ValueError(
            f"{path} is refused: {name} in it can only be read by full unpickling, which may run any "
            "program; export the network without custom objects"
        ) from error


def _refuse_code(content: Any, path: Path) -> None:
    if isinstance(content, dict):
        target = content.get("target")
        if "outputs" in content and isinstance(target, str) and not target.startswith(_OPERATORS):
            raise ValueError(f"{path} is refused: {target[:60]!r}, which it calls, is no operator of torch")
        expression = content.get("expr_str")
        if isinstance(expression, str) and not _is_size(expression):
            raise ValueError(f"{path} is refused: the size expression {expression[:60]!r} in it is no size")
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            _refuse_code(value, path)


def _load_exported(path: Path) -> nn.Module:
    _refuse_programs(path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many types for a damaged or foreign archive
        raise ValueError(
            f"{path} cannot be read by this torch.export ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); export it again with the installed torch"
        ) from error
    # Guards are Python code in the file; torch before 2.9 has none.
    guarded = "check_guards" in inspect.signature(program.module).parameters
    module = program.module(**({"check_guards": False} if guarded else {}))
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    users = set(program.graph_signature.user_inputs)
    first = next((node.meta["val"].shape[0] for node in inputs if node.name in users), None)
    return _FixedBatch(module, first) if isinstance(first, int) else module
