"""Environments on several machines, as one vector environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from libero_gym.common.checks import whole_number
from libero_gym.common.uncopyable import Uncopyable
from vla_agent.algorithms.rollout import Observations
from vla_agent.engines.merging import merge_observations, merge_snapshots, split_snapshot
from vla_agent.engines.player import Player

Answer = Callable[[], Any]


class Part(Protocol):
    """Some of the environments, wherever they are."""

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Answer:
        """Begins a method of the part's `Player`; what is returned gives its result."""


class LocalPart:
    """Environments in this process."""

    def __init__(self, player: Player) -> None:
        self.player = player

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Answer:
        """The method runs when its result is asked for, so that other processes are at work meanwhile."""
        return lambda: getattr(self.player, name)(*args, **kwargs)


class PartedVecEnv(Uncopyable, VecEnv):
    """What `VLAVecEnv` is, over parts that are elsewhere; ``engine.make_vec_env`` makes it.

    A learner's rollouts are played where the parts are, by copies of its policy. Stepped by hand, it shows the frames
    of all parts here.

    Args:
        engine: What made it; learners take it from here.
        parts: The parts, and their environments.
        described: What `Player.describe` says of the first part.
        processor: The model's processor.
        model: Name of the processor's checkpoint; None if it has none.

    Attributes:
        closed: Whether they are closed, or the engine is.
    """

    copy_instead = "its parts are processes of their own. Make another one, and move snapshot() with restore()."

    def __init__(
        self,
        engine: Any,
        parts: Sequence[tuple[Part, slice]],
        described: Mapping[str, Any],
        processor: Any,
        model: Any,
    ) -> None:
        self.engine, self.processor, self.model = engine, processor, model
        self.parts = [part for part, _ in parts]
        self.where = [share for _, share in parts]
        self._described = dict(described)
        self.closed = False
        self._actions: np.ndarray | None = None
        super().__init__(self.where[-1].stop, described["observation_space"], described["action_space"])

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that the environments' behaviour depends on, as JSON can hold them."""
        return cast(dict[str, Any], self._described["settings"])

    def reset(self) -> Observations:
        """Begin an episode in all environments; seeds and options given before are used up."""
        shares = [(self._seeds[share], self._options[share]) for share in self.where]
        answers = [part.ask("reset", *share) for part, share in zip(self._open_parts(), shares, strict=True)]
        self._reset_seeds()
        self._reset_options()
        return self._observed([answer() for answer in answers])

    def begin_episodes(self, options: Mapping[int, Mapping[str, Any]]) -> Observations:
        """Begin new episodes in some environments, see `VLAVecEnv.begin_episodes`."""
        for chosen in options:
            whole_number("environment", chosen, 0, self.num_envs - 1)
        answers = []
        for part, share in zip(self._open_parts(), self.where, strict=True):
            own = {index - share.start: given for index, given in options.items() if share.start <= index < share.stop}
            answers.append(part.ask("begin_episodes", own, self._seeds[share]))
        self._seeds = [None if index in options else seed for index, seed in enumerate(self._seeds)]
        return self._observed([answer() for answer in answers])

    def step_async(self, actions: np.ndarray) -> None:
        """Keep bins (n_envs, 7 * chunk) for `step_wait`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Step all parts at once: observations, rewards float32 (n_envs,), dones, infos."""
        assert self._actions is not None
        parts = zip(self._open_parts(), self.where, strict=True)
        answers = [part.ask("step", self._actions[share]) for part, share in parts]
        obs, rewards, dones, infos = zip(*(answer() for answer in answers), strict=True)
        together = [info for part in infos for info in part]
        return merge_observations(obs), np.concatenate(rewards), np.concatenate(dones), together

    def close(self) -> None:
        """Close the environments and their workers; safe to call twice."""
        if not self.closed:
            self.closed = True
            self.engine.close_env()

    def check_open(self) -> None:
        """Complains about environments that are closed, as ClosedEnvironmentError."""
        if self.closed:
            raise gym.error.ClosedEnvironmentError(
                "The environments are closed, or their engine is; make them anew with engine.make_vec_env."
            )

    def set_task_weights(self, weights: Sequence[float] | np.ndarray) -> None:
        """Set how often each task is drawn, see `LiberoVectorEnv.set_task_weights`."""
        self._all("call", "set_task_weights", list(weights))

    def set_autoreset(self, enabled: bool) -> None:
        """Set whether a new episode follows an ended one, see `LiberoVectorEnv.set_autoreset`."""
        self._all("call", "set_autoreset", enabled)

    def instructions(self) -> list[str]:
        """The instruction that each environment shows now."""
        return [text for part in self._all("call", "instructions") for text in part]

    def snapshot(self) -> dict[str, Any] | None:
        """All that the environments' future depends on, as `VLAVecEnv.snapshot` gives it; None if they are closed."""
        if self.closed:
            return None
        return merge_snapshots(self._all("call", "snapshot"))

    def restore(self, snapshot: Mapping[str, Any]) -> Observations:
        """Go on from a snapshot of as many environments, on whatever machines they were."""
        asked = [
            part.ask("restore", split_snapshot(dict(snapshot), share))
            for part, share in zip(self._open_parts(), self.where, strict=True)
        ]
        self._reset_seeds()
        self._reset_options()
        return self._observed([answer() for answer in asked])

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment."""
        values = [value for part in self._all("get_attr", attr_name) for value in part]
        return [values[index] for index in self._indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not offered: the environments live in other processes."""
        raise NotImplementedError(f"Cannot set '{attr_name}' on running environments; make them with another argument.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Results of a method of each environment."""
        chosen = self._indices(indices)
        results: dict[int, Any] = {}
        for part, share in zip(self._open_parts(), self.where, strict=True):
            own = [index - share.start for index in chosen if share.start <= index < share.stop]
            if own:
                answer = part.ask("call", "env_method", method_name, *method_args, indices=own, **method_kwargs)
                results |= dict(zip([index + share.start for index in own], answer(), strict=True))
        return [results[index] for index in chosen]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`, because the infos have its `episode` entries; False for all others."""
        return [wrapper_class is Monitor] * len(self._indices(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The frames that the environments render with ``render_mode="rgb_array"``."""
        return [frame for part in self._all("call", "get_images") for frame in part]

    def _open_parts(self) -> list[Part]:
        self.check_open()
        return self.parts

    def _all(self, name: str, *args: Any) -> list[Any]:
        answers = [part.ask(name, *args) for part in self._open_parts()]
        return [answer() for answer in answers]

    def _observed(self, answers: Sequence[tuple[Observations, list[Any]]]) -> Observations:
        self.reset_infos = [info for _, infos in answers for info in infos]
        return merge_observations([obs for obs, _ in answers])

    def _indices(self, indices: VecEnvIndices) -> list[int]:
        if indices is None:
            return list(range(self.num_envs))
        chosen = list(indices) if not isinstance(indices, int) else [indices]
        return [whole_number("index", index, 0, self.num_envs - 1) for index in chosen]
