"""Task weights by success: the formulas by hand, and their way into the environments."""

from __future__ import annotations

import numpy as np
import pytest
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
    told = r"made with the curriculum 'hardest' with tau=0\.25, not 'uniform'\. Give what it was made with, or allow_ch"
    with pytest.raises(ValueError, match=told):
        Curriculum("uniform").load_state_dict(state)
    with pytest.raises(ValueError, match=r"not 'hardest' with tau=0\.5"):
        Curriculum("hardest").load_state_dict(state)
    Curriculum("frontier", allow_changes=True).load_state_dict(state)
    Curriculum("uniform", tau=0.1).load_state_dict(Curriculum("uniform").state_dict())  # which has no temperature
    Curriculum("uniform").load_state_dict({"history": []})  # of before the rule was kept


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown curriculum mode 'easy'\. Choices: 'uniform', 'hardest', 'frontier'"):
        Curriculum("easy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tau=0"):
        Curriculum(tau=0)
    model = VLAPPO("MlpPolicy", "CartPole-v1", device="cpu", n_steps=64)
    with pytest.raises(ValueError, match="needs environments with set_task_weights, got DummyVecEnv"):
        model.learn(64, Curriculum())
