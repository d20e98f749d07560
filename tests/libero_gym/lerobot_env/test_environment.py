"""The environment that LeRobot's loops play, which needs no LeRobot: its keys, its initial states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from libero_gym.compilation import placements
from libero_gym.env import LiberoEnv
from libero_gym.lerobot_env import LeRobotLiberoEnv
from libero_gym.tasks import Suite, get_tasks


def test_episodes_begin_from_the_next_initial_states() -> None:
    options: dict[str, Any] = {"renderer": "fast", "image_size": 32}
    env = LeRobotLiberoEnv("libero_goal", 3, first_state=48, stride=3, fixtures="seed", **options)
    plain = LiberoEnv("libero_goal", task_id=3, cameras=("agentview", "wrist"), **options)
    for seed, state in ((5, 48), (6, 1)):  # of 50
        obs, _ = env.reset(seed=seed)
        expected, _ = plain.reset(options={"init_state_id": state, "fixture_seed": seed, "fixture_draw": 1})
        np.testing.assert_array_equal(obs["pixels"]["image"], expected["image"])
        np.testing.assert_array_equal(obs["pixels"]["image2"], expected["wrist_image"])
        np.testing.assert_array_equal(obs["agent_pos"], expected["state"])
    env.close()
    placed = LeRobotLiberoEnv("libero_goal", 3, init_states=False, camera_names={"wrist": "hand"}, **options)
    check_env(placed, skip_render_check=True)
    assert set(placed.reset(seed=0)[0]["pixels"]) == {"hand"}
    placed.close()


def test_a_placement_without_a_place_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    env = LeRobotLiberoEnv("libero_goal", 3, init_states=False, renderer="fast", image_size=32)
    state, tried = placements._state, list[int]()

    def narrow(task: Any, seed: int) -> np.ndarray:
        tried.append(seed)
        return np.full(3, np.nan) if len(tried) <= n_without else state(task, 0)

    monkeypatch.setattr(placements, "_state", narrow)
    n_without = 2
    env.reset(seed=1)
    assert len(set(tried)) == 3
    tried.clear()
    n_without = 10**6
    with pytest.raises(placements.NoPlaceError, match="find no place for all objects"):
        env.reset()
    assert len(set(tried)) == 20
    env.close()


def test_lerobots_table_of_steps_wins_for_suites_that_it_names() -> None:
    def steps(suite: Any, **options: Any) -> int:
        return LeRobotLiberoEnv(suite, 0, renderer="fast", **options)._max_episode_steps

    named = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
    assert [steps(suite) for suite in named] == [280, 280, 300, 520, 400]
    assert steps("libero_spatial", episode_length=7) == 7
    assert steps("libero_spatial_swap") == 220
    mine = Suite("mine", "Mine-v0", 90, get_tasks("libero_spatial")[:1])
    assert steps(mine) == 90
