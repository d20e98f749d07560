"""Going on from a saved run equals never having stopped, to the bit; what is kept on disk; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, fake_env
from resuming import StopAt, assert_equal_runs, callbacks, learner, load
from saved_runs import fake_model
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import (
    VLAPPO,
    Curriculum,
    EvaluationCallback,
    EvaluationReport,
    LearningCurve,
    RunCheckpoints,
    RunError,
    VLAVecEnv,
    latest_run,
    make_vec_env,
    safe_learn,
)
from vla_agent.evaluation.results import EpisodeResult


@pytest.mark.parametrize("stop", [32, 20, 33, 48], ids=["after two", "in the second", "in the third", "after three"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, stop: int) -> None:
    """Five iterations of 16 steps: weights, moments, learning rate, curriculum, environments, the episodes' history."""
    whole = learner()
    expected = callbacks()
    whole.learn(160, expected)
    cut = learner()
    if stop % 16:
        cut.learn(160, [*callbacks(), StopAt(stop)])
    else:
        cut.learn(160, [*callbacks(), StopAt(stop + 1)])
    cut.save(tmp_path / "a")
    np.random.seed(123)  # noqa: NPY002 - somebody draws in between
    th.manual_seed(123)
    resumed = load(tmp_path / "a")
    assert resumed.num_timesteps == stop // 16 * 32
    result = callbacks()
    resumed.learn(160 - resumed.num_timesteps, result, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)
    for one, other in zip(expected, result, strict=True):
        assert one.history == other.history  # type: ignore[attr-defined]
        assert len(one.history) > 20  # type: ignore[attr-defined]
    np.testing.assert_array_equal(whole.env.venv.task_weights, resumed.env.venv.task_weights)  # type: ignore[union-attr]
    assert len(set(resumed.env.venv.task_weights)) == 2  # type: ignore[union-attr]


def test_a_run_in_the_simulator_resumes_to_the_bit(tmp_path: Path) -> None:
    """The tiny model in two real environments, stopped in the middle of the second of three rollouts."""

    def make() -> VLAVecEnv:
        return make_vec_env(
            "LIBERO-Spatial-v0", 2, task_id=[0, 1], renderer="fast", settle_steps=2, max_episode_steps=5, seed=3
        )

    def learn(*stop: BaseCallback) -> VLAPPO:
        model = VLAPPO("VLAPolicy", make(), n_steps=4, batch_size=8, critic_warmup_iterations=0, seed=0, device="cpu")
        return model.learn(24, list(stop))

    whole, cut = learn(), learn(StopAt(6))
    cut.save(tmp_path / "a")
    resumed = VLAPPO.load(tmp_path / "a", make(), device="cpu")
    assert resumed.num_timesteps == 8
    resumed.learn(16, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)
    for model in (whole, cut, resumed):
        model.env.close()  # type: ignore[union-attr]


def test_a_run_over_several_suites_resumes_to_the_bit(tmp_path: Path) -> None:
    """A task of each of the four, whose limits differ, drawn by a curriculum."""
    limits = {3: 2, 14: 3, 25: 4, 36: 5}

    def make() -> VLAVecEnv:
        kwargs: dict[str, Any] = {"max_episode_steps": list(limits.values()), "settle_steps": 0, "n_workers": 1}
        return make_vec_env("LIBERO-40-v0", 2, task_id=list(limits), renderer="fast", seed=3, **kwargs)

    def learn(*stop: BaseCallback) -> tuple[VLAPPO, Curriculum]:
        curriculum = Curriculum("frontier")
        model = VLAPPO("VLAPolicy", make(), n_steps=6, batch_size=12, n_epochs=1, seed=0, device="cpu")
        return model.learn(36, [curriculum, *stop]), curriculum

    (whole, expected), (cut, _) = learn(), learn(StopAt(16))
    cut.save(tmp_path / "a")
    resumed, curriculum = VLAPPO.load(tmp_path / "a", make(), device="cpu"), Curriculum("frontier")
    resumed.learn(36 - resumed.num_timesteps, curriculum, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)
    assert curriculum.history == expected.history
    assert all(episode.length == limits[episode.task_id] for episode in expected.history)
    assert len({episode.task_id for episode in expected.history}) > 2
    assert list(curriculum.weights) == list(limits)
    assert curriculum.weights == expected.weights
    for model in (whole, cut, resumed):
        model.env.close()  # type: ignore[union-attr]


def test_changed_hyperparameters_are_listed_and_refused(tmp_path: Path) -> None:
    model = learner(gamma=0.9, policy_kwargs={"temperature": 1.5})
    model.learn(32)
    model.save(tmp_path / "a")
    same = load(tmp_path / "a", gamma=0.9, policy_kwargs={"temperature": 1.5}, verbose=1)
    assert same._last_obs is not None
    with pytest.raises(RunError, match=r"gamma: 0\.9, not 0\.95; policy_kwargs temperature: 1\.5, not 1\.0; n_envs: 2"):
        load(tmp_path / "a", 4, gamma=0.95, policy_kwargs={"temperature": 1.0})
    changed = load(tmp_path / "a", 4, gamma=0.95, policy_kwargs={"temperature": 1.0}, allow_changes=True)
    assert changed.gamma == 0.95
    assert changed._last_obs is None  # other environments begin other episodes
    env = fake_env(2, max_episode_steps=9)
    with pytest.raises(RunError, match="environments' max_episode_steps: 4, not 9"):
        VLAPPO.load(tmp_path / "a", env, policy_kwargs={"model": FakeBackbone()}, device="cpu")


def test_what_a_run_was_made_without_is_a_change_too(tmp_path: Path) -> None:
    learner(policy_kwargs={"average_decay": 0.9}).save(tmp_path / "averaged")
    with pytest.raises(RunError, match=r"policy_kwargs average_decay: 0\.9, not 0\.0"):
        load(tmp_path / "averaged", policy_kwargs={"average_decay": 0.0})
    changed = load(tmp_path / "averaged", policy_kwargs={"average_decay": 0.0}, allow_changes=True)
    assert changed.policy.average_decay == 0.0
    learner().save(tmp_path / "plain")
    load(tmp_path / "plain", policy_kwargs={"average_decay": 0.0, "lora": None, "gradient_checkpointing": False})
    with pytest.raises(RunError, match=r"policy_kwargs average_decay: 0\.0, not 0\.5"):
        load(tmp_path / "plain", policy_kwargs={"average_decay": 0.5})


def test_checkpoints_are_kept_and_removed_as_asked(tmp_path: Path) -> None:
    """Of 32, 64, ..., 288 steps (the last update's is the caller's to save): two newest, and one per hundred."""
    folder = tmp_path / "checkpoints"
    (folder / ".0000000032.killed").mkdir(parents=True)
    fake_model().learn(320, RunCheckpoints(tmp_path, every=1, keep=2, keep_every=100))
    assert sorted(int(path.name) for path in folder.iterdir()) == [128, 224, 256, 288]
    assert load(latest_run(tmp_path)).num_timesteps == 288
    with pytest.raises(ValueError, match="every=0 is out of range"):
        RunCheckpoints(tmp_path, every=0)


def test_the_latest_run_is_found(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no saved run in"):
        latest_run(tmp_path)
    model = fake_model()
    model.learn(32)
    model.save(tmp_path / "checkpoints" / "0000000032")
    assert latest_run(tmp_path).name == "0000000032"
    safe_learn(model, 320, tmp_path, StopAt(40), reset_num_timesteps=False)
    assert latest_run(tmp_path).name == "0000000032"
    model.save(tmp_path / "interrupted")
    assert latest_run(tmp_path).name == "interrupted"
    assert latest_run(tmp_path / "checkpoints" / "0000000032").name == "0000000032"


def test_the_learning_curve_goes_on(tmp_path: Path) -> None:
    model, curve = fake_model(), LearningCurve(tmp_path / "curve.png")
    model.learn(64, curve)
    model.save(tmp_path / "a")
    resumed, again = load(tmp_path / "a"), LearningCurve(tmp_path / "again.png")
    resumed.learn(64, again, reset_num_timesteps=False)
    assert again.history[: len(curve.history)] == curve.history
    assert len(again.history) > len(curve.history)
    fresh = LearningCurve(tmp_path / "fresh.png")
    load(tmp_path / "a").learn(32, fresh)  # from zero: a run of its own
    assert all(episode.num_timesteps <= 32 for episode in fresh.history)


class InstantEvaluator:
    """Stands for `Evaluator` where only the moments of evaluations matter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def run(self, **kwargs: Any) -> EvaluationReport:
        episodes = [EpisodeResult(2, 5, False, 3)]
        return EvaluationReport({"suite": "libero_spatial"}, {}, episodes, {2: "a task"}, {}, {}, True)

    def close(self) -> None: ...


def test_an_evaluation_that_was_due_where_a_run_was_saved_comes_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_agent.evaluation.callback.Evaluator", InstantEvaluator)
    kwargs: dict[str, Any] = {"env_id": "LIBERO-Spatial-v0", "eval_freq": 30, "at_start": True, "at_end": True}
    checkpoints = RunCheckpoints(tmp_path, every=1, keep=9)
    fake_model().learn(128, [EvaluationCallback(**kwargs), checkpoints])
    for path in sorted((tmp_path / "checkpoints").iterdir()):
        callback, model = EvaluationCallback(**kwargs), load(path)
        model.learn(128 - model.num_timesteps, callback, reset_num_timesteps=False)
        assert [done.num_timesteps for done in callback.history] == [0, 32, 64, 96, 128], path
    model.save(tmp_path / "model")
    callback, model = EvaluationCallback(**kwargs), load(tmp_path / "model")
    model.learn(32, callback, reset_num_timesteps=False)
    assert [done.num_timesteps for done in callback.history] == [0, 32, 64, 96, 128, 160]
    again = fake_model()
    again.learn(32, callback)  # another training begins anew
    assert [done.num_timesteps for done in callback.history] == [0, 32]
    assert callback.best_success_rate == 0.0


def test_a_last_evaluation_that_failed_is_made_up_with_no_step_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(InstantEvaluator):
        def run(self, **kwargs: Any) -> EvaluationReport:
            if model.num_timesteps == 64:
                raise KeyboardInterrupt
            return super().run(**kwargs)

    kwargs: dict[str, Any] = {"env_id": "LIBERO-Spatial-v0", "eval_freq": 30, "at_start": True, "at_end": True}
    monkeypatch.setattr("vla_agent.evaluation.callback.Evaluator", Failing)
    model = fake_model()
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, EvaluationCallback(**kwargs))
    model.save(tmp_path / "a")
    monkeypatch.setattr("vla_agent.evaluation.callback.Evaluator", InstantEvaluator)
    for expected in ([0, 32, 64], [0, 32, 64]):  # and once
        callback, resumed = EvaluationCallback(**kwargs), load(tmp_path / "a")
        resumed.learn(0, callback, reset_num_timesteps=False)
        assert [done.num_timesteps for done in callback.history] == expected
        resumed.save(tmp_path / "a")


def test_what_the_best_model_cannot_replace_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_agent.evaluation.callback.Evaluator", InstantEvaluator)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "notes.txt").write_text("mine")
    model = fake_model()
    with pytest.raises(FileExistsError, match=r"holds 'notes\.txt', which no saved run has"):
        model.learn(64, EvaluationCallback("LIBERO-Spatial-v0", eval_freq=30, folder=tmp_path))
    assert model.num_timesteps == 0
