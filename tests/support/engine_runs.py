"""Short trainings that tests compare between engines."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_recipe
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO, Curriculum
from vla_agent.engines import RayEngine

PPO = engine_recipe.PPO | {
    "gae_lambda": 0.9,
    "value_gae_lambda": 0.95,
    "n_value_epochs": 2,
    "ratio_level": "token",
    "critic_warmup_iterations": 1,
    "batch_size": 4,
}
ENV = engine_recipe.ENV | {"physics": "coarse"}  # what these tests compare does not depend on it
N_ENVS = 2
ITERATION = N_ENVS * PPO["n_steps"]  # timesteps
TIMESTEPS = 3 * ITERATION


def one_cluster() -> Iterator[None]:
    """A fixture: one cluster for all tests of a module; engines that find one do not start their own."""
    import ray

    threads = th.get_num_threads()
    th.set_num_threads(1)
    quiet = {"include_dashboard": False, "configure_logging": False, "log_to_driver": False}
    ray.init("local", num_cpus=8, object_store_memory=2**28, **quiet)
    yield
    ray.shutdown()
    th.set_num_threads(threads)


class Run:
    """A finished training: what it learned, and what it met."""

    def __init__(
        self, env: Any, *callbacks: BaseCallback, timesteps: int = TIMESTEPS, save: Path | None = None, **changes: Any
    ) -> None:
        self.curriculum = Curriculum("frontier")
        self.model = VLAPPO(env=env, **({"policy": "VLAPolicy"} | PPO | changes))
        self.model.learn(timesteps, callback=[self.curriculum, *callbacks])
        if save is not None:
            self.model.save(save)  # with the environments where they are
        env.close()

    @property
    def weights(self) -> dict[str, th.Tensor]:
        return self.model.policy.state_dict()


def assert_same(first: Run, second: Run, atol: float = 0.0) -> None:
    assert first.curriculum.history == second.curriculum.history
    assert len(first.curriculum.history) > 0
    assert first.model.rollout_buffer.advantages.std() > 0  # else nothing would be learned
    for name, weights in first.weights.items():
        th.testing.assert_close(second.weights[name], weights, rtol=0, atol=atol)


class Kill(BaseCallback):
    """Ends a process after some step, or some milliseconds into the update after some rollout."""

    def __init__(self, engine: RayEngine, number: int, *, step: int = 0, rollout: int = 0) -> None:
        super().__init__()
        self.engine, self.number, self.step, self.rollout = engine, number, step, rollout
        self.n_rollouts = 0

    def _kill(self) -> None:
        os.kill(self.engine.roster.pid(self.number), signal.SIGKILL)

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self._kill()
        return True

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1
        if self.n_rollouts == self.rollout:
            threading.Timer(0.05, self._kill).start()
