"""The environment that LeRobot's loops play, which needs no LeRobot: its keys, its initial states."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env

from libero_gym.env import LiberoEnv
from libero_gym.lerobot_env import LeRobotLiberoEnv


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
