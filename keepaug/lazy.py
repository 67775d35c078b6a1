"""Names of a package that are imported when they are used (PEP 562): what they need is slow to import."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazily(package: str, module: str, *names: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its name.
        module: what is imported when a name is used.
        names: of the module; none: all that its `__all__` lists, and that list itself.
    """

    def find(name: str) -> Any:
        if name in names or (not names and (name == "__all__" or not name.startswith("_"))):
            found = importlib.import_module(module)
            if names or name == "__all__" or name in found.__all__:
                return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
