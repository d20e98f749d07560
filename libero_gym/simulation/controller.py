"""The arm's operational-space controller and gripper, with the physics substeps, as one compiled loop.

This is the hot path: a control step is 25 physics substeps, and each computes joint torques from the arm's Jacobian and
mass matrix (Khatib, 1987). The arithmetic is that of robosuite 1.4's ``OperationalSpaceController`` (MIT licence),
operation by operation and with its memory layouts, because matrix routines round differently for other layouts and
contacts amplify the last bit. What robosuite repeats per substep (two more forward passes, four Jacobians, name
look-ups) is done once here.
"""

from __future__ import annotations

import math
from pathlib import Path

import llvmlite.binding
import numpy as np
from numba import types

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.numba_cache import compiled

# robosuite 1.4, controllers/config/osc_pose.json
KP = 150.0
KD = 2 * math.sqrt(KP)
NULLSPACE_KP = 10
POSITION_SCALE = abs(0.05 - (-0.05)) / abs(1 - (-1))  # m per unit of action
ROTATION_SCALE = abs(0.5 - (-0.5)) / abs(1 - (-1))  # rad per unit of action
ACTION_SCALE = np.array([POSITION_SCALE] * 3 + [ROTATION_SCALE] * 3)
# robosuite 1.4, models/grippers/panda_gripper.py: the command moves by this much per substep, fingers in opposition.
GRIPPER_SPEED = 0.01
GRIPPER_SIGNS = np.array([-1.0, 1.0])
# robosuite 1.4, utils/transform_utils.py
_EPS = np.finfo(float).eps * 4.0


def _load_mujoco_symbols() -> None:
    """Make MuJoCo's C functions visible to compiled code by name, so that numba can cache what calls them."""
    (library,) = Path(mujoco.__file__).parent.glob("libmujoco*")
    llvmlite.binding.load_library_permanently(str(library))


_load_mujoco_symbols()
_mj_step1 = types.ExternalFunction("mj_step1", types.void(types.uintp, types.uintp))
_mj_step2 = types.ExternalFunction("mj_step2", types.void(types.uintp, types.uintp))
_mj_fwd_actuation = types.ExternalFunction("mj_fwdActuation", types.void(types.uintp, types.uintp))
_mj_fwd_acceleration = types.ExternalFunction("mj_fwdAcceleration", types.void(types.uintp, types.uintp))
_mj_fwd_constraint = types.ExternalFunction("mj_fwdConstraint", types.void(types.uintp, types.uintp))
_mj_jac_site = types.ExternalFunction(
    "mj_jacSite", types.void(types.uintp, types.uintp, types.uintp, types.uintp, types.int32)
)


@compiled
def quat2mat(quaternion):
    """Rotation matrix of an xyzw quaternion, in single precision as robosuite computes it."""
    inds = np.array([3, 0, 1, 2])
    q = np.asarray(quaternion).copy().astype(np.float32)[inds]
    n = np.dot(q, q)
    if n < _EPS:
        return np.identity(3)
    q *= math.sqrt(2.0 / n)
    q2 = np.outer(q, q)
    return np.array(
        [
            [1.0 - q2[2, 2] - q2[3, 3], q2[1, 2] - q2[3, 0], q2[1, 3] + q2[2, 0]],
            [q2[1, 2] + q2[3, 0], 1.0 - q2[1, 1] - q2[3, 3], q2[2, 3] - q2[1, 0]],
            [q2[1, 3] - q2[2, 0], q2[2, 3] + q2[1, 0], 1.0 - q2[1, 1] - q2[2, 2]],
        ]
    )


def rotation_matrix(rotation: np.ndarray) -> np.ndarray:
    """The matrix (3, 3) of an axis-angle vector (3,) in rad, as robosuite computes it, by way of single precision."""
    angle = np.linalg.norm(rotation)
    if angle == 0.0:
        quaternion = np.array([0.0, 0.0, 0.0, 1.0])
    else:
        quaternion = np.zeros(4)
        quaternion[3] = np.cos(angle / 2.0)
        quaternion[:3] = (rotation / angle) * np.sin(angle / 2.0)
    matrix: np.ndarray = quat2mat(quaternion)
    return matrix


def rotated_goal(rotation: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Goal orientation: the current one turned by an axis-angle vector in rad. Shapes (3,), (3, 3) -> (3, 3)."""
    return np.dot(rotation_matrix(rotation), current)


@compiled
def _opspace_matrices(mass_matrix, jac, jac_pos, jac_ori):
    """Task-space inertias for position and orientation, and the nullspace projector."""
    mass_inv = np.linalg.inv(mass_matrix)
    lambda_full_inv = np.dot(np.dot(jac, mass_inv), jac.transpose())
    lambda_pos_inv = np.dot(np.dot(jac_pos, mass_inv), jac_pos.transpose())
    lambda_ori_inv = np.dot(np.dot(jac_ori, mass_inv), jac_ori.transpose())
    lambda_full = np.linalg.pinv(lambda_full_inv)
    lambda_pos = np.linalg.pinv(lambda_pos_inv)
    lambda_ori = np.linalg.pinv(lambda_ori_inv)
    jac_bar = np.dot(mass_inv, jac.transpose()).dot(lambda_full)
    nullspace = np.eye(jac.shape[-1], jac.shape[-1]) - np.dot(jac_bar, jac)
    return lambda_pos, lambda_ori, nullspace


@compiled
def _nullspace_torques(mass_matrix, nullspace, initial_joint, joint_pos, joint_vel):
    kv = np.sqrt(NULLSPACE_KP) * 2
    pose_torques = np.dot(mass_matrix, (NULLSPACE_KP * (initial_joint - joint_pos) - kv * joint_vel))
    return np.dot(nullspace.transpose(), pose_torques)


@compiled
def _orientation_error(desired, current):
    rc1 = current[0:3, 0]
    rc2 = current[0:3, 1]
    rc3 = current[0:3, 2]
    rd1 = desired[0:3, 0]
    rd2 = desired[0:3, 1]
    rd3 = desired[0:3, 2]
    return 0.5 * (np.cross(rc1, rd1) + np.cross(rc2, rd2) + np.cross(rc3, rd3))


@compiled
def arm_torques(arm, goal_pos, goal_ori, eef_pos, eef_ori, pos_vel, ori_vel, joint_pos, joint_vel, jacs, mass, bias):
    """Joint torques in Nm, shape (7,), that pull the end effector to its goal pose; gravity compensated, clipped.

    Args:
        arm: (initial_joint, torque_low, torque_high), each (7,).
        goal_pos, goal_ori: Goal pose, (3,) in m and (3, 3).
        eef_pos, eef_ori, pos_vel, ori_vel: Pose and velocity of the grip site.
        joint_pos, joint_vel: (7,) in rad and rad/s.
        jacs: Column-major Jacobians (6, 7), (3, 7), (3, 7) of the grip site: both parts, position, orientation.
        mass: Column-major joint-space inertia, (7, 7).
        bias: Gravity and Coriolis torques, (7,).
    """
    initial_joint, low, high = arm
    jac, jac_pos, jac_ori = jacs
    ori_error = _orientation_error(goal_ori, eef_ori)
    force = (goal_pos - eef_pos) * KP + -pos_vel * KD
    torque = ori_error * KP + -ori_vel * KD
    lambda_pos, lambda_ori, nullspace = _opspace_matrices(mass, jac, jac_pos, jac_ori)
    wrench = np.concatenate((np.dot(lambda_pos, force), np.dot(lambda_ori, torque)))
    torques = np.dot(jac.T, wrench) + bias
    torques += _nullspace_torques(mass, nullspace, initial_joint, joint_pos, joint_vel)
    return np.minimum(np.maximum(torques, low), high)


@compiled
def _arm_mass_matrix(values, addresses, out):
    """Copy the arm's block out of MuJoCo's sparse inertia, shape (7, 7); see `equivalence.inertia`."""
    n = addresses.shape[0]
    for a in range(n):
        for b in range(n):
            out[a, b] = values[addresses[a, b]] if addresses[a, b] >= 0 else 0.0


@compiled
def _solve(model, data, qacc, warmstart):
    """Solve for the contact forces, where the next solve starts. MuJoCo writes that down by itself up to 3.3.5."""
    _mj_fwd_constraint(model, data)
    warmstart[:] = qacc


@compiled
def run_substeps(
    pointers, ids, constants, views, indices, goal, stale, use_stale, gripper, sign, sample_at, snapshot, exact
):
    """Run the physics substeps of one control step; the caller has run ``mj_step1`` for the first.

    Args:
        pointers: Addresses of the ``mjModel`` and the ``mjData``.
        ids: (grip site, hand body, number of substeps).
        constants: (initial_joint, torque_low, torque_high).
        views: Arrays of the ``mjData`` that are read or written: qpos, qvel, ctrl, qacc, qacc_warmstart, inertia,
            qfrc_bias, site_xpos, site_xmat, xquat; then addresses of the arm's block in the inertia, (7, 7).
        indices: Arm's qpos and dof addresses, actuators, gripper's qpos addresses and actuators, as int64 arrays.
        goal: Goal pose of this control step: position (3,) and orientation (3, 3).
        stale: Controller state of the stock reset, see `compiled.RobotIndices`.
        use_stale: Whether the first substep's torques are computed from ``stale``.
        gripper: Gripper command in [-1, 1], (2,), changed in place.
        sign: Three rows of the gripper's plan, (3, 2): the command's change per substep, then bias and weight from
            command to control.
        sample_at: The substep after which observations are sampled, counted from 0.
        snapshot: Four arrays that the sampling substep fills: qpos that the kinematics belong to (nq,); 9 numbers,
            which are end-effector position, hand quaternion (wxyz) and finger joints; qpos and qvel after it, (nq,),
            (nv,). One that the last substep fills: qpos that its kinematics belong to, (nq,).
        exact: Whether to run the solves whose only trace is the warm start of the next one, too. They give stock's
            bits, at three times the number of solves.
    """
    model, data = pointers
    site, hand, n_substeps = ids
    goal_pos, goal_ori = goal
    qpos, qvel, ctrl, qacc, warmstart, inertia, qfrc_bias, site_xpos, site_xmat, xquat, addresses = views
    arm_qpos, arm_dof, arm_act, grip_qpos, grip_act = indices
    kinematics_qpos, sample, sampled_qpos, sampled_qvel, latest_qpos = snapshot
    nv = qvel.shape[0]
    jac_p = np.zeros((3, nv))
    jac_r = np.zeros((3, nv))
    jac = np.empty((7, 6)).T
    jac_pos = np.empty((7, 3)).T
    jac_ori = np.empty((7, 3)).T
    mass = np.empty((7, 7)).T
    for i in range(n_substeps):
        if i > 0:
            _mj_step1(model, data)
        # Stock runs two whole forward passes before the step. All they leave behind is the solver's warm start.
        if exact:
            _mj_fwd_actuation(model, data)
            _mj_fwd_acceleration(model, data)
            _solve(model, data, qacc, warmstart)
        bias = qfrc_bias[arm_dof]
        if i == 0 and use_stale:
            s_pos, s_ori, s_pv, s_rv, s_jp, s_jv, s_jacs, s_mass = stale
            torques = arm_torques(
                constants, goal_pos, goal_ori, s_pos, s_ori, s_pv, s_rv, s_jp, s_jv, s_jacs, s_mass, bias
            )
        else:
            if exact:
                _solve(model, data, qacc, warmstart)
            _mj_jac_site(model, data, jac_p.ctypes.data, jac_r.ctypes.data, site)
            for c in range(7):
                for r in range(3):
                    jac_pos[r, c] = jac_p[r, arm_dof[c]]
                    jac_ori[r, c] = jac_r[r, arm_dof[c]]
                    jac[r, c] = jac_pos[r, c]
                    jac[r + 3, c] = jac_ori[r, c]
            _arm_mass_matrix(inertia, addresses, mass)
            torques = arm_torques(
                constants,
                goal_pos,
                goal_ori,
                site_xpos[site].copy(),
                site_xmat[site].copy().reshape(3, 3),
                np.dot(jac_p, qvel),
                np.dot(jac_r, qvel),
                qpos[arm_qpos],
                qvel[arm_dof],
                (jac, jac_pos, jac_ori),
                mass,
                bias,
            )
        for k in range(7):
            ctrl[arm_act[k]] = torques[k]
        for k in range(2):
            gripper[k] = min(max(gripper[k] + sign[0, k], -1.0), 1.0)
            ctrl[grip_act[k]] = sign[1, k] + sign[2, k] * gripper[k]
        if i == sample_at:
            kinematics_qpos[:] = qpos
            sample[0:3] = site_xpos[site]
            sample[3:7] = xquat[hand]
        if i == n_substeps - 1:
            latest_qpos[:] = qpos
        _mj_step2(model, data)
        if i == sample_at:
            sample[7:9] = qpos[grip_qpos]
            sampled_qpos[:] = qpos
            sampled_qvel[:] = qvel
