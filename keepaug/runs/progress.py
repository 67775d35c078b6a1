"""A progress bar for people, sparse lines for log files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

__all__ = ["progress"]

Item = TypeVar("Item")


def progress(
    items: Iterable[Item],
    description: str,
    *,
    total: int | None = None,
    initial: int = 0,
    disable: bool = False,
) -> Iterable[Item]:
    """`items` with a tqdm bar on standard error; into a file, a line every 30 seconds; with `disable`,
    nothing.
    """
    if disable:
        return items
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    bar: Iterable[Item] = tqdm(
        items,
        desc=description,
        total=total,
        initial=initial,
        leave=not terminal or None,
        mininterval=0.2 if terminal else 30.0,
        maxinterval=10.0 if terminal else 60.0,
        ascii=not terminal,
        dynamic_ncols=terminal,
    )
    return bar
