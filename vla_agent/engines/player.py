"""Environments of one machine, and a policy that acts in them, so that frames never leave it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.vec_env import VecEnv

from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.algorithms.rollout import Actor, Event, Observations, Rollout, Stepped, Stored, play


class Player:
    """Some of a run's environments; they remember their last observations.

    Args:
        env: The environments.
    """

    def __init__(self, env: VecEnv) -> None:
        self.env: Any = env
        self.last_obs: Observations | None = None
        self.starts: np.ndarray | None = None  # whether an episode begins there, (n_envs,)
        self._buffer: DictRolloutBuffer | None = None

    def describe(self) -> dict[str, Any]:
        """What the learner's process has to know of the environments."""
        settings = getattr(self.env, "settings", {})
        spaces = {"observation_space": self.env.observation_space, "action_space": self.env.action_space}
        return {"settings": settings} | spaces

    def reset(self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> tuple[Observations, list[Any]]:
        """Begins an episode in all; observations, and the infos of the reset."""
        inner = self.env.unwrapped
        inner._seeds, inner._options = list(seeds), list(options)
        self.last_obs = self.env.reset()
        self.starts = np.ones(self.env.num_envs, dtype=bool)
        return self.last_obs, self.env.reset_infos

    def begin_episodes(self, options: Mapping[int, Mapping[str, Any]], seeds: Sequence[int | None]) -> Any:
        """Begins episodes in some; observations of all, and their infos."""
        self.env.unwrapped._seeds = list(seeds)
        self.last_obs = self.env.begin_episodes(options)
        assert self.starts is not None
        self.starts[list(options)] = True
        return self.last_obs, self.env.reset_infos

    def step(self, actions: np.ndarray) -> Any:
        """Steps all with bins."""
        result = self.env.step(actions)
        self.last_obs, self.starts = result[0], result[2]
        return result

    def restore(self, snapshot: dict[str, Any]) -> tuple[Observations, list[Any]]:
        """Goes back to a snapshot."""
        self.last_obs = self.env.restore(snapshot)
        return self.last_obs, self.env.reset_infos

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the environments."""
        return getattr(self.env, name)(*args, **kwargs)

    def get_attr(self, name: str) -> list[Any]:
        """An attribute of the environments, one value for each of them."""
        found: list[Any] = self.env.get_attr(name)
        return found

    def play(
        self, policy: Actor, n_steps: int, starts: np.ndarray | None, by_token: bool, **how: Any
    ) -> Iterator[dict[str, Any] | Rollout]:
        """What callbacks read of each step, then the rollout.

        Args:
            policy: Who acts.
            n_steps: Number of steps in each environment.
            starts: Whether an episode begins at the last observations, (n_envs,); None if the player knows it better.
            by_token: Whether the rollout holds a log-probability for each token, or for each action.
            how: Further keywords of `rollout.play`.
        """
        buffer = self._empty_buffer(policy, n_steps, by_token)
        begun: dict[str, Any] = {"last_obs": self.last_obs, "episode_starts": self.starts if starts is None else starts}
        events: Iterator[Event] = play(policy, self.env, n_steps, **begun, buffer=buffer, **how)
        for event in events:
            if isinstance(event, Stepped):
                yield event.values
            elif isinstance(event, Stored):
                self.last_obs, self.starts = event
            else:
                yield event

    def _empty_buffer(self, policy: Actor, n_steps: int, by_token: bool) -> DictRolloutBuffer:
        kind = TokenRolloutBuffer if by_token else DictRolloutBuffer
        if type(self._buffer) is not kind or self._buffer.buffer_size != n_steps:
            spaces = self.env.observation_space, self.env.action_space
            self._buffer = kind(n_steps, *spaces, policy.device, n_envs=self.env.num_envs)
        self._buffer.reset()
        return self._buffer
