"""The gripper's opening is the distance between its fingers."""

from __future__ import annotations

import mujoco
import numpy as np

from libero_gym.env import LiberoEnv
from libero_gym.gripper import FINGERS, gripper_opening


def test_the_opening_is_the_distance_between_the_fingers_for_any_batch() -> None:
    fingers = np.array([[[0.04, -0.04], [0.02, -0.02]], [[0.0, 0.0], [0.03, -0.01]]])
    np.testing.assert_allclose(gripper_opening(fingers), [[0.08, 0.04], [0.0, 0.04]])
    assert gripper_opening(fingers.astype(np.float32)).dtype == np.float32


def test_the_fingers_of_an_observed_state_are_the_simulators(state_env: LiberoEnv) -> None:
    obs, _ = state_env.reset(seed=0)
    np.testing.assert_array_equal(obs["state"][FINGERS], state_env.simulator.gripper_qpos().astype(np.float32))


def test_the_opening_changes_as_the_distance_between_the_simulated_pads(state_env: LiberoEnv) -> None:
    state_env.reset(seed=0)
    model, data = state_env.simulator.model, state_env.simulator.data
    joints = [model.joint(f"gripper0_finger_joint{i}").qposadr[0] for i in (1, 2)]
    openings, distances = [], []
    for _ in range(4):
        state_env.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
        mujoco.mj_kinematics(model, data)
        left, right = (data.geom(f"gripper0_finger{i}_pad_collision").xpos for i in (1, 2))
        openings.append(float(gripper_opening(data.qpos[joints])))
        distances.append(float(np.linalg.norm(left - right)))
    assert openings[0] - openings[-1] > 0.01
    np.testing.assert_allclose(np.diff(openings), np.diff(distances), atol=1e-6)
