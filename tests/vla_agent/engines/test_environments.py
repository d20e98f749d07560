"""An engine's processes hold one set of environments, and a closed one says so."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from fakes import fake_env

from vla_agent.engines import EngineError, RayEngine
from vla_agent.engines.environments import Environments
from vla_agent.engines.roster import Roster
from vla_agent.engines.vec_env import PartedVecEnv
from vla_agent.envs.vec_env import VLAVecEnv


class Engine:
    """One whose only process is this one."""

    def __init__(self) -> None:
        cluster: Any = SimpleNamespace()
        self.roster = Roster(cluster, 0, cast(Any, SimpleNamespace(gpus=0)), 1)
        rollouts = SimpleNamespace(is_ahead=False, abandon=lambda: None)
        self.environments = Environments(self.roster, cast(Any, rollouts))
        self.made: list[VLAVecEnv] = []

    def close_env(self) -> None:
        self.environments.close()

    def make(self) -> PartedVecEnv:
        self.environments.check_vacant()
        self.made.append(fake_env(2))
        parts, described = self.environments.make([(None, lambda: self.made[-1])])
        env = PartedVecEnv(self, [(parts[0], slice(0, 2))], described, None, None)
        self.environments.hold(env)
        return env


def test_a_second_set_of_environments_waits_until_the_first_is_closed_or_dropped() -> None:
    engine = Engine()
    first = engine.make()
    first.reset()
    with pytest.raises(ValueError, match=r"hold environments already.*close those first"):
        engine.make()
    assert first.instructions() == engine.made[0].instructions()
    first.close()
    assert [made._closed for made in engine.made] == [True]
    second = engine.make()
    first.close()  # again: the second is another one's
    second.reset()
    learner: dict[str, Any] = {"env": second}
    learner["self"] = learner  # as learners and their callbacks know each other
    del learner, second
    third = engine.make()
    assert [made._closed for made in engine.made] == [True, True, False]
    engine.close_env()
    assert third.closed


def test_what_fails_to_be_made_takes_no_place() -> None:
    engine = Engine()
    engine.made.append(fake_env(2))

    def fail() -> Any:
        raise TypeError("no such camera")

    with pytest.raises(TypeError, match="no such camera"):
        engine.environments.make([(None, lambda: engine.made[0]), (None, fail)])
    assert engine.made[0]._closed
    engine.make()


CALLS: dict[str, Callable[[PartedVecEnv], Any]] = {
    "reset": PartedVecEnv.reset,
    "step": lambda env: env.step(np.zeros((2, 7), dtype=np.int64)),
    "begin_episodes": lambda env: env.begin_episodes({0: {}}),
    "restore": lambda env: env.restore({}),
    "set_task_weights": lambda env: env.set_task_weights([1.0]),
    "get_attr": lambda env: env.get_attr("instructions"),
    "env_method": lambda env: env.env_method("instructions"),
}


@pytest.mark.parametrize("name", CALLS)
def test_closed_environments_say_so(name: str) -> None:
    env = Engine().make()
    env.close()
    assert env.snapshot() is None
    with pytest.raises(gym.error.ClosedEnvironmentError, match=r"make them anew with engine\.make_vec_env"):
        CALLS[name](env)


def test_a_closed_engine_says_so() -> None:
    roster = Engine().roster
    for ask in (roster.actor, roster.called, roster.node, roster.pid):
        with pytest.raises(EngineError, match="The engine is closed"):
            ask(0)
    closed = RayEngine.__new__(RayEngine)
    closed._closed = True
    with pytest.raises(EngineError, match="The engine is closed"):
        closed.make_vec_env("LIBERO-Spatial-v0")


def test_an_engine_keeps_no_learner_that_nobody_else_holds() -> None:
    class Learner:
        pass

    roster, learner = Engine().roster, Learner()
    roster.learner = learner
    assert roster.learner is learner
    del learner
    gc.collect()
    assert roster.learner is None
