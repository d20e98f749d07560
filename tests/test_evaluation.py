"""Evaluation: every pair once, on the real simulator; success rates and what two of them say, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_agent import evaluate_policy
from vla_agent.evaluation import Trial, plan_trials
from vla_agent.statistics import mcnemar_exact, newcombe_interval, wilson_interval


class Noise:
    """Acts at random, the same way in every run; needs no image, so that nothing is drawn."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.states: list[np.ndarray] = []

    def predict(self, obs: Any, deterministic: bool = False) -> tuple[np.ndarray, None]:
        self.states.append(obs["state"])
        return self.generator.integers(0, 256, (len(obs["state"]), 7)), None


BLIND: dict[str, Any] = {"cameras": (), "max_episode_steps": 3, "progress_bar": False}


def test_every_task_meets_every_initial_state_once() -> None:
    seen = []
    for n_envs in (2, 3):
        policy = Noise()
        report = evaluate_policy(policy, task_ids=[3, 0], init_state_ids=[4, 7, 0], n_envs=n_envs, **BLIND)
        assert [episode[:2] for episode in report.episodes] == [(3, 4), (3, 7), (3, 0), (0, 4), (0, 7), (0, 0)]
        assert {episode.steps for episode in report.episodes} == {3}
        seen.append({tuple(state) for states in policy.states[::3] for state in states})
    assert len(seen[0] & seen[1]) == 6  # the same six beginnings, whichever environment took them


def test_another_environment_count_than_episodes_loses_none() -> None:
    report = evaluate_policy(Noise(), task_ids=[1], init_state_ids=[49], n_envs=5, **BLIND)
    assert [episode[:2] for episode in report.episodes] == [(1, 49)]
    assert report.settings["n_envs"] == 1


def test_the_tiny_model_is_evaluated_by_name_and_reproducibly() -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0, 1], "renderer": "fast", "progress_bar": False}
    reports = [evaluate_policy("tiny", max_episode_steps=2, n_envs=2, deterministic=False, **options) for _ in "ab"]
    assert reports[0].episodes == reports[1].episodes
    assert reports[0].conditions["protocol"] == "openvla"


def test_what_does_not_exist_is_named_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="init_state_ids has 50; task 0 of libero_goal has official initial states 0"):
        evaluate_policy("tiny", "LIBERO-Goal-v0", init_state_ids=[0, 50])
    with pytest.raises(ValueError, match="task_ids has 10; libero_spatial has tasks 0 to 9"):
        plan_trials("LIBERO-Spatial-v0", [10], [0])
    with pytest.raises(ValueError, match="names one twice"):
        plan_trials("LIBERO-Spatial-v0", [1, 1], [0])
    with pytest.raises(ValueError, match="Did you mean 'LIBERO-Spatial-v0'"):
        evaluate_policy("tiny", "LIBERO-Spatail-v0")
    with pytest.raises(ValueError, match="Unknown protocol 'opnvla'"):
        evaluate_policy("tiny", protocol="opnvla")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="A dict cannot be evaluated"):
        evaluate_policy({}, cameras=(), task_ids=[0], init_state_ids=[0])


def test_the_whole_protocol_is_500_episodes() -> None:
    trials = plan_trials("LIBERO-Long-v0", None, range(50))
    assert len(set(trials)) == 500
    assert trials[50] == Trial(1, 0)


def test_wilson_interval_by_hand() -> None:
    # n = 10, z = 2: middle (p + 0.2) / 1.4, half 2 / 1.4 * sqrt(p q / 10 + 0.01).
    assert wilson_interval(5, 10, z=2) == pytest.approx((0.5 - 0.035**0.5 / 0.7, 0.5 + 0.035**0.5 / 0.7))
    assert wilson_interval(0, 10, z=2) == pytest.approx((0, 0.4 / 1.4))
    assert wilson_interval(10, 10, z=2) == pytest.approx((1 / 1.4, 1))
    assert wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="3 successes of 2 trials"):
        wilson_interval(3, 2)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(0, 5) == mcnemar_exact(5, 0) == 2 / 32
    assert mcnemar_exact(1, 9) == 2 * (1 + 10) / 1024
    assert mcnemar_exact(4, 4) == 1


def test_newcombe_as_published() -> None:
    """Example (a) of Newcombe (1998), table II, method 10: 56/70 against 48/80."""
    assert newcombe_interval((48, 80), (56, 70)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
