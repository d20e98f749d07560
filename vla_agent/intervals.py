"""What a number of successes says: intervals of a rate, and whether two rates differ."""

from __future__ import annotations

import math

from libero_gym.checks import whole_number

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson, 1927); (0, 1) without trials.

    Args:
        successes: Of ``n`` trials.
        n: Number of trials.
        z: Quantile of the normal distribution; 95 % by default.

    Raises:
        ValueError: Unless 0 <= successes <= n, both whole.
    """
    successes, n = whole_number("successes", successes), whole_number("n", n, 0)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials; expected 0 to {n}.")
    if n == 0:
        return 0.0, 1.0
    rate, scale = successes / n, 1 + z * z / n
    middle = (rate + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 but for rounding.
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value that two policies are equally good, from episodes that both ran (McNemar, 1947, exact).

    Episodes in which both succeed or both fail say nothing; of the others, each is a coin flip if the policies are
    equally good, so the p-value is a binomial test's at one half.

    Args:
        only_first: Episodes in which the first succeeded and the second failed.
        only_second: The other way round.

    Raises:
        ValueError: If one is no number of episodes.
    """
    only_first, only_second = whole_number("only_first", only_first, 0), whole_number("only_second", only_second, 0)
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def newcombe_interval(first: tuple[int, int], second: tuple[int, int], z: float = Z_95) -> tuple[float, float]:
    """Interval of the difference of two rates, second minus first, from independent trials.

    Method 10 of Newcombe (1998), "Interval estimation for the difference between independent proportions", which joins
    the two Wilson intervals.

    Args:
        first: Successes and trials.
        second: Successes and trials.
        z: Quantile of the normal distribution; 95 % by default.
    """
    if not first[1] or not second[1]:
        return -1.0, 1.0
    p, q = first[0] / first[1], second[0] / second[1]
    (p_low, p_high), (q_low, q_high) = wilson_interval(*first, z), wilson_interval(*second, z)
    difference = q - p
    return difference - math.hypot(q - q_low, p_high - p), difference + math.hypot(q_high - q, p - p_low)
