"""What the actions of recorded episodes earned, beside the frames that are learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Outcomes(NamedTuple):
    """Rewards and ends of E episodes of N control steps in all, of which F frames are learned from.

    Attributes:
        rewards: Reward of each control step's action, float32 (N,), episode after episode.
        dones: Whether the episode ended with that action, bool (N,); so it did at each episode's last step.
        durations: Control steps of each episode, int64 (E,).
        episode_ids: Episode of each frame, int64 (F,).
        times: Control step of each frame in its episode, from 0, int64 (F,).
        successes: Whether each episode succeeded, bool (E,).
    """

    rewards: np.ndarray
    dones: np.ndarray
    durations: np.ndarray
    episode_ids: np.ndarray
    times: np.ndarray
    successes: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """Position of each frame among the N control steps, int64 (F,)."""
        return np.asarray((np.cumsum(self.durations) - self.durations)[self.episode_ids] + self.times)


def reward_columns(episode: Any) -> dict[str, np.ndarray]:
    """An episode's rewards and ends, of all its control steps, and its success; empty arrays without rewards.

    Args:
        episode: An `Episode`; one without `dones` ends at its last step, and what does not tell ``success`` succeeds if
            its last action earned something.

    Raises:
        ValueError: If they have another length than the actions, or are not finite.
    """
    n_steps = len(episode.actions)
    rewards, dones = getattr(episode, "rewards", None), getattr(episode, "dones", None)
    if rewards is None:
        return {"rewards": np.zeros(0, np.float32), "dones": np.zeros(0, bool), "successes": np.zeros(0, bool)}
    rewards = np.asarray(rewards, np.float32)
    ends = np.zeros(n_steps, bool) if dones is None else np.array(dones, bool)
    if rewards.shape != (n_steps,) or ends.shape != (n_steps,) or not np.isfinite(rewards).all():
        raise ValueError(
            f"rewards of shape {rewards.shape} and ends of shape {ends.shape}; expected {n_steps} finite numbers each."
        )
    ends[-1] = True
    success = bool(getattr(episode, "success", rewards[-1] > 0))
    return {"rewards": rewards, "dones": ends, "successes": np.array([success])}


def joined(columns: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns of all episodes, one behind the other; empty if an episode has none."""
    if not all(len(column["rewards"]) for column in columns):
        columns = [{name: values[:0] for name, values in column.items()} for column in columns]
    return {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
