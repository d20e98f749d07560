"""Task weights by success: the formulas by hand, and their way into the environments."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackbone, fake_env
from learners import make_model
from saved_runs import fake_model

from vla_agent import VLAPPO, Curriculum
from vla_agent.callbacks.curriculum import task_weights
from vla_agent.callbacks.success import TrainingEpisode

RATES = np.array([0.0, 0.25, 0.5, 1.0])


def test_weights_by_hand() -> None:
    np.testing.assert_allclose(task_weights(RATES, "uniform", 0.1), [0.25] * 4)
    hardest = task_weights(RATES, "hardest", 0.5)
    np.testing.assert_allclose(hardest / hardest[2], np.exp([1.0, 0.5, 0.0, -1.0]))
    frontier = task_weights(RATES, "frontier", 0.25)
    np.testing.assert_allclose(frontier / frontier[2], np.exp([-2.0, -1.0, 0.0, -2.0]))
    assert hardest.sum() == pytest.approx(1)
    assert np.isfinite(task_weights(RATES, "hardest", 1e-4)).all()


def test_weights_follow_success_and_reach_the_environments() -> None:
    model, curriculum = fake_model(), Curriculum("hardest", tau=0.2, window=2)
    model.learn(64, curriculum, log_interval=None)  # type: ignore[arg-type]
    rates = curriculum.success_rates
    expected = task_weights(np.array([rates[0], rates[1]]), "hardest", 0.2)
    np.testing.assert_allclose(model.env.venv.task_weights, expected)  # type: ignore[union-attr]
    for task_id in (0, 1):
        logged = model.logger.name_to_value[f"curriculum/weight_task_{task_id}"]
        assert logged == pytest.approx(expected[task_id])


def test_tasks_not_yet_tried_count_as_half() -> None:
    curriculum = Curriculum("hardest", tau=1.0)
    curriculum.task_ids = (0, 3)
    curriculum._add([TrainingEpisode(1, 3, True, 1.0, 5)])
    assert curriculum.weights[0] / curriculum.weights[3] == pytest.approx(np.exp(0.5))


def test_a_run_does_not_go_on_by_another_rule_in_silence() -> None:
    state = Curriculum("hardest", tau=0.25).state_dict()
    Curriculum("hardest", tau=0.25).load_state_dict(state)
    told = (
        r"made with the curriculum 'hardest' with tau=0\.25 and window=50, not 'uniform'\. Give .*, or allow_changes="
    )
    with pytest.raises(ValueError, match=told):
        Curriculum("uniform").load_state_dict(state)
    with pytest.raises(ValueError, match=r"not 'hardest' with tau=0\.5"):
        Curriculum("hardest").load_state_dict(state)
    with pytest.raises(ValueError, match=r"'hardest' with tau=0\.25 and window=50, not .* and window=2\."):
        Curriculum("hardest", tau=0.25, window=2).load_state_dict(state)
    Curriculum("hardest", tau=0.25, window=2).load_state_dict({k: v for k, v in state.items() if k != "window"})
    Curriculum("uniform", window=2).load_state_dict(Curriculum("uniform").state_dict())  # which has no window
    Curriculum("frontier", allow_changes=True).load_state_dict(state)
    Curriculum("uniform", tau=0.1).load_state_dict(Curriculum("uniform").state_dict())  # which has no temperature
    Curriculum("uniform").load_state_dict({"history": []})  # of before the rule was kept


def weights_at_resets(env: Any) -> list[list[float]]:
    """The task weights at each reset to come."""
    found: list[list[float]] = []
    reset = env.venv.reset

    def noting(**kwargs: Any) -> Any:
        found.append(env.venv.task_weights.tolist())
        return reset(**kwargs)

    env.venv.reset = noting
    return found


def test_the_weights_of_a_curriculum_end_with_it(tmp_path: Path) -> None:
    """The next training begins with all tasks alike: without a curriculum, with one, of another learner, of a save."""
    env = fake_env(2)
    model = make_model(env)
    for second, its_callbacks in ((model, None), (model, [Curriculum("frontier")]), (make_model(env), None)):
        model.learn(96, Curriculum("hardest", tau=0.05))
        assert len(set(env.venv.task_weights)) == 2
        model.save(tmp_path / "a")
        found = weights_at_resets(env)
        second.learn(32, its_callbacks)
        assert found == [[0.5, 0.5]]
    loaded = fake_env(2)
    again = VLAPPO.load(tmp_path / "a", loaded, device="cpu", policy_kwargs={"model": FakeBackbone()})
    loaded.set_task_weights([0.9, 0.1])  # as real environments do when they go back to a save
    found = weights_at_resets(loaded)
    again.learn(32)
    assert found == [[0.5, 0.5]]


def test_weights_that_no_curriculum_set_stay() -> None:
    env = fake_env(2)
    model = make_model(env)
    env.set_task_weights([0.25, 0.75])
    found = weights_at_resets(env)
    model.learn(32)
    model.learn(32)
    assert found == [[0.25, 0.75]] * 2


def test_a_saved_state_that_no_callback_takes_is_told(tmp_path: Path) -> None:
    model = make_model()
    model.learn(64, Curriculum("hardest"))
    model.save(tmp_path / "a")
    kwargs: dict[str, Any] = {"device": "cpu", "policy_kwargs": {"model": FakeBackbone()}}
    with pytest.warns(UserWarning, match="saved with the state of Curriculum, which no callback takes"):
        VLAPPO.load(tmp_path / "a", fake_env(2), **kwargs).learn(32, reset_num_timesteps=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VLAPPO.load(tmp_path / "a", fake_env(2), **kwargs).learn(32, Curriculum("hardest"), reset_num_timesteps=False)
        VLAPPO.load(tmp_path / "a", fake_env(2), **kwargs).learn(32)  # another run


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown curriculum mode 'easy'\. Choices: 'uniform', 'hardest', 'frontier'"):
        Curriculum("easy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tau=0"):
        Curriculum(tau=0)
    model = VLAPPO("MlpPolicy", "CartPole-v1", device="cpu", n_steps=64)
    with pytest.raises(ValueError, match="needs environments with set_task_weights, got DummyVecEnv"):
        model.learn(64, Curriculum())
