"""Warp kernels of the operational-space controller and the gripper; a thread per world, float64 inside.

They are the formulas of `simulation.controller` (robosuite 1.4's controller), rearranged: equations are solved where
it inverts matrices, and the nullspace torques ``N^T M u`` are written as ``M u - J^T L J u``, since ``M^-1 M u`` is
``u``. The Jacobian's columns are those of hinges: ``axis x (site - anchor)`` and ``axis``.
"""

from __future__ import annotations

from typing import Any

import warp as wp

from libero_gym.simulation import controller

# Loops stay loops: unrolled, three nested ones over a 7 x 7 matrix compile for minutes.
wp.set_module_options({"enable_backward": False, "max_unroll": 0})

N_JOINTS = 7
# Columns of the controller's memory, float64 (n, 12): gripper's command, goal orientation by rows, stale flag.
GRIPPER, GOAL_ORI, STALE = 0, 2, 11
MEMORY_SIZE = 12

vec6d = wp.types.vector(length=6, dtype=wp.float64)
vec7d = wp.types.vector(length=7, dtype=wp.float64)
mat67d = wp.types.matrix(shape=(6, 7), dtype=wp.float64)
mat77d = wp.types.matrix(shape=(7, 7), dtype=wp.float64)
mat31d = wp.types.matrix(shape=(3, 1), dtype=wp.float64)
mat61d = wp.types.matrix(shape=(6, 1), dtype=wp.float64)

_KP = wp.constant(wp.float64(controller.KP))
_KD = wp.constant(wp.float64(controller.KD))
_NULL_KP = wp.constant(wp.float64(controller.NULLSPACE_KP))
_NULL_KD = wp.constant(wp.float64(controller.NULLSPACE_KP**0.5 * 2))
_POSITION_SCALE = wp.constant(wp.float64(controller.POSITION_SCALE))
_ROTATION_SCALE = wp.constant(wp.float64(controller.ROTATION_SCALE))
_GRIPPER_SPEED = wp.constant(wp.float64(controller.GRIPPER_SPEED))
# Pivots of an elimination are at least this share of the largest diagonal element. A stretched arm's 6 x 6 matrix is
# singular; the stock controller's pseudo-inverse drops such directions, and torques are clipped in either case.
_FLOOR = wp.constant(wp.float64(1e-12))


@wp.struct
class Robot:
    """Indices and constants of `simulation.compiled.RobotIndices`, on the device."""

    site: int
    hand: int
    joint: wp.array[int]
    qpos: wp.array[int]
    dof: wp.array[int]
    actuator: wp.array[int]
    finger_qpos: wp.array[int]
    finger_actuator: wp.array[int]
    torque_low: wp.array[wp.float64]
    torque_high: wp.array[wp.float64]
    finger_sign: wp.array[wp.float64]
    finger_bias: wp.array[wp.float64]
    finger_weight: wp.array[wp.float64]


@wp.struct
class StaleTable:
    """What the controller remembers of the stock reset, a row per task; see `compiled.RobotIndices.stale`."""

    pos: wp.array[wp.vec3d]
    ori: wp.array[wp.mat33d]
    pos_vel: wp.array[wp.vec3d]
    ori_vel: wp.array[wp.vec3d]
    joint_pos: wp.array2d[wp.float64]
    joint_vel: wp.array2d[wp.float64]
    jacobian: wp.array3d[wp.float64]
    mass: wp.array3d[wp.float64]
    initial_joint: wp.array2d[wp.float64]


@wp.struct
class Goal:
    """The goal of a control step, per world."""

    pos: wp.array[wp.vec3d]
    gripper_step: wp.array[wp.float64]


@wp.func
def _eliminate(matrix: Any, right: Any, n: int, columns: int):
    """Solve ``matrix x = right`` for a symmetric, positive semidefinite matrix; both are used up."""
    largest = wp.float64(0.0)
    for k in range(n):
        largest = wp.max(largest, matrix[k, k])
    floor = wp.max(largest * _FLOOR, wp.float64(1e-300))
    for k in range(n):
        pivot = wp.max(matrix[k, k], floor)
        for i in range(n):
            if i != k:
                factor = matrix[i, k] / pivot
                for j in range(n):
                    matrix[i, j] = matrix[i, j] - factor * matrix[k, j]
                for j in range(columns):
                    right[i, j] = right[i, j] - factor * right[k, j]
        for j in range(n):
            matrix[k, j] = matrix[k, j] / pivot
        for j in range(columns):
            right[k, j] = right[k, j] / pivot
    return right


@wp.func
def _row(matrix: wp.mat33d, k: int):
    return wp.vec3d(matrix[k, 0], matrix[k, 1], matrix[k, 2])


@wp.func
def _column(matrix: wp.mat33d, k: int):
    return wp.vec3d(matrix[0, k], matrix[1, k], matrix[2, k])


@wp.func
def _to_mat33d(matrix: wp.mat33):
    return wp.mat33d(
        wp.float64(matrix[0, 0]), wp.float64(matrix[0, 1]), wp.float64(matrix[0, 2]),
        wp.float64(matrix[1, 0]), wp.float64(matrix[1, 1]), wp.float64(matrix[1, 2]),
        wp.float64(matrix[2, 0]), wp.float64(matrix[2, 1]), wp.float64(matrix[2, 2]),
    )  # fmt: skip


@wp.func
def to_vec3d(vector: wp.vec3):
    """A vector in double precision."""
    return wp.vec3d(wp.float64(vector[0]), wp.float64(vector[1]), wp.float64(vector[2]))


@wp.func
def _rotation(rotation: wp.vec3d):
    """Rotation matrix of an axis-angle vector by a single-precision quaternion, as in `controller.rotated_goal`."""
    angle = wp.length(rotation)
    s = wp.sin(angle / wp.float64(2.0)) / angle
    w = wp.float32(wp.cos(angle / wp.float64(2.0)))
    x = wp.float32(rotation[0] * s)
    y = wp.float32(rotation[1] * s)
    z = wp.float32(rotation[2] * s)
    scale = wp.sqrt(2.0 / (w * w + x * x + y * y + z * z))
    w = w * scale
    x = x * scale
    y = y * scale
    z = z * scale
    return _to_mat33d(
        wp.mat33(
            1.0 - y * y - z * z, x * y - z * w, x * z + y * w,
            x * y + z * w, 1.0 - x * x - z * z, y * z - x * w,
            x * z - y * w, y * z + x * w, 1.0 - x * x - y * y,
        )
    )  # fmt: skip


@wp.kernel
def set_goals(
    actions: wp.array2d[wp.float64],
    robot: Robot,
    stale: StaleTable,
    task: wp.array[int],
    site_xpos: wp.array2d[wp.vec3],
    site_xmat: wp.array2d[wp.mat33],
    memory: wp.array2d[wp.float64],
    goal: Goal,
):
    """Turn actions (n, 7) into goal poses and steps of the gripper's ramp, once per control step.

    The pose that an action starts from is the site's, or that of the stock reset in the first control step.
    """
    world = wp.tid()
    pos = to_vec3d(site_xpos[world, robot.site])
    ori = _to_mat33d(site_xmat[world, robot.site])
    if memory[world, STALE] != wp.float64(0.0):
        pos = stale.pos[task[world]]
        ori = stale.ori[task[world]]
    one = wp.float64(1.0)
    for k in range(3):
        pos[k] = pos[k] + wp.clamp(actions[world, k], -one, one) * _POSITION_SCALE
    goal.pos[world] = pos
    rotation = wp.vec3d()
    for k in range(3):
        rotation[k] = wp.clamp(actions[world, 3 + k], -one, one) * _ROTATION_SCALE
    # Without a rotation the goal orientation stays what it was.
    if rotation[0] != wp.float64(0.0) or rotation[1] != wp.float64(0.0) or rotation[2] != wp.float64(0.0):
        turned = _rotation(rotation) * ori
        for i in range(3):
            for j in range(3):
                memory[world, GOAL_ORI + 3 * i + j] = turned[i, j]
    sign = wp.float64(0.0)
    if actions[world, 6] > wp.float64(0.0):
        sign = one
    if actions[world, 6] < wp.float64(0.0):
        sign = -one
    goal.gripper_step[world] = sign * _GRIPPER_SPEED


@wp.func
def _torques(
    jacobian: Any,
    mass: Any,
    force: wp.vec3d,
    torque: wp.vec3d,
    posture: vec7d,
):
    """Joint torques without gravity's: ``J^T [L_pos force; L_ori torque] + M u - J^T L J u``, u the posture's pull."""
    inverse = _eliminate(mass * wp.float64(1.0), wp.transpose(jacobian), 7, 6)  # M^-1 J^T
    full = jacobian * inverse
    pos = wp.mat33d()
    ori = wp.mat33d()
    force_column = mat31d()
    torque_column = mat31d()
    pull = mat61d()
    joint_pull = jacobian * posture
    for i in range(3):
        force_column[i, 0] = force[i]
        torque_column[i, 0] = torque[i]
        for j in range(3):
            pos[i, j] = full[i, j]
            ori[i, j] = full[3 + i, 3 + j]
    for i in range(6):
        pull[i, 0] = joint_pull[i]
    linear = _eliminate(pos, force_column, 3, 1)
    angular = _eliminate(ori, torque_column, 3, 1)
    against = _eliminate(full * wp.float64(1.0), pull, 6, 1)
    wrench = vec6d()
    for i in range(3):
        wrench[i] = linear[i, 0] - against[i, 0]
        wrench[3 + i] = angular[i, 0] - against[3 + i, 0]
    return wp.transpose(jacobian) * wrench + mass * posture


@wp.kernel
def drive_arm(
    first: int,
    robot: Robot,
    stale: StaleTable,
    task: wp.array[int],
    goal: Goal,
    inertia_rows: wp.array[int],
    inertia_counts: wp.array[int],
    inertia_columns: wp.array[int],
    inertia: wp.array2d[float],
    bias: wp.array2d[float],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    xanchor: wp.array2d[wp.vec3],
    xaxis: wp.array2d[wp.vec3],
    site_xpos: wp.array2d[wp.vec3],
    site_xmat: wp.array2d[wp.mat33],
    memory: wp.array2d[wp.float64],
    ctrl: wp.array2d[float],
):
    """Write the arm's torques and the fingers' commands of one substep; ``first`` is 1 in a control step's first."""
    world = wp.tid()
    pos = to_vec3d(site_xpos[world, robot.site])
    ori = _to_mat33d(site_xmat[world, robot.site])
    jacobian = mat67d()
    mass = mat77d()
    joint_pos = vec7d()
    joint_vel = vec7d()
    for c in range(7):
        axis = to_vec3d(xaxis[world, robot.joint[c]])
        column = wp.cross(axis, pos - to_vec3d(xanchor[world, robot.joint[c]]))
        for r in range(3):
            jacobian[r, c] = column[r]
            jacobian[3 + r, c] = axis[r]
        joint_pos[c] = wp.float64(qpos[world, robot.qpos[c]])
        joint_vel[c] = wp.float64(qvel[world, robot.dof[c]])
        address = inertia_rows[robot.dof[c]]
        for k in range(inertia_counts[robot.dof[c]]):
            for b in range(7):
                if inertia_columns[address + k] == robot.dof[b]:
                    mass[c, b] = wp.float64(inertia[world, address + k])
                    mass[b, c] = wp.float64(inertia[world, address + k])
    velocity = jacobian * joint_vel
    linear = wp.vec3d(velocity[0], velocity[1], velocity[2])
    angular = wp.vec3d(velocity[3], velocity[4], velocity[5])
    row = task[world]
    if first == 1 and memory[world, STALE] != wp.float64(0.0):
        pos = stale.pos[row]
        ori = stale.ori[row]
        linear = stale.pos_vel[row]
        angular = stale.ori_vel[row]
        for c in range(7):
            joint_pos[c] = stale.joint_pos[row, c]
            joint_vel[c] = stale.joint_vel[row, c]
            for r in range(6):
                jacobian[r, c] = stale.jacobian[row, r, c]
            for b in range(7):
                mass[c, b] = stale.mass[row, c, b]
    if first == 1:
        memory[world, STALE] = wp.float64(0.0)
    error = wp.vec3d()
    for k in range(3):
        wanted = wp.vec3d(memory[world, GOAL_ORI + k], memory[world, GOAL_ORI + 3 + k], memory[world, GOAL_ORI + 6 + k])
        error += wp.cross(_column(ori, k), wanted) * wp.float64(0.5)
    posture = vec7d()
    for c in range(7):
        posture[c] = _NULL_KP * (stale.initial_joint[row, c] - joint_pos[c]) - _NULL_KD * joint_vel[c]
    force = (goal.pos[world] - pos) * _KP - linear * _KD
    torques = _torques(jacobian, mass, force, error * _KP - angular * _KD, posture)
    for c in range(7):
        torque = torques[c] + wp.float64(bias[world, robot.dof[c]])
        ctrl[world, robot.actuator[c]] = float(wp.clamp(torque, robot.torque_low[c], robot.torque_high[c]))
    for k in range(2):
        step = robot.finger_sign[k] * goal.gripper_step[world]
        command = wp.clamp(memory[world, GRIPPER + k] + step, wp.float64(-1.0), wp.float64(1.0))
        memory[world, GRIPPER + k] = command
        ctrl[world, robot.finger_actuator[k]] = float(robot.finger_bias[k] + robot.finger_weight[k] * command)


@wp.kernel
def sample_pose(
    robot: Robot,
    qpos: wp.array2d[float],
    site_xpos: wp.array2d[wp.vec3],
    xquat: wp.array2d[wp.quat],
    kinematics_qpos: wp.array2d[float],
    sample: wp.array2d[float],
):
    """Keep the pose that observations and frames show: positions, end effector, hand quaternion (wxyz)."""
    world = wp.tid()
    for k in range(qpos.shape[1]):
        kinematics_qpos[world, k] = qpos[world, k]
    for k in range(3):
        sample[world, k] = site_xpos[world, robot.site][k]
    for k in range(4):
        sample[world, 3 + k] = xquat[world, robot.hand][k]


@wp.kernel
def sample_fingers(robot: Robot, qpos: wp.array2d[float], sample: wp.array2d[float]):
    """Keep the finger joints that observations show."""
    world = wp.tid()
    for k in range(2):
        sample[world, 7 + k] = qpos[world, robot.finger_qpos[k]]
