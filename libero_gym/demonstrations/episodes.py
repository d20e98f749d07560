"""One demonstration as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from libero_gym.dimensions import ACTION_DIM, CONTROL_FREQ, STATE_DIM

# Bounds that no demonstration reaches. A file that states more is damaged, and no memory is allocated for it.
MAX_FRAMES = 100_000
MAX_SIDE = 8192  # pixels
MAX_PIXEL_BYTES = 16 * 2**30  # of one camera's frames in an episode


class DamagedEpisodeError(ValueError):
    """A file, or an episode in it, is damaged or half-written; the message names it."""


class EpisodeOrigin(NamedTuple):
    """Where an episode began, and what it was told; each field as in `Episode`."""

    instruction: str
    suite: str = ""
    task_id: int = -1
    init_state_id: int = -1
    placement_seed: int = -1


@dataclass(frozen=True)
class Episode:
    """What a robot saw and did. It saw frame t before it took action t.

    Attributes:
        instruction: The words that told the robot what to do.
        state: Robot states, float32 (T, 8), as in the environment's observation: position in m, axis-angle in rad,
            finger joints in m.
        actions: Actions as the environment takes them, float32 (T, 7); +1 closes the gripper.
        images: Frames by observation key (``image``, ``wrist_image``), uint8 (T, H, W, 3), turned by 180 degrees like
            those of the environment.
        rewards: Reward of each action, float32 (T,); None if the file records none.
        dones: Whether the episode ended with each action, by success or by running out of time, bool (T,); None if the
            file does not say.
        success: Whether the goal held at the end; True if the file tells neither that nor rewards.
        suite: LIBERO's name of the suite, empty if unknown.
        task_id: The task in it, -1 if unknown.
        task_name: LIBERO's name of the task.
        init_state_id: The official initial state, -1 if the episode began from another one.
        placement_seed: The seed that drew an initial state which is not official, see
            `libero_gym.compilation.placements`; -1 if the state is official or its seed unknown.
        seed: The recording's seed, -1 if unknown.
        fps: Frames per second.
        versions: Versions of the packages that recorded the episode, by name; "simulation" is "exact" or for example
            "equivalent (4.0.0)", see `equivalence.versions.fidelity`.
    """

    instruction: str
    state: np.ndarray = field(repr=False)
    actions: np.ndarray = field(repr=False)
    images: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    rewards: np.ndarray | None = field(default=None, repr=False)
    dones: np.ndarray | None = field(default=None, repr=False)
    success: bool = True
    suite: str = ""
    task_id: int = -1
    task_name: str = ""
    init_state_id: int = -1
    placement_seed: int = -1
    seed: int = -1
    fps: int = CONTROL_FREQ
    versions: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def description(self) -> dict[str, Any]:
        """Everything except the arrays, as values of JSON."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _ARRAYS}


_ARRAYS = ("state", "actions", "images", "rewards", "dones")


def check_episode(episode: Episode, name: str) -> None:
    """Check that an episode's arrays fit each other and this benchmark.

    Args:
        episode: The episode.
        name: The episode's name in messages.

    Raises:
        ValueError: If a shape or a dtype does not fit, the episode is empty, or a number is not finite.
    """
    n_frames = len(episode)
    if n_frames == 0:
        raise ValueError(f"{name} has no frames.")
    if episode.actions.shape[1:] != (ACTION_DIM,):
        raise ValueError(
            f"{name} has actions of shape {episode.actions.shape}; LIBERO's have {ACTION_DIM} dimensions: position, "
            "axis-angle, gripper."
        )
    if episode.state.shape != (n_frames, STATE_DIM):
        raise ValueError(f"{name} has states of shape {episode.state.shape}; expected {(n_frames, STATE_DIM)}.")
    if not (np.isfinite(episode.actions).all() and np.isfinite(episode.state).all()):
        raise ValueError(f"{name} holds NaN or infinity in its states or actions.")
    for what, column in (("rewards", episode.rewards), ("ends", episode.dones)):
        if column is not None and (column.shape != (n_frames,) or not np.isfinite(column).all()):
            raise ValueError(f"{name} has {what} of shape {column.shape}; expected {n_frames} finite numbers.")
    for key, frames in episode.images.items():
        if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) != n_frames or frames.shape[3] != 3:
            raise ValueError(
                f"{name} has frames of {key!r} as {frames.dtype} {frames.shape}; expected uint8 ({n_frames}, H, W, 3)."
            )
