"""Going on from a saved run equals never having stopped, to the bit; what is kept on disk; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeBackbone, FakeProcessor, FakeVectorEnv, fake_env
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from resuming import StopAt, assert_equal_runs, callbacks, learner, load
from saved_runs import fake_model
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback

from vla_agent import (
    VLAPPO,
    Curriculum,
    EvaluationCallback,
    EvaluationReport,
    LearningCurve,
    RunCheckpoints,
    RunError,
    SuccessCallback,
    VLAVecEnv,
    latest_run,
    make_vec_env,
    safe_learn,
)
from vla_agent.evaluation.results import EpisodeResult
from vla_agent.openvla import load_processor
from vla_agent.runs.serialization import space_from_json, space_to_json


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


@pytest.mark.parametrize("with_env", [True, False])
def test_what_is_loaded_and_saved_again_goes_on_too(tmp_path: Path, with_env: bool) -> None:
    """As where a folder is made a zip: the callbacks' states stay, and where the environments were."""
    whole, expected = learner(), callbacks()
    whole.learn(160, expected)
    learner().learn(160, [*callbacks(), (stop := SaveAt(40, tmp_path / "a"))])
    assert stop.model.num_timesteps == 160
    env = fake_env(2) if with_env else None
    VLAPPO.load(tmp_path / "a", env, device="cpu", policy_kwargs={"model": FakeBackbone()}).save(tmp_path / "b.zip")
    resumed, result = load(tmp_path / "b.zip"), callbacks()
    assert resumed.num_timesteps == 64
    resumed.learn(96, result, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)
    assert [one.history for one in expected] == [other.history for other in result]  # type: ignore[attr-defined]
    resumed.save(tmp_path / "c")  # now the callbacks themselves tell
    assert load(tmp_path / "c").callback_states["Curriculum"]["history"][-1][0] > 64


class SaveAt(StopAt):
    """Saves the run at a step."""

    def __init__(self, step: int, path: Path) -> None:
        super().__init__(step)
        self.path = path

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.model.save(self.path)
        return True


def test_what_a_run_learned_with_stays_known_where_it_is_loaded_without_environments(tmp_path: Path) -> None:
    learner().save(tmp_path / "a")
    path = tmp_path / "a" / "hyperparameters.json"
    (tmp_path / "a" / "checksums.json").unlink()
    known = {"engine": {"n_learners": 2}, "depends_on": {"teacher": "0123"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | known))
    kwargs: dict[str, Any] = {"device": "cpu", "policy_kwargs": {"model": FakeBackbone()}}
    model = VLAPPO.load(tmp_path / "a", **kwargs)
    model.save(tmp_path / "b")
    again = json.loads((tmp_path / "b" / "hyperparameters.json").read_text())
    assert {name: again[name] for name in known} == known
    with pytest.raises(RunError, match=r"engine: {'n_learners': 2}, not {}"):
        load(tmp_path / "b")
    model.set_env(fake_env(2))
    model.save(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "hyperparameters.json").read_text())["engine"] == {}
    assert load(tmp_path / "b")._last_obs is None  # the new environments have not begun


def test_a_callback_that_was_refused_loses_no_state(tmp_path: Path) -> None:
    model = learner()
    model.learn(96, callbacks())
    model.save(tmp_path / "a")
    model = load(tmp_path / "a")
    with pytest.raises(ValueError, match="The run was made with the curriculum 'frontier'"):
        model.learn(32, [Curriculum("hardest"), SuccessCallback()], reset_num_timesteps=False)
    model.save(tmp_path / "b")
    assert load(tmp_path / "b").callback_states == load(tmp_path / "a").callback_states


def test_bounds_that_differ_by_dimension_come_back(tmp_path: Path) -> None:
    low = np.array([*range(-8, -1), -np.inf], dtype=np.float32)

    def env() -> VLAVecEnv:
        made = FakeVectorEnv(2)
        made.single_observation_space["state"] = spaces.Box(low, np.full(8, 99, np.float32))
        made.observation_space = batch_space(made.single_observation_space, 2)
        return VLAVecEnv(made, FakeProcessor())

    kwargs: dict[str, Any] = {"device": "cpu", "policy_kwargs": {"model": FakeBackbone()}}
    model = VLAPPO("VLAPolicy", env(), n_steps=16, batch_size=16, **kwargs)
    model.learn(32)
    model.save(tmp_path / "a")
    assert VLAPPO.load(tmp_path / "a", env(), **kwargs).num_timesteps == 32
    box = json.loads((tmp_path / "a" / "hyperparameters.json").read_text())["observation_space"]["Dict"]["state"]["Box"]
    assert box["low"] == [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, "-inf"]
    assert box["high"] == 99.0  # the form of earlier versions


@pytest.mark.parametrize(
    ("box", "wrong"),
    [
        (spaces.Box(-1, np.inf, (2, 3), np.float32), None),
        (spaces.Box(np.array([[0, 1], [2, 3]]), np.array([[9, 9], [9, 8]]), dtype=np.int64), None),
        (spaces.Box(np.array([0, 1], np.float32), np.array([2, 3], np.float32)), [0.0]),
        (spaces.Box(np.array([0, 1], np.float32), np.array([2, 3], np.float32)), [0.0, "x"]),
    ],
)
def test_a_box_is_what_it_was_or_is_told_to_be_damaged(box: spaces.Box, wrong: list[Any] | None) -> None:
    document = json.loads(json.dumps(space_to_json(box)))
    assert space_from_json(document) == box
    if wrong is not None:
        document["Box"]["low"] = wrong
        with pytest.raises(ValueError, match=r"reshape|could not convert"):
            space_from_json(document)


def test_what_the_constructor_takes_is_taken_by_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id for the environments, and None for ``policy_kwargs``."""
    made: list[Any] = []

    def make(env_id: str, **kwargs: Any) -> VLAVecEnv:
        assert (env_id, kwargs["unnorm_key"]) == ("LIBERO-Spatial-v0", None)
        made.append(VLAVecEnv(FakeVectorEnv(1, size=112), load_processor(kwargs["model"])))
        return made[-1]

    monkeypatch.setattr("vla_agent.algorithms.scoring.make_vec_env", make)
    kwargs: dict[str, Any] = {"n_steps": 4, "batch_size": 4, "device": "cpu", "policy_kwargs": {"model": "tiny"}}
    VLAPPO("VLAPolicy", "LIBERO-Spatial-v0", **kwargs).learn(4).save(tmp_path / "a")
    again: dict[str, Any] = {"device": "cpu", "policy_kwargs": None}
    model = VLAPPO.load(tmp_path / "a", "LIBERO-Spatial-v0", **again)
    assert model.env is made[1]
    assert model._last_obs is not None
    assert VLAPPO.load(tmp_path / "a", made[0], custom_objects={"policy_kwargs": None}, **again).num_timesteps == 4
    with pytest.raises(RunError, match=r"gamma: 0\.99, not 0\.5"):
        VLAPPO.load(tmp_path / "a", "LIBERO-Spatial-v0", gamma=0.5, **again)
    assert [env.venv.closed_times for env in made] == [0, 0, 1]
    for given, sentence in (
        ({"env": 5}, "env=5; expected an id such as 'LIBERO-Spatial-v0'"),
        ({"policy_kwargs": "tiny"}, "policy_kwargs='tiny'; expected a dict of arguments by name"),
    ):
        with pytest.raises(ValueError, match=sentence):
            VLAPPO.load(tmp_path / "a", device="cpu", **given)


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


def test_what_is_put_into_the_best_meanwhile_stays_and_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vla_agent.evaluation.callback.Evaluator", InstantEvaluator)

    def put(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        (tmp_path / "best").mkdir(exist_ok=True)
        (tmp_path / "best" / "notes.txt").write_text("mine")
        return True

    model = fake_model()
    model.learn(64, [ConvertCallback(put), EvaluationCallback("LIBERO-Spatial-v0", eval_freq=32, folder=tmp_path)])
    assert model.num_timesteps == 64
    assert (tmp_path / "best" / "notes.txt").read_text() == "mine"
    assert load(tmp_path / "best_2").num_timesteps
    assert "the run was saved as" in caplog.text


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
