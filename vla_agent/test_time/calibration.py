"""How far a scorer agrees with what it stands for: with success, and with another scorer's order of candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def success_auc(scores: Sequence[float], successes: Sequence[bool]) -> float | None:
    """Probability that a success has a higher score than a failure, equals counting half (Mann and Whitney, 1947).

    Args:
        scores: One number per episode, such as the mean score of what was chosen in it.
        successes: Whether each succeeded.

    Returns:
        The area under the ROC curve: 1 if scores tell success, 0.5 if they say nothing; None if all episodes ended
        alike.

    Raises:
        ValueError: If there is not one finite score per episode.
    """
    values, succeeded = np.asarray(scores, dtype=np.float64), np.asarray(successes, dtype=bool)
    if values.shape != succeeded.shape or values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"Expected a finite score for each of {succeeded.size} episodes, got shape {values.shape}.")
    good, bad = values[succeeded], values[~succeeded]
    if not len(good) or not len(bad):
        return None
    from scipy.stats import mannwhitneyu  # takes half a second to import

    return float(mannwhitneyu(good, bad).statistic) / (len(good) * len(bad))


def rank_correlation(scores: np.ndarray, judged: np.ndarray) -> float | None:
    """Spearman's rank correlation of two scores of the same candidates, (n,); None if one finds all of them equal.

    Args:
        scores: The scorer's.
        judged: The judge's.
    """
    if np.ptp(scores) == 0 or np.ptp(judged) == 0:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(scores, judged).statistic)
