"""LeRobot's statistics of a dataset: of vectors, of frames, and of several episodes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = dict[str, dict[str, Any]]
"""Statistics by feature; each holds min, max, mean, std, count and the quantiles."""


def image_stats(frames: np.ndarray, max_samples: int = 100) -> dict[str, Any]:
    """LeRobot's statistics of an episode's frames: one value per channel, of colours in [0, 1].

    Args:
        frames: uint8 (T, H, W, 3); 150 to 300 pixels of each side are used.
        max_samples: The largest number of frames to use; they are evenly spaced.

    Returns:
        Lists of shape (3, 1, 1) by statistic; ``count`` is the number of used frames, as LeRobot counts.
    """
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), max_samples)).round().astype(int)
    stride = max(1, min(frames.shape[1:3]) // 150)
    pixels = frames[chosen, ::stride, ::stride].reshape(-1, 3) / 255.0
    stats = vector_stats(pixels)
    return {
        name: [len(chosen)] if name == "count" else np.reshape(value, (3, 1, 1)).tolist()
        for name, value in stats.items()
    }


def vector_stats(values: np.ndarray) -> dict[str, Any]:
    """LeRobot's statistics of values (T, D): min, max, mean, std and quantiles as lists of length D, and a count."""
    values = np.asarray(values, dtype=np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    stats.update(zip(QUANTILES, quantiles, strict=True))
    return {**{name: value.tolist() for name, value in stats.items()}, "count": [len(values)]}


def pooled_stats(stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pool the statistics of several episodes.

    Min, max, mean, std and count are exact. Quantiles are averages, weighted by count, and so approximate.
    """
    counts = np.array([entry["count"][0] for entry in stats], dtype=np.float64)
    weights = counts / counts.sum()

    def mean_of(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.tensordot(weights, values, axes=1))

    stacked = {name: np.array([entry[name] for entry in stats]) for name in stats[0] if name != "count"}
    mean = mean_of(stacked["mean"])
    pooled = {name: mean_of(values) for name, values in stacked.items() if name in QUANTILES}
    pooled["min"], pooled["max"], pooled["mean"] = stacked["min"].min(0), stacked["max"].max(0), mean
    # The variance of all values is the mean variance plus the variance of the means.
    pooled["std"] = np.sqrt(mean_of(stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2))
    return {**{name: value.tolist() for name, value in pooled.items()}, "count": [int(counts.sum())]}
