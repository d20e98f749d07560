"""What a number of successes says: intervals of a rate, and whether two rates differ."""

from __future__ import annotations

import math

from libero_gym.common.checks import whole_number


def wilson_interval(successes: int, n: int, confidence_level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson, 1927), by SciPy; (0, 1) without trials.

    Args:
        successes: Number of successes.
        n: Number of trials.
        confidence_level: Probability that such an interval holds the true rate.

    Raises:
        ValueError: Unless 0 <= successes <= n, both whole.
    """
    successes, n = whole_number("successes", successes), whole_number("n", n, 0)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials; expected 0 to {n}.")
    if n == 0:  # which SciPy refuses
        return 0.0, 1.0
    from scipy.stats import binomtest  # takes half a second to import, and training imports this file

    interval = binomtest(successes, n).proportion_ci(confidence_level, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the hypothesis that two policies are equally good (McNemar, 1947, exact).

    The episodes are those that both policies ran. Episodes in which both succeed or both fail say nothing. Each of the
    others is a coin flip under the hypothesis, so the p-value is that of a binomial test at one half.

    Args:
        only_first: Number of episodes in which the first succeeded and the second failed.
        only_second: Number of episodes in which the second succeeded and the first failed.

    Raises:
        ValueError: If one is no number of episodes.
    """
    only_first, only_second = whole_number("only_first", only_first, 0), whole_number("only_second", only_second, 0)
    n = only_first + only_second
    from scipy.stats import binomtest

    return float(binomtest(only_first, n).pvalue) if n else 1.0


def newcombe_interval(
    first: tuple[int, int], second: tuple[int, int], confidence_level: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two rates, second minus first, from independent trials.

    Method 10 of Newcombe (1998), "Interval estimation for the difference between independent proportions", which joins
    the two Wilson intervals. SciPy has no interval of a difference of rates.

    Args:
        first: Successes and trials of the first.
        second: Successes and trials of the second.
        confidence_level: Probability that such an interval holds the true difference.
    """
    if not first[1] or not second[1]:
        return -1.0, 1.0
    p, q = first[0] / first[1], second[0] / second[1]
    p_low, p_high = wilson_interval(*first, confidence_level)
    q_low, q_high = wilson_interval(*second, confidence_level)
    difference = q - p
    return difference - math.hypot(q - q_low, p_high - p), difference + math.hypot(q_high - q, p - p_low)
