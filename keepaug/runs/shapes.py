"""What a file of a kind must hold, declared once beside its reader, and checked before anybody looks inside.

    CARD = {"name?": str, "synthetic?": bool, str: Any}
    card = read_json(root / "dataset.json", CARD)

A shape is a type; `float` for any finite number; a tuple of alternatives; a list of one shape for lists; or a
dictionary of keys, of which those with "?" may be left out and `str` stands for all others. Files of tensors
have shapes too; `PLAIN` in them is what JSON can say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from keepaug.runs.errors import ConfigError

PLAIN = object()
"""Texts, finite numbers, truths, nulls, and lists and dictionaries of them."""


def read_json(path: str | Path, shape: Any) -> Any:
    """The content of a JSON file of a shape.

    Raises:
        ValueError: not JSON, or of another shape; names the file, the place and what is expected there.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    check_shape(content, shape, path)
    return content


def read_yaml(path: str | Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: not YAML, or none that is safe, deeper than anybody writes or holding itself; or no keys
            and values, as in an empty file.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), loader)
        json.dumps(tree, default=str)  # what holds itself cannot be written
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{path} is not valid YAML: only plain YAML is read, no Python tags ({error.problem}); write the "
            "value out, for example RetinaNet's anchor sizes as lists of numbers"
        ) from error
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):  # of the loader
            raise
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        got = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{path}: expected keys and values, got {got}")
    if odd := next((key for key in tree if not isinstance(key, str)), None):
        raise ConfigError(f"{path}: expected texts as keys, got {odd!r:.80}")
    return tree


def check_shape(content: Any, shape: Any, path: str | Path) -> None:
    """Raise unless the content of a file is of a shape.

    Raises:
        ValueError: names the file, the place and what is expected there.
    """
    if problem := _problem(content, shape, ""):
        raise ValueError(f"{path} {problem}")


def _problem(value: Any, shape: Any, at: str) -> str | None:
    """The first thing that does not fit, as the rest of a sentence about the file; None if all does."""
    if shape is Any:
        return None
    if shape is PLAIN:
        inner = {str: PLAIN} if isinstance(value, Mapping) else [PLAIN]
        shape = inner if isinstance(value, Mapping | list | tuple) else (str, bool, float, None)
    if isinstance(shape, tuple):
        if any(_problem(value, one, at) is None for one in shape):
            return None
        inner = [one for one in shape if isinstance(one, dict) and isinstance(value, Mapping)]
        return _problem(value, inner[0], at) if inner else _expected(value, shape, at)
    if isinstance(shape, dict) and isinstance(value, Mapping):
        return _problem_of_keys(value, shape, at)
    if isinstance(shape, list) and isinstance(value, list | tuple):
        return next((p for k, one in enumerate(value) if (p := _problem(one, shape[0], f"{at}[{k}]"))), None)
    if shape is float and type(value) in (int, float):
        if abs(value) < math.inf:
            return None
    elif shape is None or isinstance(shape, type):
        wanted = type(None) if shape is None else shape
        if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
            return None
    return _expected(value, shape, at)


def _expected(value: Any, shape: Any, at: str) -> str:
    return f"has {value!r:.80} as {at or 'its content'}, expected {_words(shape)}"


def _problem_of_keys(value: Mapping[Any, Any], shape: dict[Any, Any], at: str) -> str | None:
    named = {key.removesuffix("?"): inner for key, inner in shape.items() if key is not str}
    needed = [key for key in shape if key is not str and not key.endswith("?")]
    if missing := [key for key in needed if key not in value]:
        return f"lacks {', '.join(missing)}{f' in {at}' if at else ''}"
    for key, inner in value.items():
        place = f"{at}.{key}" if at else f"{key}"
        wanted = named.get(key, shape.get(str, Any))
        if problem := _problem(inner, wanted, place):
            return problem
        if str in shape and not isinstance(key, str):
            return f"has the key {key!r:.80} in {at or 'it'}, expected a text"
    return None


def _words(shape: Any) -> str:
    if isinstance(shape, tuple):
        return " or ".join(map(_words, shape))
    if isinstance(shape, dict):
        return "keys and values"
    if isinstance(shape, list):
        return "a list"
    names = {
        float: "a finite number",
        int: "a whole number",
        str: "a text",
        bool: "true or false",
        None: "null",
    }
    return names.get(shape) or shape.__name__
