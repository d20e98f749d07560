"""A learner that stops, its callbacks, and two runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from fakes import FakeBackbone, fake_env
from saved_runs import fake_model
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from vla_agent import (
    VLAPPO,
    Curriculum,
    SuccessCallback,
)


class StopAt(BaseCallback):
    """Ends the training in the middle of a rollout, as a signal does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.n_calls < self.step


def learner(**kwargs: Any) -> VLAPPO:
    settings: dict[str, Any] = {"n_epochs": 2, "batch_size": 8, "learning_rate": LinearSchedule(1e-2, 1e-3, 1.0)}
    settings |= {"critic_warmup_iterations": 1, "n_value_epochs": 3, "value_gae_lambda": 1.0}
    return fake_model(**settings | kwargs)


def callbacks() -> list[BaseCallback]:
    return [Curriculum("frontier", tau=0.1, window=5), SuccessCallback()]


def load(path: Path, n_envs: int = 2, **kwargs: Any) -> VLAPPO:
    policy_kwargs = {"model": FakeBackbone(seed=1)} | kwargs.pop("policy_kwargs", {})
    return VLAPPO.load(path, fake_env(n_envs), device="cpu", policy_kwargs=policy_kwargs, **kwargs)


def assert_equal_runs(first: VLAPPO, second: VLAPPO) -> None:
    assert first.num_timesteps == second.num_timesteps
    assert first.n_iterations == second.n_iterations
    for (name, one), other in zip(first.policy.named_parameters(), second.policy.parameters(), strict=True):
        assert th.equal(one, other), name
        for key, moment in first.policy.optimizer.state[one].items():
            assert th.equal(moment, second.policy.optimizer.state[other][key]), (name, key)
    for key, values in first._last_obs.items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(values, second._last_obs[key])  # type: ignore[index, call-overload]
    assert [(info["r"], info["l"]) for info in first.ep_info_buffer or ()] == [
        (info["r"], info["l"]) for info in second.ep_info_buffer or ()
    ]
