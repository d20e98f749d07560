"""Evaluations inside `learn` that an engine's processes share find what one process finds, and change nothing."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO, EvaluationCallback
from vla_agent.commands.engines import n_envs_of_each
from vla_agent.commands.train import Options
from vla_agent.engines import EngineError, RayEngine
from vla_agent.evaluation import callback
from vla_agent.evaluation.evaluator import Evaluator

ray = pytest.importorskip("ray", reason="ray is not installed")

ENV_ID, N_ENVS, TIMESTEPS = "LIBERO-Spatial-v0", 2, 16  # two iterations
ENV: dict[str, Any] = {
    "model": "tiny-libero",
    "task_id": [0, 1],
    "renderer": "fast",
    "physics": "coarse",
    "placement_seeds": range(4),
    "reward": "progress",  # no episode succeeds in so few steps
    "max_episode_steps": 40,  # so that episodes end within a rollout
    "seed": 0,
}
PPO: dict[str, Any] = {
    "n_steps": 4,
    "batch_size": 4,
    "n_epochs": 2,
    "critic_warmup_iterations": 0,
    "learning_rate": 1e-4,
    "policy_kwargs": {"model": "tiny-libero", "temperature": 0.5, "autocast": None, "average_decay": 0.5},
    "seed": 0,
    "device": "cpu",
}
# Long enough for some episodes to succeed, each after a number of steps of its own.
TRIALS: dict[str, Any] = {
    "task_ids": [0, 1],
    "init_state_ids": [0, 1, 2],
    "protocol": "training",
    "renderer": "fast",
    "max_episode_steps": 120,
    "n_envs": 2,
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One cluster for all tests."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    quiet = {"include_dashboard": False, "configure_logging": False, "log_to_driver": False}
    ray.init("local", num_cpus=8, object_store_memory=2**28, **quiet)
    yield
    ray.shutdown()
    th.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair() -> Iterator[RayEngine]:
    with RayEngine(2, cpus_per_worker=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def ahead() -> Iterator[RayEngine]:
    with RayEngine(1, 1, placement="split", stale=True, cpus_per_worker=1) as engine:
        yield engine


def train(
    engine: RayEngine, *callbacks: BaseCallback, timesteps: int = TIMESTEPS, **policy_kwargs: Any
) -> dict[str, th.Tensor]:
    """The weights of a run, its optimizer's moments and averages, and torch's generator."""
    env = engine.make_vec_env(ENV_ID, N_ENVS, **ENV)
    try:
        model = VLAPPO("VLAPolicy", env, **PPO | {"policy_kwargs": PPO["policy_kwargs"] | policy_kwargs})
        model.learn(timesteps, callback=list(callbacks))
    finally:
        env.close()
    moments = model.policy.optimizer.state_dict()["state"]
    kept = {f"{name} {number}": value for number, state in moments.items() for name, value in state.items()}
    return {**model.policy.state_dict(), **kept, "torch": th.get_rng_state()}


def assert_same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        th.testing.assert_close(second[name], value, rtol=0, atol=0, msg=name)


def sum_weights(folder: Path, learner: Any, items: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """The sum of the policy's weights for each item, once it has drawn from torch; items below 0 end the process."""
    for position, item in enumerate(items):
        if item < 0 and not (folder / f"{item}").exists():
            (folder / f"{item}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield position, sum(float(parameter.detach().double().sum()) for parameter in learner.policy.parameters())


class Sums(BaseCallback):
    """Has the processes sum the policy's weights before each rollout, as averaged; they may die over it."""

    def __init__(self, engine: RayEngine, folder: Path, dies: bool) -> None:
        super().__init__()
        self.engine, self.folder, self.dies = engine, folder, dies
        self.found: list[dict[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        policy: Any = self.model.policy
        # The first two items are this process's and the other's; so are the next two.
        items = [1, 2, 3, -1 - len(self.found) if self.dies else 4]
        work = functools.partial(sum_weights, self.folder)
        with policy.averaged():
            shared = self.engine.map_learner(self.model, work, items, here=functools.partial(work, self.model))
            self.found.append(dict(shared))


@pytest.mark.parametrize(("name", "n_iterations"), [("pair", 2), ("ahead", 3)])  # what was played ahead has a sequel
def test_all_processes_act_with_the_averaged_weights_of_now_and_learn_on_with_their_own(
    name: str, n_iterations: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    engine: RayEngine = request.getfixturevalue(name)
    timesteps = n_iterations * N_ENVS * PPO["n_steps"]
    without = train(engine, timesteps=timesteps)
    sums = [Sums(engine, tmp_path, dies) for dies in (False, True)]
    before = engine.n_replaced
    assert any(name.startswith("average") for name in without)
    assert_same(without, train(engine, sums[0], timesteps=timesteps))
    assert engine.n_replaced == before
    assert_same(without, train(engine, sums[1], timesteps=timesteps))
    assert engine.n_replaced == before + n_iterations
    for found in (sums[0].found, sums[1].found):
        assert [len(set(results.values())) for results in found] == [1] * n_iterations
        assert [sorted(results) for results in found] == [[0, 1, 2, 3]] * n_iterations
        assert found[0][0] != found[1][0]  # it has learned


def test_of_learners_that_share_the_weights_those_act_that_have_them_whole(tmp_path: Path) -> None:
    class Averaging:
        def __init__(self, average_decay: float) -> None:
            self.policy = SimpleNamespace(average_decay=average_decay)

    averaging = Averaging(0.5)
    with RayEngine(2, shard=True, cpus_per_worker=1) as engine:
        sums = Sums(engine, tmp_path, dies=False)
        assert_same(train(engine, average_decay=0.0), train(engine, sums, average_decay=0.0))
        assert engine.who_acts_as(sums.model) == [0]
        assert [len(set(results.values())) for results in sums.found] == [1, 1]
        assert sums.found[0][0] != sums.found[1][0]
        engine.roster.learner = averaging  # whose average the first learner alone has
        assert engine.who_acts_as(averaging) == []
        assert engine.who_acts_as(Averaging(0.0)) == []  # another one
    with RayEngine(2, 1, placement="split", shard=True, cpus_per_worker=1) as engine:
        engine.roster.learner = averaging
        assert engine.who_acts_as(averaging) == [0]  # who plays; the second learner has no whole policy


def test_environments_that_cannot_say_where_they_are_are_not_left_behind(
    ahead: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead.roster, "knows_where", lambda number: False)
    with pytest.raises(EngineError, match="cannot say where they were"):
        train(ahead, Sums(ahead, tmp_path, dies=True))


class Alone(BaseCallback):
    """Evaluates again in this process, after each evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def _on_step(self) -> bool:
        policy: Any = self.model.policy
        with policy.averaged(), Evaluator(self.model, ENV_ID, **TRIALS) as evaluator:
            self.found.append(evaluator.run(progress_bar=False).episodes)
        return True


def test_learners_evaluate_together_what_one_of_them_does_alone(pair: RayEngine) -> None:
    alone = Alone()
    shared = EvaluationCallback(ENV_ID, at_start=True, callback_after_eval=alone, **TRIALS)
    calls = []
    share = pair.map_learner

    def counting(*args: Any) -> Iterator[Any]:
        calls.append(list(args[2]))
        return share(*args)

    pair.map_learner = counting  # type: ignore[method-assign]
    try:
        assert_same(train(pair, timesteps=8), train(pair, shared, timesteps=8))
    finally:
        del pair.map_learner  # type: ignore[method-assign]
    assert [len(trials) for trials in calls] == [6]
    assert [list(report.episodes) for report in shared.reports.values()] == alone.found
    assert len({episode.steps for episode in alone.found[0]}) > 2  # else they could be others, and the same


def test_drawn_episodes_and_those_of_one_process_stay_here(ahead: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    class Recorder:
        def __init__(self, *args: Any, engine: RayEngine | None, **kwargs: Any) -> None:
            found.append(engine)

        def close(self) -> None:
            pass

    monkeypatch.setattr(callback, "Evaluator", Recorder)
    given: list[dict[str, Any]] = [{}, {"deterministic": False}, {"spread": False}]
    given.append({"deterministic": False, "spread": True})
    for engine in (ahead, RayEngine()):
        train(engine, *(EvaluationCallback(ENV_ID, **kwargs) for kwargs in given), timesteps=0)
    engine.close()
    assert found == [ahead, None, None, ahead, None, None, None, None]


@pytest.mark.parametrize(
    ("options", "n_envs"),
    [
        ({}, 12),
        ({"engine": "ray", "learners": 4}, 3),
        ({"engine": "ray", "learners": 5}, 3),
        ({"engine": "ray", "learners": 4, "placement": "split"}, 12),
        ({"engine": "ray", "policies": 2, "placement": "split"}, 6),
    ],
)
def test_the_command_evaluates_in_as_many_environments_as_each_process_trains_in(
    options: dict[str, Any], n_envs: int
) -> None:
    assert n_envs_of_each(Options(**options), 12) == n_envs
