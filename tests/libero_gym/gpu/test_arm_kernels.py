"""The controller's kernels give what `simulation.controller` gives, on states of the robot all over its workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
import pytest
from batches import start

from libero_gym.simulation import controller
from libero_gym.simulation.compiled import CompiledTask

if TYPE_CHECKING:
    from libero_gym.gpu.scene_batch import SceneBatch

# Largest difference of a torque in Nm: inputs are in single precision, and the arm's gravity torques reach 40 Nm.
TORQUE_TOLERANCE = 2e-3


class Reference:
    """One world of MuJoCo's own, in double precision, at the very state that a world of the batch has."""

    def __init__(self, compiled: CompiledTask, qpos: np.ndarray, qvel: np.ndarray) -> None:
        self.compiled, self.model = compiled, compiled.physics
        self.data = mujoco.MjData(self.model)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_step1(self.model, self.data)
        robot = compiled.robot
        self.pos = self.data.site_xpos[robot.eef_site].copy()
        self.ori = self.data.site_xmat[robot.eef_site].reshape(3, 3).copy()

    def goal(self, action: np.ndarray, goal_ori: np.ndarray, stale: bool) -> tuple[np.ndarray, np.ndarray]:
        kept = self.compiled.robot.stale
        pos, ori = (kept["ee_pos"], kept["ee_ori_mat"]) if stale else (self.pos, self.ori)
        scaled = np.clip(action[:6], -1, 1) * controller.ACTION_SCALE
        return pos + scaled[:3], controller.rotated_goal(scaled[3:], ori) if np.any(scaled[3:]) else goal_ori

    def torques(self, goal_pos: np.ndarray, goal_ori: np.ndarray, stale: bool) -> np.ndarray:
        robot, data, kept = self.compiled.robot, self.data, self.compiled.robot.stale
        arm = kept["initial_joint"], robot.torque_low, robot.torque_high
        bias = data.qfrc_bias[robot.dof]
        if stale:
            state = tuple(
                kept[n] for n in ("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel")
            )
            jacobians = tuple(np.asfortranarray(kept[name]) for name in ("J_full", "J_pos", "J_ori"))
            mass = np.asfortranarray(kept["mass_matrix"])
        else:
            linear, angular = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
            mujoco.mj_jacSite(self.model, data, linear, angular, robot.eef_site)
            full = np.zeros((self.model.nv, self.model.nv))
            mujoco.mj_fullM(self.model, data, full)
            mass = np.asfortranarray(full[np.ix_(robot.dof, robot.dof)])
            own = linear[:, robot.dof], angular[:, robot.dof]
            jacobians = tuple(np.asfortranarray(part) for part in (np.concatenate(own), *own))
            velocities = linear @ data.qvel, angular @ data.qvel
            state = self.pos, self.ori, *velocities, data.qpos[robot.qpos], data.qvel[robot.dof]
        return np.asarray(controller.arm_torques(arm, goal_pos, goal_ori, *state, jacobians, mass, bias))


def drive(
    batch: SceneBatch, warp: Any, poses: np.ndarray, speeds: np.ndarray, actions: np.ndarray, stale: np.ndarray
) -> list[Reference]:
    """Put the arms somewhere, and launch the kernels of one substep, as a control step begins."""
    start(batch, [(0, 0), (0, 1), (1, 0), (1, 1)], begin=False)
    robot = batch.tasks[0].robot
    qpos, qvel, memory = (batch.read(name).copy() for name in ("qpos", "qvel", "memory"))
    qpos[:, robot.qpos], qvel[:, robot.dof] = poses, speeds
    memory[:, 11] = stale
    for name, values in (("qpos", qpos), ("qvel", qvel), ("memory", memory)):
        batch.columns[name].assign(values)
    batch._actions.assign(actions)
    with warp.ScopedDevice(batch.device):
        batch._look(first=True)
        batch._drive(first=True)
    return [
        Reference(batch.tasks[row], qpos[world].astype(float), qvel[world].astype(float))
        for world, row in enumerate((0, 0, 1, 1))
    ]


@pytest.mark.parametrize("seed", range(6))
def test_goals_and_torques_are_those_of_the_controller(batch: SceneBatch, warp: Any, seed: int) -> None:
    """From random poses, at random speeds, with and without rotation, in an episode's first step and later."""
    generator = np.random.default_rng(seed)
    robot = batch.tasks[0].robot
    joints = batch.tasks[0].physics.dof_jntid[robot.dof]
    low, high = batch.tasks[0].physics.jnt_range[joints].T
    poses = generator.uniform(low, high, (4, 7))
    speeds = generator.uniform(-0.5, 0.5, (4, 7))
    actions = generator.uniform(-1.3, 1.3, (4, 7))
    actions[::2, 3:6] = 0.0
    actions[0, 6] = 0.0
    stale = np.array([1.0, 0.0, 1.0, 0.0])
    before = np.array(batch.tasks[0].robot.stale["goal_ori"])
    for world, reference in enumerate(drive(batch, warp, poses, speeds, actions, stale)):
        goal_pos, goal_ori = reference.goal(actions[world], before, bool(stale[world]))
        np.testing.assert_allclose(batch._goal.pos.numpy()[world], goal_pos, rtol=0, atol=2e-6)
        np.testing.assert_allclose(batch.read("memory")[world, 2:11].reshape(3, 3), goal_ori, rtol=0, atol=2e-6)
        expected = reference.torques(goal_pos, goal_ori, bool(stale[world]))
        got = batch.read("ctrl")[world, robot.actuators]
        np.testing.assert_allclose(got, expected, rtol=0, atol=TORQUE_TOLERANCE)
        assert np.abs(expected).max() > 1.0
    np.testing.assert_array_equal(batch.read("memory")[:, 11], 0.0)


def test_a_stretched_arm_gets_finite_torques_within_the_limits(batch: SceneBatch, warp: Any) -> None:
    """Straight up, two axes coincide and the 6 x 6 matrix is singular."""
    poses = np.zeros((4, 7))
    drive(batch, warp, poses, np.zeros((4, 7)), np.ones((4, 7)), np.zeros(4))
    robot = batch.tasks[0].robot
    torques = batch.read("ctrl")[:, robot.actuators]
    assert np.isfinite(torques).all()
    assert (torques <= robot.torque_high + 1e-6).all()
    assert (torques >= robot.torque_low - 1e-6).all()


def test_the_gripper_is_a_ramp(batch: SceneBatch, warp: Any) -> None:
    """It moves by 0.01 per substep, fingers in opposition, and stops at the ends of its range."""
    start(batch, [(0, 0)] * 4)
    actions = np.zeros((4, 7))
    actions[:, 6] = [1.0, -0.3, 0.0, 7.0]
    everywhere = np.ones(4, dtype=bool)
    batch.step(actions, everywhere)
    expected = 25 * controller.GRIPPER_SPEED * np.sign(actions[:, 6])[:, None] * controller.GRIPPER_SIGNS
    np.testing.assert_allclose(batch.read("memory")[:, :2], expected, atol=1e-12)
    for _ in range(4):
        batch.step(actions, everywhere)
    np.testing.assert_allclose(batch.read("memory")[0, :2], controller.GRIPPER_SIGNS, atol=1e-12)
    robot, model = batch.tasks[0].robot, batch.tasks[0].physics
    low, high = model.actuator_ctrlrange[robot.gripper_actuators].T
    closing = 0.5 * (high + low) + 0.5 * (high - low) * controller.GRIPPER_SIGNS
    np.testing.assert_allclose(batch.read("ctrl")[0, robot.gripper_actuators], closing, atol=1e-7)
