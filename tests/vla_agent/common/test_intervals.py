"""Intervals and tests of success rates: by hand, as published, and by the formulas themselves."""

from __future__ import annotations

import math

import pytest

from vla_agent.common.intervals import mcnemar_exact, newcombe_interval, wilson_interval

TIGHT = {"rel": 0, "abs": 1e-12}


def test_wilson_interval_by_hand() -> None:
    # n = 10, z = 2: middle (p + 0.2) / 1.4, half 2 / 1.4 * sqrt(p q / 10 + 0.01).
    level = math.erf(2 / math.sqrt(2))
    assert wilson_interval(5, 10, level) == pytest.approx((0.5 - 0.035**0.5 / 0.7, 0.5 + 0.035**0.5 / 0.7), **TIGHT)
    assert wilson_interval(0, 10, level) == pytest.approx((0, 0.4 / 1.4), **TIGHT)
    assert wilson_interval(10, 10, level) == pytest.approx((1 / 1.4, 1), **TIGHT)
    assert wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="3 successes of 2 trials"):
        wilson_interval(3, 2)


@pytest.mark.parametrize("n", [1, 7, 50, 500])
def test_wilson_interval_is_the_formula_of_every_report_so_far(n: int) -> None:
    z = 1.959963984540054
    for successes in {0, 1, n // 3, n - 1, n}:
        rate, scale = successes / n, 1 + z * z / n
        middle = (rate + z * z / (2 * n)) / scale
        half = z / scale * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
        low, high = wilson_interval(successes, n)
        assert (low, high) == pytest.approx((max(0, middle - half), min(1, middle + half)), **TIGHT)
        assert type(low) is type(high) is float  # which JSON holds
    assert wilson_interval(0, n)[0] == 0.0
    assert wilson_interval(n, n)[1] == 1.0


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(0, 5) == mcnemar_exact(5, 0) == pytest.approx(2 / 32, **TIGHT)
    assert mcnemar_exact(1, 9) == pytest.approx(2 * (1 + 10) / 1024, **TIGHT)
    assert mcnemar_exact(4, 4) == 1
    tail = sum(math.comb(60, k) for k in range(21))
    assert mcnemar_exact(40, 20) == pytest.approx(2 * tail / 2**60, **TIGHT)
    assert type(mcnemar_exact(1, 9)) is float


def test_newcombe_as_published() -> None:
    """Example (a) of Newcombe (1998), table II, method 10: 56/70 against 48/80."""
    assert newcombe_interval((48, 80), (56, 70)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe_interval((0, 0), (1, 2)) == (-1, 1)
