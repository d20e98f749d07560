"""One environment on the host that stands, one after the other, where worlds of a batch are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from libero_gym.env import LiberoEnv
from libero_gym.env.simulators import Simulators
from libero_gym.env.state import EpisodeState, snapshot_from_json
from libero_gym.rendering import renderer
from libero_gym.simulation.states import SimState


class Mirror:
    """Draws worlds' frames, and answers in their place what only a `LiberoEnv` can.

    It simulates nothing: MuJoCo's own simulators hold what a frame shows, or the state that a method reads.

    Args:
        env_kwargs: Arguments of the `LiberoEnv`.
    """

    def __init__(self, env_kwargs: Mapping[str, Any]) -> None:
        self._env_kwargs = dict(env_kwargs)
        self._env: LiberoEnv | None = None
        self._shown = Simulators("fast")

    @property
    def env(self) -> LiberoEnv:
        """The environment, which is made at its first use."""
        if self._env is None:
            self._env = LiberoEnv(**self._env_kwargs)
        return self._env

    def frames(self, episode: EpisodeState, state: SimState, cameras: tuple[str, ...], size: int) -> list[np.ndarray]:
        """A world's frames, uint8 (size, size, 3), as `rendering.render` draws them."""
        memory, env = state.memory, self.env
        assert memory is not None
        simulator = self._shown.get(episode.task, *episode.fixtures)
        simulator.kinematics_qpos[:] = memory.kinematics_qpos
        simulator.burners_shown = memory.burners_shown
        return renderer.render(simulator, cameras, size, env.render_device, env.renderer, env.n_render_threads)

    def at(self, episode: EpisodeState, state: SimState, generator: np.random.Generator, name: str) -> Any:
        """A member of the environment, once it stands where a world is."""
        self.env.place(episode, state, generator)
        return getattr(self.env, name)

    def moment(self) -> tuple[EpisodeState, SimState, np.random.Generator]:
        """Where the environment is now."""
        env = self.env
        own = env.suite.name, env.task_ids, env.tasks, env.privileged, env.reward
        return snapshot_from_json(env.snapshot(), *own)

    def close(self) -> None:
        """Free the simulators."""
        self._shown.clear()
        if self._env is not None:
            self._env.close()
