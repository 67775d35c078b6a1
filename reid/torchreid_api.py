"""torchreid's modules under either of its two paths, and what to do when it is missing."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

_ROOTS = ("torchreid.reid", "torchreid")  # 0.2.5 on the package index; 1.4 in its repository


def torchreid_module(name: str) -> Any:
    """`torchreid.reid.NAME` (0.2.5) or `torchreid.NAME` (1.4).

    Raises:
        ImportError: torchreid or one of its undeclared dependencies is missing, or neither path exists.
    """
    if (top := _import("torchreid")) is None:
        raise ImportError("ReID training needs torchreid: pip install 'keepaug[reid]'")
    for root in _ROOTS:
        if (module := _import(f"{root}.{name}")) is not None:
            return module
    raise ImportError(
        f"torchreid {getattr(top, '__version__', '')} has neither torchreid.reid.{name} nor "
        f"torchreid.{name}; versions 0.2.5 and 1.4 are known to work"
    )


def _import(path: str) -> ModuleType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its Cython evaluation is not built: ours needs none
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
                return None
            raise ImportError(
                f"torchreid needs {error.name}, which it does not declare: pip install 'keepaug[reid]'"
            ) from error
