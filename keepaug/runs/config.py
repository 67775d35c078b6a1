"""Typed settings: dataclasses filled from YAML and `key=value`, every mistake an error that says what to
write.

@dataclass
class Settings:
    epochs: int = option(300, low=1, help="passes over the training images")
    log_every: int = option(50, low=1, help="steps", bookkeeping=True)

settings = load_config(Settings, "configs/classify/cifar10.yaml", ["epochs=10"])

A field knows what it is: bookkeeping, how something is computed, or a part of the recipe, and then whose.
Resuming, grouping and comparing with the paper all ask the field (`recipe_of`, `changed_settings`); nothing
else lists keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from keepaug.runs.configs import find_config
from keepaug.runs.errors import ConfigError, UnknownKeyError
from keepaug.runs.shapes import read_yaml

try:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
except ImportError as error:
    raise ImportError("keepaug.runs.config needs omegaconf: pip install 'keepaug[classify]'") from error

Settings = TypeVar("Settings")
BASE_KEY = "_base_"
_LARGEST = 2**63 - 1  # whole number that a tensor holds


def option(
    default: Any,
    *,
    help: str = "",
    choices: Collection[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    bookkeeping: bool = False,
    precision: bool = False,
    used_by: Sequence[str] = (),
) -> Any:
    """A dataclass field with its allowed values (inclusive bounds; for lists, of each element).

    Args:
        default: of the field.
        help: what it means, and its unit.
        choices: allowed values.
        low: smallest allowed number.
        high: largest allowed number.
        bookkeeping: where or how comfortably a run goes; it may change on resume and is no part of the run's
            identity.
        precision: how numbers are computed: it tells runs apart and stands beside their figures, but a recipe
            of the paper does not name it.
        used_by: the methods, algorithms or traits that use the setting, as `users()` of the settings names
            them; nothing means always.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "low": low,
        "high": high,
        "bookkeeping": bookkeeping,
        "precision": precision,
        "used_by": tuple(used_by),
    }
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _in_use(settings: Any, field: dataclasses.Field[Any]) -> bool:
    used_by = field.metadata.get("used_by")
    return not used_by or not hasattr(settings, "users") or bool(settings.users() & set(used_by))


def recipe_of(settings: Any) -> dict[str, Any]:
    """What decides a run's figures but its seed: no bookkeeping, no precision, nothing that the method does
    not use.
    """
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name != "seed"
        and not field.metadata.get("bookkeeping")
        and not field.metadata.get("precision")
        and _in_use(settings, field)
    }


def precision_of(settings: Any) -> dict[str, Any]:
    """The settings that say how numbers are computed."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.metadata.get("precision")
    }


def changed_settings(before: Mapping[str, Any], settings: Any) -> list[str]:
    """What a continuation would change of the run that wrote `before`; bookkeeping may differ.

    Args:
        before: settings as an earlier run wrote them; keys that it did not know count as the default.
        settings: of the continuation.
    """
    old = recorded_settings(type(settings), before)
    changed, moved = [], []
    for field in dataclasses.fields(settings):
        was, now = getattr(old, field.name), getattr(settings, field.name)
        if field.metadata.get("bookkeeping") or not _in_use(settings, field):
            continue
        if was != now:
            changed.append(f"{field.name} (was {was!r}, is {now!r})")
        elif not _in_use(old, field):
            moved.append(f"{field.name} (was not used, is {now!r})")
    return changed or moved


def recorded_settings(cls: type[Settings], content: Mapping[str, Any]) -> Settings:
    """Settings as an earlier run wrote them: what it did not know has its default, what is known no more is
    left out.
    """
    names = {field.name for field in dataclasses.fields(typing.cast(Any, cls))}
    return cls(**{key: value for key, value in content.items() if key in names})


def unused_settings(settings: Any) -> set[str]:
    """Names of the settings that the chosen methods do not use; none of what is no dataclass."""
    fields = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    return {field.name for field in fields if not _in_use(settings, field)}


def check_used(settings: Any, given: Sequence[str]) -> None:
    """Refuse settings that somebody gave and nothing uses.

    Args:
        settings: with `users()`, the names of the methods, algorithms and traits that they choose.
        given: keys that were given on the command line.

    Raises:
        ConfigError: names each, and who uses it.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    unused = [key for key in given if key in unused_settings(settings)]
    if unused:
        chosen = ", ".join(sorted(settings.users())) or "these settings"
        parts = [
            f"{key} is for {', '.join(fields[key].metadata['used_by'])}" for key in dict.fromkeys(unused)
        ]
        raise ConfigError(f"{'; '.join(parts)}; what is chosen here ({chosen}) does not use it: leave it out")


def load_config(
    cls: type[Settings], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Settings:
    """Defaults, then the file (with its `_base_`, relative to the file), then `key=value` pairs.

    Raises:
        FileNotFoundError: the file or its base does not exist.
        ConfigError: unknown key, wrong type, a value out of range, malformed YAML or override.
    """
    tree = OmegaConf.structured(cls)
    if path is not None:
        tree = _merge(tree, _read(find_config(path), ()), cls, str(path))
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"an override must be key=value, got {item!r}")
        parsed = _parse(cls, key, value)
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        tree = _merge(tree, parsed, cls, "command line")
    settings = OmegaConf.to_object(tree)
    _check(settings)
    check_used(settings, [item.partition("=")[0] for item in overrides])
    return typing.cast(Settings, settings)


def _parse(cls: type, key: str, value: str) -> Any:
    """A value of the command line: text as it stands where the field is text, otherwise YAML."""
    if _fields(cls).get(key) is str:
        return "" if value in ("''", '""') else value
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{key}: {value!r} is not a value YAML can read: {error}") from error


def _literal(content: Any) -> Any:
    """`${...}` is text like any other: OmegaConf would read environment variables into the settings."""
    if isinstance(content, str):
        return content.replace("${", "\\${")
    if isinstance(content, Mapping):
        return {key: _literal(value) for key, value in content.items()}
    return [_literal(value) for value in content] if isinstance(content, list | tuple) else content


def to_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain dictionaries, lists and numbers."""
    return dataclasses.asdict(settings)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{BASE_KEY} goes in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    if not path.is_file():
        where = f" (named by {BASE_KEY} of {seen[-1]})" if seen else ""
        raise FileNotFoundError(f"no config file {path}{where}")
    tree = read_yaml(path)
    base = tree.pop(BASE_KEY, None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {BASE_KEY} must be the name of a file, got {base!r}")
    below = _read(path.parent / base, (*seen, path.resolve()))
    return {**below, **tree}


def _merge(tree: Any, content: Mapping[str, Any], cls: type, where: str) -> Any:
    _check_keys(content, cls, where, "")
    try:
        return OmegaConf.merge(tree, _literal(content))
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        value = OmegaConf.select(OmegaConf.create(dict(content)), key) if key else content
        expected = _type_name(cls, key)
        raise ConfigError(
            f"{where}: {key} must be of type {expected}, got {value!r} ({type(value).__name__})"
        ) from error


def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _check_keys(content: Mapping[str, Any], cls: type, where: str, prefix: str) -> None:
    fields = _fields(cls)
    for key, value in content.items():
        if replaced := getattr(cls, "REPLACED", {}).get(key):
            raise ConfigError(f"{where}: {prefix}{key} is no setting any more: {replaced}")
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UnknownKeyError(f"{where}: unknown key {prefix}{key}{hint}", str(key))
        if fields[key] is bool and type(value) in (int, float) and value not in (0, 1):
            raise ConfigError(f"{where}: {prefix}{key} must be true or false, got {value}")
        if dataclasses.is_dataclass(fields[key]) and isinstance(value, Mapping):
            _check_keys(value, typing.cast(type, fields[key]), where, f"{prefix}{key}.")


def _type_name(cls: type, key: str) -> str:
    kind: Any = cls
    for part in key.partition("[")[0].split("."):
        kind = _fields(kind).get(part, kind) if dataclasses.is_dataclass(kind) else kind
    return getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind)  # type: ignore[return-value]


def _check(settings: Any, prefix: str = "") -> None:
    for field in dataclasses.fields(settings):
        key, value, rule = f"{prefix}{field.name}", getattr(settings, field.name), field.metadata
        if dataclasses.is_dataclass(value):
            _check(value, f"{key}.")
            continue
        choices, low, high = rule.get("choices"), rule.get("low"), rule.get("high")
        if choices is not None and value not in choices:
            close = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{key} is {value!r}; allowed: {', '.join(map(str, choices))}{hint}")
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, list | tuple | Mapping):  # OmegaConf looks at the outer list alone
                raise ConfigError(f"{key} holds {number!r:.60}; allowed: single values")
            if number is None or isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise ConfigError(f"{key} is {str(number)[:12]}...; allowed: whole numbers up to {_LARGEST}")
            if not math.isfinite(number):
                raise ConfigError(f"{key} is {value!r}; allowed: finite numbers")
            if (low is not None and not number >= low) or (high is not None and not number <= high):
                bounds = f"{'-inf' if low is None else low} to {'inf' if high is None else high}"
                raise ConfigError(f"{key} is {value!r}; allowed: {bounds}")
