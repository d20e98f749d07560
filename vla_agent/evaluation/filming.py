"""Failures of an evaluation as videos, from the frames that the policy saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from libero_gym.common.videos import write_film
from libero_gym.dimensions import CONTROL_FREQ
from vla_agent.evaluation.clips import clip_path, filmed_failures
from vla_agent.evaluation.results import EpisodeResult

# Smaller frames are enlarged to at least so many pixels.
_MIN_SIDE = 224


class Filmer:
    """Writes videos of failures.

    Args:
        folder: Folder of the evaluation; the MP4s go into ``failures`` in it.
        n_per_task: Number of failures of each task to film.
        chunk_size: Control steps from one frame to the next.

    Attributes:
        written: Task and initial state of the episodes that it has filmed.
    """

    def __init__(self, folder: Path, n_per_task: int, chunk_size: int) -> None:
        self.folder = folder
        self.n_per_task = n_per_task
        self.fps = CONTROL_FREQ / chunk_size
        self.written: set[tuple[int, int]] = set()
        self._filmed: Counter[int] = Counter()

    def count(self, episodes: Sequence[EpisodeResult]) -> None:
        """Count the films of episodes that an interrupted run of this evaluation has played."""
        self._filmed.update(episode.task_id for episode in filmed_failures(self.folder, episodes))

    def film(self, episode: EpisodeResult, frames: np.ndarray) -> None:
        """Write an episode if it failed, unless enough failures of its task are written already.

        Args:
            episode: The episode.
            frames: Its frames as the policy saw them, uint8 (T, H, W, 3).
        """
        if episode.success or self._filmed[episode.task_id] >= self.n_per_task:
            return
        self._filmed[episode.task_id] += 1
        enlarge = -(-_MIN_SIDE // frames.shape[1])
        enlarge += (enlarge * frames.shape[1]) % 2  # H.264 wants even sides
        video = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
        write_film(clip_path(self.folder, episode), video, self.fps)
        self.written.add(episode[:2])
