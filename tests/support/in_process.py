"""A back end without processes, after its interface alone: what `LiberoVectorEnv` asks of one is no more than this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from libero_gym.env import LiberoEnv
from libero_gym.vector.backend import ENDED, FINAL, INFO_KEYS, RUNNING, Plan, ResetRequests


class InProcess:
    """Steps the environments one after the other in this process, and counts its steps.

    Args:
        plan: The environments.
        greeting: An argument of its own.
    """

    settings: Mapping[str, Any] = {}
    n_restarts = 0
    render_devices = (None,)

    def __init__(self, plan: Plan, *, greeting: str = "") -> None:
        self.greeting = greeting
        self.arrays: Mapping[str, np.ndarray] = {
            name: np.zeros(shape, dtype) for name, (shape, dtype) in plan.layout.items()
        } | {"n_steps": np.zeros(plan.num_envs, dtype=np.int64)}
        self.info_keys: tuple[str, ...] = ("n_steps",)
        self.is_stepping = False
        self.envs = [LiberoEnv(**plan.env_kwargs) for _ in range(plan.num_envs)]
        self.mode: AutoresetMode | None = None

    def reset(self, requests: ResetRequests) -> None:
        self.is_stepping = False
        for index, (seed, options) in requests.items():
            self._show("", index, *self.envs[index].reset(seed=seed, options=options))
            self.arrays["phase"][index] = RUNNING

    def begin_step(self, actions: np.ndarray) -> None:
        self.is_stepping = True
        self.actions = actions.copy()

    def end_step(self) -> None:
        self.is_stepping = False
        for name in ("rewards", "terminated", "truncated"):
            self.arrays[name][:] = 0
        for index, env in enumerate(self.envs):
            if self.arrays["phase"][index] == ENDED:
                if self.mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
                    self.reset({index: (None, {})})
                continue
            obs, self.arrays["rewards"][index], terminated, truncated, info = env.step(self.actions[index])
            self.arrays["terminated"][index], self.arrays["truncated"][index] = terminated, truncated
            self.arrays["n_steps"][index] += 1
            self._show("", index, obs, info)
            if terminated or truncated:
                self._show(FINAL, index, obs, info)
                self.arrays["phase"][index] = ENDED
                if self.mode is AutoresetMode.SAME_STEP:
                    self.reset({index: (None, {})})

    def set_autoreset(self, mode: AutoresetMode | None) -> None:
        self.mode = mode

    def set_task_weights(self, weights: np.ndarray) -> None:
        for env in self.envs:
            env.set_task_weights(weights)

    def snapshot(self) -> dict[str, Any]:
        ended = (self.arrays["phase"] == ENDED).tolist()
        return {"environments": [env.snapshot() for env in self.envs], "ended": ended}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        for index, env in enumerate(self.envs):
            for prefix in ("", FINAL):
                self._show(prefix, index, *env.restore(snapshot["environments"][index]))
        self.arrays["phase"][:] = np.where(snapshot["ended"], ENDED, RUNNING)

    def hand_out(self, values: np.ndarray) -> np.ndarray:
        return values

    def render(self) -> tuple[np.ndarray, ...]:
        return self.call("render", range(len(self.envs)), (), {})

    def call(self, name: str, chosen: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        members = [getattr(self.envs[index], name) for index in chosen]
        results = tuple(member(*args, **kwargs) if callable(member) else member for member in members)
        for index in chosen if name in ("set_state", "restore") else ():
            self._show("", index, *self.envs[index].restore(self.envs[index].snapshot()))
            self.arrays["phase"][index] = RUNNING
        return results

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _show(self, prefix: str, index: int, obs: dict[str, Any], info: dict[str, Any]) -> None:
        for key, value in obs.items():
            if key in self.arrays:
                self.arrays[prefix + key][index] = value
        for key in INFO_KEYS:
            self.arrays[prefix + key][index] = info[key]
        self.arrays[prefix + "reward_terms"][index] = list(info["reward_terms"].values())
