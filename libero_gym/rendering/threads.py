"""Threads that draw the bands of one frame at the same time, and where frames are cut into bands."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

_pools: dict[int, ThreadPoolExecutor] = {}  # by number of threads; this process's, for threads do not survive a fork


class Cuts:
    """Where frames of one kind are cut: rows move from frame to frame, so that all bands take equally long.

    Args:
        height: Of the frames, pixels.
        n: Number of bands.
    """

    def __init__(self, height: int, n: int) -> None:
        self._edges = np.linspace(0, height, n + 1)

    @property
    def rows(self) -> list[tuple[int, int]]:
        """First row of each band, and the row after its last; a band may have none."""
        edges = [int(edge) for edge in np.round(self._edges)]
        return list(itertools.pairwise(edges))

    def learn(self, seconds: Sequence[float]) -> None:
        """Moves the cuts half the way to where these times would be equal, if a band's rows took equally long."""
        spent = np.append(0.0, np.cumsum(seconds))
        if spent[-1] > 0:
            aims = np.interp(np.linspace(0, spent[-1], len(spent)), spent, self._edges)
            self._edges[1:-1] += 0.5 * (aims - self._edges)[1:-1]


def run_together(tasks: Sequence[Callable[[], None]]) -> list[float]:
    """Runs tasks at the same time, the first one in this thread, and waits for all; CPU seconds of each.

    A single task needs no other thread, so none is started for it.

    Raises:
        Exception: What the first task raised that raised anything.
    """
    if len(tasks) == 1:
        return [_timed(tasks[0])]
    n = len(tasks) - 1
    if n not in _pools:
        _pools[n] = ThreadPoolExecutor(n, thread_name_prefix="libero_gym-frames")
    others = [_pools[n].submit(_timed, task) for task in tasks[1:]]
    try:
        first = _timed(tasks[0])
    finally:
        wait(others)  # before anyone draws on the same canvas
    return [first, *(other.result() for other in others)]


def _timed(task: Callable[[], None]) -> float:
    start = time.thread_time()
    task()
    return time.thread_time() - start


os.register_at_fork(after_in_child=_pools.clear)
