"""A progress bar for people; nothing into files, where metrics.jsonl says how far a run is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")


def _bar(**options: Any) -> Any:
    from tqdm import tqdm

    options["disable"] = options["disable"] or not sys.stderr.isatty()
    return tqdm(leave=None, mininterval=0.2, maxinterval=10.0, dynamic_ncols=True, **options)


def progress(
    items: Iterable[Item], description: str, *, total: int | None = None, disable: bool = False
) -> Iterable[Item]:
    """`items` with a tqdm bar on standard error, if that is a terminal and `disable` is False."""
    bar: Iterable[Item] = _bar(iterable=items, desc=description, total=total, disable=disable)
    return bar


def say(text: str) -> None:
    """Print a line, above the bars that are there."""
    from tqdm import tqdm

    tqdm.write(text)
    sys.stdout.flush()


class RunBar:
    """One bar for a whole run: steps, remaining time, loss.

    Args:
        total: steps of the run.
        initial: steps done before.
        disable: for the processes that do not print.
    """

    def __init__(self, total: int, initial: int = 0, *, disable: bool = False) -> None:
        self._bar = _bar(desc="training", total=total, initial=initial, unit="step", disable=disable)

    def step(self, **figures: float) -> None:
        """One more, and what is shown behind the bar from now on."""
        if figures:
            shown = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
            self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()

    def __enter__(self) -> RunBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
