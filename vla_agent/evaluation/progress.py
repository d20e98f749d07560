"""How far an evaluation is: a bar on a terminal, and lines in the log."""

from __future__ import annotations

import logging
import time
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A bar with the success rate so far, and a line in the log every ten seconds, at level INFO.

    Args:
        name: Name of the suite.
        n_episodes: Number of episodes in all.
        n_done: Number of those that ended before.
        bar: Whether to show the bar, on a terminal.
    """

    def __init__(self, name: str, n_episodes: int, n_done: int, bar: bool) -> None:
        self.n_episodes, self.n_done = n_episodes, n_done
        self._bar = tqdm(total=n_episodes, initial=n_done, desc=name, unit="episode", disable=None if bar else True)
        self._told = time.monotonic() - _SECONDS_BETWEEN_LINES

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def add(self, success_rate: float) -> None:
        """Tell of one more episode, and of the success rate with it."""
        self.n_done += 1
        self._bar.set_postfix_str(f"success {success_rate:.1%}", refresh=False)
        self._bar.update()
        if time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES or self.n_done == self.n_episodes:
            logger.info("%d of %d episodes, success %.1f %%", self.n_done, self.n_episodes, 100 * success_rate)
            self._told = time.monotonic()
