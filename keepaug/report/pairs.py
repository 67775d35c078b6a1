"""Differences of two methods, seed by seed: the mean, its 95 % interval, how many pairs are missing.

Runs of one seed share initial weights, order, crops and region draws, so that the difference of a pair varies
less than the difference of two runs.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

LEVEL = 0.95
SETTLED = 0.2  # percentage points
_MOST = 10_000
Seed = TypeVar("Seed", int, str)  # a text where the network that a run starts from has a seed too


@dataclass(frozen=True)
class Pairs:
    """`first - second` for each seed that both have.

    Attributes:
        seeds: rising.
        differences: one for each seed, in the metric's unit.
    """

    seeds: tuple[int | str, ...]
    differences: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        """Of the differences.

        Raises:
            ValueError: there is no pair.
        """
        if not self.differences:
            raise ValueError("no seed was run with both methods: there is no pair to compare")
        return statistics.fmean(self.differences)

    def half_width(self, level: float = LEVEL) -> float:
        """Of the t-interval of the mean; infinite with one pair, whose spread is unknown."""
        num = len(self)
        if num < 2:
            return math.inf
        error = statistics.stdev(self.differences) / math.sqrt(num)
        return student_quantile((1 + level) / 2, num - 1) * error

    def still_needed(self, settled: float = SETTLED, level: float = LEVEL) -> int | None:
        """Pairs to add until the interval is within ± `settled`, if the spread stays; None below two pairs,
        10,000 where it is that many or more.

        Raises:
            ValueError: `settled` is not above 0.
        """
        if settled <= 0:
            raise ValueError(f"settled, a difference to be told from none, must be above 0, got {settled}")
        if len(self) < 2:
            return None
        spread = statistics.stdev(self.differences)

        def settles(num: int) -> bool:
            return student_quantile((1 + level) / 2, num - 1) * spread / math.sqrt(num) <= settled

        # the interval narrows with every pair
        return bisect.bisect_left(range(len(self), _MOST + len(self)), True, key=settles)

    def __str__(self) -> str:
        """As in `+0.31 [+0.12, +0.50], 5 pairs`; no difference is said without its interval."""
        if len(self) < 2:
            return f"{len(self) or 'no'} pair"
        half = self.half_width()
        return f"{self.mean:+.2f} [{self.mean - half:+.2f}, {self.mean + half:+.2f}], {len(self)} pairs"


def compare(first: Mapping[Seed, float], second: Mapping[Seed, float]) -> Pairs:
    """Pair the values of two methods.

    Args:
        first: value by seed.
        second: value by seed; seeds that only one of them has are left out.
    """
    seeds = tuple(sorted(set(first) & set(second)))
    return Pairs(seeds, tuple(first[seed] - second[seed] for seed in seeds))


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, by bisection of its distribution function.

    Args:
        probability: in [0.5, 1).
        freedom: degrees of freedom, 1 or more.

    Raises:
        ValueError: outside these ranges.
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(
            f"the probability must be in [0.5, 1) and the degrees of freedom 1 or more, got {probability} "
            f"and {freedom}"
        )
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)) as a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, freedom - 1, 2):  # cos^power, up to cos^(freedom - 2)
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
