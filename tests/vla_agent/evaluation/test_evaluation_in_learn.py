"""Evaluations inside `learn`: of one test, whatever goes on from where, and ended by a signal at their next step."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from evaluations import SMALL, SimProcessor, fake_model
from fakes import FakeBackbone, fake_env
from stable_baselines3.common.callbacks import (
    BaseCallback,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)

from vla_agent import VLAPPO, EvaluationCallback, EvaluationReport, Evaluator, RunCheckpoints, latest_run, safe_learn
from vla_agent.evaluation import callback as callback_module
from vla_agent.evaluation.results import EpisodeResult

ENV_ID = "LIBERO-Spatial-v0"
TRIALS: dict[str, Any] = {"task_ids": [2], "init_state_ids": [5, 6], "n_envs": 1, **SMALL}
TRIALS.pop("progress_bar")


class Instant:
    """In the place of an `Evaluator`: of many states half succeed, of few all."""

    def __init__(self, *args: Any, init_state_ids: Sequence[int], **kwargs: Any) -> None:
        self.states = init_state_ids

    def run(self, **kwargs: Any) -> EvaluationReport:
        episodes = [EpisodeResult(2, state, state % 2 == 0 or len(self.states) < 5, 7) for state in self.states]
        return EvaluationReport({"suite": "libero_spatial"}, {}, episodes, {2: "a task"}, {}, {}, True)

    def close(self) -> None: ...


def load(path: Path) -> VLAPPO:
    backbone = FakeBackbone(seed=1)
    backbone.processor = SimProcessor()
    return VLAPPO.load(path, fake_env(2), device="cpu", policy_kwargs={"model": backbone})


def in_learn(**kwargs: Any) -> EvaluationCallback:
    often: dict[str, Any] = {"eval_freq": 16, "at_start": True, "at_end": True}
    return EvaluationCallback(ENV_ID, **often | kwargs)


def points(callback: EvaluationCallback) -> list[tuple[int, int]]:
    """Timestep and number of episodes of each evaluation."""
    return [(done.num_timesteps, len(done.episodes)) for done in callback.history]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"init_state_ids": range(3)}, r"init_state_ids: 0-19, not 0-2"),
        ({"task_ids": [2, 3]}, r"task_ids: all, not 2-3"),
        ({"placement_seeds": [7]}, r"placement_seeds: none, not 7"),
        ({"deterministic": False, "seed": 1}, r"deterministic: True, not False; seed: 0, not 1"),
        ({"deterministic": False, "temperature": 0.5}, r"temperature: None, not 0\.5"),
        ({"renderer": "fast"}, r"renderer: 'exact', not 'fast'"),
        ({"protocol": "fixed"}, r"protocol: 'openvla', not 'fixed'"),
        ({"physics": "fast"}, r"physics: 'exact', not 'fast'"),
        ({"backend": "warp"}, r"backend: 'processes', not 'warp'"),
        ({"image_size": 64}, r"image_size: None, not 64"),
        ({"cameras": ("agentview", "wrist")}, r"cameras: None, not \['agentview', 'wrist'\]"),
        ({"processor": "tiny-libero"}, r"processor: 'tiny', not 'tiny-libero'"),
        ({"trained_states": True}, r"trained_states: False, not True"),
        ({"replan_steps": 3}, r"replan_steps: None, not 3"),
        ({"image_transform": np.flip}, r"image_transform: None, not 'numpy\.flip \("),
        ({"nconmax": 9, "njmax": 8}, r"nconmax: None, not 9; njmax: None, not 8"),
    ],
)
def test_a_run_does_not_go_on_by_another_test_in_silence(given: dict[str, Any], told: str) -> None:
    state = json.loads(json.dumps(in_learn(init_state_ids=range(20)).state_dict()))
    other = {"init_state_ids": range(20)} | given
    ends = r"\)\. Give what it was evaluated with, or allow_changes=True \(--allow-changes\)"
    with pytest.raises(ValueError, match=rf"evaluated on another test \(.*{told}.*{ends}"):
        in_learn(**other).load_state_dict(state)


def test_the_same_test_in_other_words_is_the_same() -> None:
    state = json.loads(json.dumps(in_learn(init_state_ids=range(3)).state_dict()))
    same = in_learn(init_state_ids=np.array([2, 0, 1]), renderer="exact", n_envs=7, n_workers=2, spread=False)
    same.load_state_dict(state)
    in_learn(init_state_ids=iter([0, 1, 2]), eval_freq=8, at_end=False).load_state_dict(state)
    in_learn(init_state_ids=range(3), device="cpu", render_device=1, backend_device="auto").load_state_dict(state)
    for name in ("trained_states", "processor", "replan_steps", "physics", "temperature"):
        del state["settings"][name]  # as of before it was kept: it counts as the default
    in_learn(init_state_ids=range(3)).load_state_dict(state)
    with pytest.raises(ValueError, match="trained_states: False, not True"):
        in_learn(init_state_ids=range(3), trained_states=True).load_state_dict(state)
    del state["settings"]  # as of before they were kept
    in_learn(init_state_ids=range(20), deterministic=False).load_state_dict(state)


def test_a_test_that_may_change_begins_another_history_and_another_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_module, "Evaluator", Instant)
    model, before = fake_model(), in_learn(init_state_ids=range(3), folder=tmp_path / "run")
    model.learn(32, before)
    assert (points(before), before.best_success_rate) == ([(0, 3), (16, 3), (32, 3)], 1.0)
    model.save(tmp_path / "a")
    other: dict[str, Any] = {"init_state_ids": range(20), "folder": tmp_path / "run"}
    with pytest.raises(ValueError, match="evaluated on another test"):
        load(tmp_path / "a").learn(32, in_learn(**other), reset_num_timesteps=False)
    assert load(tmp_path / "run" / "best").num_timesteps == 0, "nothing was written"
    after = in_learn(**other, allow_changes=True)
    load(tmp_path / "a").learn(32, after, reset_num_timesteps=False)
    assert (points(after), after.best_success_rate) == ([(32, 20), (48, 20), (64, 20)], 0.5)
    assert set(after.practice) == {32, 48, 64}
    assert load(tmp_path / "run" / "best").num_timesteps == 32


class Spy(BaseCallback):
    """Notes what it is told, and of whom it is a child."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def _on_training_start(self) -> None:
        self.told.append("start")

    def _on_step(self) -> bool:
        self.told.append((self.parent.last_mean_reward, self.parent.best_mean_reward))  # type: ignore[union-attr]
        return True


def test_children_hear_of_the_training_and_read_success_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_module, "Evaluator", Instant)
    new_best, after = Spy(), Spy()
    callback = in_learn(init_state_ids=range(20), callback_on_new_best=new_best, callback_after_eval=after)
    assert callback.best_mean_reward == callback.last_mean_reward == -np.inf
    fake_model().learn(32, callback)
    assert new_best.told == ["start", (0.5, 0.5)]
    assert after.told == ["start", *[(0.5, 0.5)] * 3]
    assert after.locals


@pytest.mark.parametrize(
    ("child", "evaluations"),
    [
        ({"callback_after_eval": StopTrainingOnNoModelImprovement(1, 0)}, 3),
        ({"callback_on_new_best": StopTrainingOnRewardThreshold(0.4)}, 1),
        ({"callback_on_new_best": StopTrainingOnRewardThreshold(0.9)}, 6),
    ],
)
def test_sb3s_callbacks_end_a_training_by_success_rates(
    child: dict[str, Any], evaluations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_module, "Evaluator", Instant)
    callback = EvaluationCallback(ENV_ID, eval_freq=16, at_start=True, init_state_ids=range(20), **child)
    fake_model().learn(96, callback)
    assert len(callback.history) == evaluations


def test_what_a_step_raises_ends_an_evaluation_as_ctrl_c_does(tmp_path: Path) -> None:
    steps = []

    def stop() -> None:
        steps.append(1)
        if len(steps) == 6:  # three steps of an episode, its end, and two of the next
            raise InterruptedError

    with Evaluator(fake_model(), **TRIALS) as evaluator:
        th.manual_seed(3)
        expected = th.rand(1)
        th.manual_seed(3)
        with pytest.raises(InterruptedError):
            evaluator.run(progress_bar=False, out=tmp_path, on_step=stop)
        assert th.rand(1) == expected
        partial = EvaluationReport.load(tmp_path)
        assert not partial.complete
        whole = evaluator.run(progress_bar=False, out=tmp_path)
        assert len(steps) == 6
    assert partial.episodes == whole.episodes[:1]
    assert [episode.init_state_id for episode in whole.episodes] == [5, 6]


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[VLAPPO, EvaluationCallback]:
    """A run that never stopped, with evaluations at 0, 16 and 32."""
    model, callback = fake_model(policy_kwargs={"average_decay": 0.5}), in_learn(**TRIALS)
    model.learn(32, callback)
    assert [steps for steps, _ in points(callback)] == [0, 16, 32]
    return model, callback


@pytest.mark.parametrize("at", [0, 16, 32], ids=["before", "on the way", "after"])
def test_a_signal_ends_an_evaluation_at_its_next_step_and_the_run_makes_it_up(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[VLAPPO, EvaluationCallback]
) -> None:
    """The run that goes on equals one that never stopped, in its weights and in what its evaluations found."""
    whole, expected = uninterrupted
    cut, stopped = fake_model(policy_kwargs={"average_decay": 0.5}), in_learn(**TRIALS)
    stepped, run = [], Evaluator.run

    def signalled(self: Evaluator, **kwargs: Any) -> EvaluationReport:
        step_wait = self.env.step_wait

        def step() -> Any:
            stepped.append(cut.num_timesteps)
            if stepped.count(at) == 2:  # in the middle of the first of two episodes
                os.kill(os.getpid(), signal.SIGTERM)
            return step_wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.env, "step_wait", step)
            return run(self, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "run", signalled)
        assert not safe_learn(cut, 32, tmp_path, [stopped, RunCheckpoints(tmp_path, every=1)])
    assert stepped.count(at) == 2
    assert stepped[-1] == at
    assert [steps for steps, _ in points(stopped)] == [steps for steps in (0, 16) if steps < at]
    assert latest_run(tmp_path).name == "interrupted"

    resumed, result = load(latest_run(tmp_path)), in_learn(**TRIALS)
    assert resumed.num_timesteps == at
    assert safe_learn(resumed, 32 - at, tmp_path, result, reset_num_timesteps=False)
    assert result.history == expected.history
    assert result.practice == expected.practice
    for one, other in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert th.equal(one, other)


def test_no_evaluation_begins_once_a_signal_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an update, which the evaluation follows; the last one too."""
    monkeypatch.setattr(callback_module, "Evaluator", Instant)
    for iteration in (1, 3):
        model, callback = fake_model(), in_learn(init_state_ids=range(3))
        train = model.train

        def signalled(model: VLAPPO = model, train: Any = train, iteration: int = iteration) -> None:
            train()
            if model.n_iterations == iteration:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(model, "train", signalled)
        assert not safe_learn(model, 48, tmp_path / str(iteration), callback)
        resumed, result = load(tmp_path / str(iteration) / "interrupted"), in_learn(init_state_ids=range(3))
        assert [steps for steps, _ in points(callback)] == list(range(0, 16 * iteration, 16))
        assert resumed.num_timesteps == 16 * iteration
        resumed.learn(48 - resumed.num_timesteps, result, reset_num_timesteps=False)
        assert [steps for steps, _ in points(result)] == [0, 16, 32, 48]
