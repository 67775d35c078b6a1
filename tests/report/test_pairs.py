import math
import statistics

import pytest
import torch

from keepaug.report.pairs import Pairs, compare, student_quantile


# Abramowitz and Stegun, table 26.10.
@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_quantiles_are_those_of_the_printed_table(freedom: int, quantile: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=6e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 20])
def test_quantile_undoes_the_integrated_density(freedom: int) -> None:
    grid = torch.linspace(-1, 1, 200_001, dtype=torch.float64) * math.pi / 2  # t = sqrt(freedom) tan(grid)
    density = grid.cos() ** (freedom - 1)
    below = grid <= math.atan(student_quantile(0.9, freedom) / math.sqrt(freedom))
    assert float(density[below].sum() / density.sum()) == pytest.approx(0.9, abs=1e-4)


def test_quantile_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="got 1 and 4"):
        student_quantile(1, 4)
    with pytest.raises(ValueError, match="freedom 1 or more, got"):
        student_quantile(0.9, 0)


def test_pairs_are_the_seeds_that_both_have() -> None:
    pairs = compare({3: 94.0, 1: 93.0, 2: 90.0}, {1: 92.5, 3: 93.0, 4: 99.0})
    assert pairs == Pairs((1, 3), (0.5, 1.0))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2 + 0.3
    covered = 0
    for row in draws.tolist():
        pairs = Pairs((0, 1, 2, 3, 4), tuple(row))
        covered += abs(pairs.mean - 0.3) <= pairs.half_width()
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)


def test_still_needed_is_the_first_number_that_is_narrow_enough() -> None:
    pairs = Pairs((0, 1, 2), (0.1, 0.5, 0.9))
    total = 3 + (pairs.still_needed() or 0)
    spread = statistics.stdev(pairs.differences)

    def half(num: int) -> float:
        return student_quantile(0.975, num - 1) * spread / math.sqrt(num)

    assert half(total) <= 0.2 < half(total - 1)
    assert Pairs((0, 1, 2), (0.3, 0.31, 0.32)).still_needed() == 0


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0, 2.5])
def test_still_needed_is_found_as_by_trying_one_after_the_other(spread: float) -> None:
    pairs = Pairs((0, 1, 2), (-spread, 0.0, spread))
    tried = next(
        num for num in range(3, 2000) if student_quantile(0.975, num - 1) * spread / math.sqrt(num) <= 0.2
    )
    assert pairs.still_needed() == tried - 3


def test_a_wide_spread_is_no_long_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(probability: float, freedom: int) -> float:
        asked.append(freedom)
        return student_quantile(probability, freedom)

    monkeypatch.setattr("keepaug.report.pairs.student_quantile", counted)
    assert Pairs((0, 1), (-40.0, 40.0)).still_needed() == 10_000
    assert len(asked) < 20


def test_what_is_not_known_is_not_said() -> None:
    one, none = Pairs((0,), (0.25,)), Pairs((), ())
    assert (str(one), one.half_width(), one.still_needed()) == ("1 pair", math.inf, None)
    assert (str(none), none.still_needed()) == ("no pair", None)
    with pytest.raises(ValueError, match="no seed was run with both"):
        _ = none.mean
    with pytest.raises(ValueError, match="got 0"):
        one.still_needed(0)


def test_printed_as_the_pages_show_it() -> None:
    assert str(Pairs((0, 1, 2), (0.2, 0.3, 0.4))) == "+0.30 [+0.05, +0.55], 3 pairs"
