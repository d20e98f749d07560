"""Return, length and duration of each environment's episode, for the `episode` entry that SB3 reads at its end."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


class EpisodeTotals:
    """Totals of the episodes under way, for vector environments that begin, save and restore episodes one by one.

    SB3's `VecMonitor` counts the same. It cannot be told that a single environment has begun anew or that a snapshot
    was restored, and it sums returns in float32.

    Args:
        n_envs: Number of environments.

    Attributes:
        returns: Sums of the rewards so far, float64 (n_envs,).
        lengths: Steps so far, int64 (n_envs,).
    """

    def __init__(self, n_envs: int) -> None:
        self.returns = np.zeros(n_envs)
        self.lengths = np.zeros(n_envs, dtype=np.int64)
        self._starts = np.full(n_envs, time.monotonic())

    def begin(self, which: np.ndarray | slice) -> None:
        """Begin new episodes in the environments that a mask, indices or a slice select."""
        self.returns[which] = 0.0
        self.lengths[which] = 0
        self._starts[which] = time.monotonic()

    def add(self, rewards: np.ndarray) -> None:
        """Count a step of every environment with these rewards (n_envs,)."""
        self.returns += rewards
        self.lengths += 1

    def restore(self, returns: Any, lengths: Any) -> None:
        """Go on from saved totals; durations count from now."""
        self.returns[:], self.lengths[:] = returns, lengths
        self._starts[:] = time.monotonic()

    def summary(self, index: int) -> dict[str, Any]:
        """The `episode` entry of an environment: return ``r``, length ``l``, seconds ``t``."""
        return {
            "r": round(float(self.returns[index]), 6),
            "l": int(self.lengths[index]),
            "t": round(time.monotonic() - self._starts[index], 6),
        }
