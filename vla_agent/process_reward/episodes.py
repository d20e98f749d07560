"""A policy's own episodes, as process reward models see them: one frame per decision. `envs` records them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.array_files import pack, unpack
from libero_gym.common.atomic import write_bytes


class PolicyEpisode(NamedTuple):
    """What a policy met with, in T frames from the first to the last.

    Attributes:
        instruction: The task's instruction.
        state: Robot states, float32 (T, 8).
        images: Frames by observation key, uint8 (T, H, W, 3).
        success: Whether the goal held at the end.
        task_id: Task of the suite.
        init_state_id: Official initial state that the episode began from; -1 for any other.
        fps: Frames per second of simulated time.
    """

    instruction: str
    state: np.ndarray
    images: dict[str, np.ndarray]
    success: bool
    task_id: int
    init_state_id: int
    fps: float


def save_episodes(path: Path, episodes: Sequence[PolicyEpisode], about: dict[str, Any]) -> None:
    """Keep episodes in one file, which is there as a whole or not at all.

    Args:
        path: The file, ``*.npz``.
        episodes: At least one episode; all with the same cameras.
        about: Settings that made the episodes, as JSON can hold them.
    """
    arrays = {"state": np.concatenate([episode.state for episode in episodes])}
    for camera in episodes[0].images:
        arrays[camera] = np.concatenate([episode.images[camera] for episode in episodes])
    rows = [[e.instruction, bool(e.success), e.task_id, e.init_state_id, e.fps, len(e.state)] for e in episodes]
    write_bytes(path, pack({"about": about, "episodes": rows}, arrays))


def load_episodes(path: Path, about: dict[str, Any]) -> list[PolicyEpisode] | None:
    """The episodes that `save_episodes` kept; None if there are none, or if other settings made them.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        return None
    description, arrays = unpack(path)
    if not isinstance(description, dict) or not {"about", "episodes"} <= description.keys():
        raise ValueError(f"'{path}' holds no episodes; give another folder, or remove it.")
    if description["about"] != about:
        return None
    ends = np.cumsum([row[-1] for row in description["episodes"]])[:-1]
    parts = {name: np.split(array, ends) for name, array in arrays.items()}
    states = parts.pop("state")
    return [
        PolicyEpisode(instruction, states[i], {camera: frames[i] for camera, frames in parts.items()}, *rest)
        for i, (instruction, *rest, _) in enumerate(description["episodes"])
    ]
