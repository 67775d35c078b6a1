"""Detectron2's YAML files and `KEY VALUE` overrides, read without Detectron2.

The same files load in Detectron2 with the same result (a test shows it). Differences: loading is always safe
(no Python tags), a key given twice is an error, and a wrong key or value is explained.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

try:
    from yacs.config import CfgNode
except ImportError as error:
    raise ImportError("detection.config needs yacs: pip install 'keepaug[detection]'") from error

from detection.defaults import DEFAULTS, NOT_CARRIED
from keepaug.runs.configs import find_config
from keepaug.runs.errors import ConfigError
from keepaug.runs.shapes import read_yaml

BASE_KEY = "_BASE_"


class NotCarriedError(ConfigError):
    """A key that Detectron2's engine alone knows."""


class _StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses a key given twice (YAML forbids it; PyYAML keeps the last silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise ConfigError(f"{mark.name}, line {mark.line + 1}: the key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def defaults() -> CfgNode:
    """A fresh tree of all keys with Detectron2's default values."""
    return CfgNode(DEFAULTS)


def flat(cfg: CfgNode | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"SOLVER.BASE_LR": 0.02, ...}` of a tree."""
    return dict(_leaves(cfg, prefix))


def unfreeze(cfg: CfgNode) -> CfgNode:
    """A copy that may be changed."""
    copy = cfg.clone()
    copy.defrost()
    return copy


def load_config(
    path: str | Path | None, opts: Sequence[str] = (), *, known: CfgNode | None = None, check: bool = True
) -> CfgNode:
    """Defaults, then the file (with its `_BASE_`), then `KEY VALUE` pairs; frozen.

    Args:
        path: a YAML file in Detectron2's form, or None for the defaults alone.
        opts: `["SOLVER.BASE_LR", "0.01", ...]`, values as Python literals, as on Detectron2's command line.
        known: every key with its default: Detectron2's `get_cfg()` for its engine; None: `defaults()`.
        check: also run `check_values`.

    Raises:
        FileNotFoundError: the file or its base does not exist.
        ConfigError: not a safe YAML file; unknown key, wrong type, or a value that cannot be meant.
    """
    cfg = defaults() if known is None else known.clone()
    if path is not None:
        tree = _read(find_config(path), ())
        version = tree.get("VERSION", cfg.VERSION)
        if version != cfg.VERSION:
            raise ConfigError(
                f"{path}: VERSION is {version!r}, this program reads version {cfg.VERSION}; update the "
                "key names to Detectron2's present ones and set VERSION: 2"
            )
        for key, value in _leaves(tree):
            _set(cfg, key, value, str(path))
    if len(opts) % 2:
        raise ConfigError(f"overrides must be KEY VALUE pairs, got an odd number of items: {list(opts)}")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if "=" in key and key.partition("=")[0] in flat(cfg):
            name, _, given = key.partition("=")
            raise ConfigError(f"write '{name} {given}' with a blank, not '{key}'")
        _set(cfg, key, value, "command line")
    if check:
        check_values(cfg)
    cfg.freeze()
    return cfg


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, name + ".")
        else:
            yield name, value


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's tree over that of its bases."""
    path = path.expanduser()
    if path.resolve() in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"{BASE_KEY} goes in a circle: {chain}")
    if not path.is_file():
        where = f" (named by {BASE_KEY} of {seen[-1]})" if seen else ""
        raise FileNotFoundError(f"no config file {path}{where}")
    tree = read_yaml(path, _StrictLoader)
    bases = tree.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    bases = bases if isinstance(bases, list) else [bases]
    if wrong := [base for base in bases if not isinstance(base, str)]:
        raise ConfigError(
            f"{path}: {BASE_KEY} must be the name of a file or a list of them; got {wrong[0]!r}"
        )
    for base in bases:
        if "://" in base:
            raise ConfigError(f"{path}: {BASE_KEY} must be a file, got {base!r}; download it")
        base_path = Path(base).expanduser()
        _merge(_read(path.parent / base_path, (*seen, path.resolve())), merged, path)
    _merge(tree, merged, path)
    return merged


def _merge(source: dict[str, Any], target: dict[str, Any], path: Path, prefix: str = "") -> None:
    for key, value in source.items():
        if isinstance(value, dict) and key in target:
            if not isinstance(target[key], dict):
                raise ConfigError(f"{path}: {prefix}{key} is a branch here and a value in its {BASE_KEY}")
            _merge(value, target[key], path, f"{prefix}{key}.")
        else:
            target[key] = value


def _set(cfg: CfgNode, key: str, raw: Any, where: str) -> None:
    """Put one value into the tree, with yacs' own decoding of literals and its rules of type."""
    *branches, leaf = key.split(".")
    node: Any = cfg
    for branch in branches:
        node = node.get(branch) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or leaf not in node:
        raise _unknown_key(key, where, flat(cfg))
    old = node[leaf]
    if isinstance(old, CfgNode):
        raise ConfigError(f"{where}: {key} is a branch of keys ({', '.join(old)}), got the value {raw!r}")
    node[leaf] = _coerce(CfgNode._decode_cfg_value(raw), old, key, where)


def _coerce(value: Any, old: Any, key: str, where: str) -> Any:
    if old is None or type(value) is type(old) or (value is None and isinstance(old, str)):
        return value
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    remedy = ""
    if isinstance(old, float) and type(value) is int:
        remedy = f"; write {value}.0 (Detectron2 does not take a whole number here either)"
    elif isinstance(old, list | tuple):
        remedy = f"; write [{value}]"
    elif isinstance(old, str):
        remedy = f"; write '\"{value}\"'"
    raise ConfigError(
        f"{where}: {key} must be of type {type(old).__name__} (default {old!r}), "
        f"got {value!r} of type {type(value).__name__}{remedy}"
    )


def _unknown_key(key: str, where: str, known: dict[str, Any]) -> ConfigError:
    for prefix in NOT_CARRIED:
        if key == prefix or key.startswith(prefix + "."):
            return NotCarriedError(
                f"{where}: {key} is a key of Detectron2 that the torchvision engine does not know (Faster "
                "R-CNN C4/FPN and RetinaNet on ResNets only); remove it, or take --engine detectron2"
            )
    if not (close := difflib.get_close_matches(key.upper(), known, n=3, cutoff=0.75)):
        leaf = key.upper().rpartition(".")[2]
        close = [name for name in known if name.rpartition(".")[2] == leaf][:3]
    hint = f"; did you mean {' or '.join(close)}?" if close else "; see detection/defaults.py for all keys"
    return ConfigError(f"{where}: unknown key {key}{hint}")


def check_values(cfg: CfgNode) -> None:
    """Refuse values that train something else than meant, or fail hours later, in whatever engine.

    Raises:
        ConfigError: names the key, the value and the allowed values.
    """
    model, solver, inputs = cfg.MODEL, cfg.SOLVER, cfg.INPUT
    values = flat(cfg)

    def require(ok: bool, key: str, allowed: str) -> None:
        if not ok:
            raise ConfigError(f"{key} is {values[key]!r}; allowed: {allowed}")

    boxes = "boxes are what this program trains and scores"
    require(
        model.META_ARCHITECTURE in ("GeneralizedRCNN", "RetinaNet"),
        "MODEL.META_ARCHITECTURE",
        f"'GeneralizedRCNN', 'RetinaNet' ({boxes})",
    )
    for key in ("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "TEST.AUG.ENABLED"):
        require(not values.get(key), key, f"False ({boxes})")
    require(inputs.FORMAT in ("RGB", "BGR"), "INPUT.FORMAT", "'RGB', 'BGR'")
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        require(len(values[key]) == 3, key, "three numbers, in the order of INPUT.FORMAT")
    require(min(model.PIXEL_STD) > 0, "MODEL.PIXEL_STD", "numbers above 0")
    require(
        (max(model.PIXEL_MEAN) > 2) or max(model.PIXEL_MEAN) == 0,
        "MODEL.PIXEL_MEAN",
        "the mean on the 0-255 scale (for torchvision's weights [123.675, 116.28, 103.53] with RGB)",
    )
    require(0 <= model.BACKBONE.FREEZE_AT <= 5, "MODEL.BACKBONE.FREEZE_AT", "0 (nothing) to 5 (all stages)")
    for key in (
        "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES", "MODEL.RESNETS.NUM_GROUPS",
        "MODEL.RESNETS.WIDTH_PER_GROUP", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER",
        "SOLVER.CHECKPOINT_PERIOD", "TEST.DETECTIONS_PER_IMAGE",
    ):  # fmt: skip
        require(values[key] >= 1, key, "1 or more")
    require(solver.BASE_LR > 0, "SOLVER.BASE_LR", "above 0")
    steps = list(solver.STEPS)
    require(steps == sorted(steps), "SOLVER.STEPS", "iterations in rising order")
    sizes = inputs.MIN_SIZE_TRAIN
    require(
        len(sizes) > 0 and all(isinstance(size, int) and size >= 0 for size in sizes),
        "INPUT.MIN_SIZE_TRAIN",
        "one or more whole numbers of pixels, for example (640, 800)",
    )
    if inputs.MIN_SIZE_TRAIN_SAMPLING == "range":
        require(len(sizes) == 2, "INPUT.MIN_SIZE_TRAIN", "two numbers with MIN_SIZE_TRAIN_SAMPLING range")
