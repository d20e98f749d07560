"""Failures of an evaluation as videos, from the frames that the policy saw."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from libero_gym.dimensions import CONTROL_FREQ
from libero_gym.videos import write_film
from vla_agent.evaluation.reports import EpisodeResult

"""Control steps per second, of LIBERO."""
_MIN_SIDE = 224


class Filmer:
    """Keeps the frames of running episodes, and writes those of failures.

    Args:
        folder: For the MP4s.
        n_per_task: Failures of each task to film.
        chunk_size: Control steps from one frame to the next.
    """

    def __init__(self, folder: Path, n_per_task: int, chunk_size: int) -> None:
        self.folder = folder
        self.n_per_task = n_per_task
        self.fps = max(1, round(CONTROL_FREQ / chunk_size))
        self._filmed: Counter[int] = Counter()
        self._frames: dict[int, list[np.ndarray]] = defaultdict(list)

    def see(self, obs: Mapping[str, np.ndarray], running: Iterable[int]) -> None:
        """Remember what the running environments show."""
        for i in running:
            self._frames[i].append(obs["image"][i].copy())

    def begin(self, starting: Iterable[int]) -> None:
        """Drop what was kept of environments that begin an episode."""
        for i in starting:
            self._frames.pop(i, None)

    def end(self, i: int, episode: EpisodeResult, last: Mapping[str, np.ndarray]) -> None:
        """Write an environment's episode if it failed, and few of its task have."""
        frames = [*self._frames.pop(i, []), last["image"]]
        if episode.success or self._filmed[episode.task_id] >= self.n_per_task:
            return
        self._filmed[episode.task_id] += 1
        video = np.stack(frames)
        enlarge = -(-_MIN_SIDE // video.shape[1])
        enlarge += (enlarge * video.shape[1]) % 2  # H.264 wants even sides
        video = video.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
        path = self.folder / f"task{episode.task_id:02d}_init{episode.init_state_id:02d}.mp4"
        write_film(path, video, self.fps)
