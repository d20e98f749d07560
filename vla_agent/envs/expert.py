"""The scripted expert as a policy of an evaluation: what a policy that sees everything reaches by the same protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from libero_gym.dimensions import Physics
from libero_gym.env import LiberoEnv
from libero_gym.experts import Expert
from vla_agent.envs.vec_env import VLAVecEnv

PHYSICS = get_args(Physics)


class ExpertPolicy:
    """`libero_gym.experts.Expert` in each environment, by `vla_agent.actors.Actor`.

    An expert reads a simulator, and those of the environments live in other processes. So it has one of its own, which
    begins where the environment's does and takes the same actions, with the same bits. No frame is drawn.
    """

    cameras: Sequence[str] = ()

    def __init__(self) -> None:
        self._env: Any = None
        self._mirrors: dict[int, LiberoEnv] = {}
        self._experts: dict[int, Expert] = {}

    def attach(self, env: VLAVecEnv) -> None:
        """Play in these environments.

        Raises:
            ValueError: If they simulate worlds on a device, in a physics of its own.
        """
        if env.settings["physics"] not in PHYSICS:
            raise ValueError("The expert needs backend='processes', whose simulators it can follow; leave backend out.")
        self._env = env

    def reset(self, env_ids: Sequence[int]) -> None:
        """Begin a script in each of these environments."""
        chosen = list(env_ids)
        snapshots = self._env.env_method("snapshot", indices=chosen)
        for env_id, snapshot in zip(chosen, snapshots, strict=True):
            mirror = self._mirror(env_id)
            mirror.restore(snapshot)
            self._experts[env_id] = Expert(mirror.simulator)

    def act(self, observations: Mapping[str, Any], env_ids: Sequence[int]) -> np.ndarray:
        """The next action of each script, float64 (n, 7)."""
        actions = []
        for env_id in env_ids:
            expert = self._experts[env_id]
            actions.append(expert.act())
            expert.simulator.step(actions[-1])
        return np.stack(actions)

    def close(self) -> None:
        """Free the simulators."""
        for mirror in self._mirrors.values():
            mirror.close()
        self._mirrors.clear()

    def _mirror(self, env_id: int) -> LiberoEnv:
        if env_id not in self._mirrors:
            settings = self._env.settings
            self._mirrors[env_id] = LiberoEnv(
                settings["suite"], task_id=settings["task_ids"], cameras=(), physics=settings["physics"]
            )
        return self._mirrors[env_id]
