"""A policy's own episodes, as process reward models see them: one frame per decision. `envs` records them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.array_files import pack, unpack
from libero_gym.common.atomic import write_bytes
from libero_gym.common.checks import flag, real_number, whole_number
from libero_gym.dimensions import STATE_DIM


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
    if description["about"] != json.loads(json.dumps(about)):  # tuples become lists, as in the file
        return None
    try:
        rows = [_checked_row(row) for row in description["episodes"]]
        _check_arrays(arrays, sum(row[-1] for row in rows))
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{path}' is damaged: {str(error).rstrip('.')}; remove it.") from error
    ends = np.cumsum([row[-1] for row in rows])[:-1]
    parts = {name: np.split(array, ends) for name, array in arrays.items()}
    states = parts.pop("state")
    images = [{camera: frames[i] for camera, frames in parts.items()} for i in range(len(rows))]
    return [
        PolicyEpisode(row[0], seen, frames, *row[1:5]) for row, seen, frames in zip(rows, states, images, strict=True)
    ]


def _checked_row(row: Any) -> tuple[str, bool, int, int, float, int]:
    """Instruction, success, task, initial state, frames per second and number of frames of an episode."""
    if not isinstance(row, list) or len(row) != 6 or not isinstance(row[0], str):
        raise ValueError(f"an episode is described by {row!r:.80}")
    instruction, success, task_id, init_state_id, fps, n_frames = row
    return (
        instruction,
        flag("success", success),
        whole_number("task_id", task_id),
        whole_number("init_state_id", init_state_id, -1),
        real_number("fps", fps, above=0),
        whole_number("the number of frames", n_frames, 1),
    )


def _check_arrays(arrays: dict[str, np.ndarray], n_frames: int) -> None:
    """Refuse states and frames that are not those of episodes of so many frames in all."""
    if "state" not in arrays:
        raise ValueError("it holds no states")
    for name, array in arrays.items():
        shape = array.shape[1:]
        fits = shape == (STATE_DIM,) if name == "state" else array.dtype == np.uint8 and shape[2:] == (3,)
        if len(array.shape) != (2 if name == "state" else 4) or not fits or len(array) != n_frames or not n_frames:
            raise ValueError(f"{name!r} is {array.dtype} {array.shape}, and its episodes have {n_frames} frames")
