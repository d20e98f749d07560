"""The lean core: one task's physics, stepped as stock LIBERO steps it, without LIBERO.

What stock LIBERO does that is easy to miss, and is reproduced here:

* Observations are sampled after substep 24 of 25, from kinematics computed before that substep's integration, while
  finger positions are those after it. Success is judged after substep 25.
* ``set_init_state`` leaves the arm's controller as the reset left it: in the first control step the goal is relative to
  the *reset* pose, and the first substep's torques use its Jacobian and inertia.
* The goal orientation stays what it was until an action asks for a rotation.
* The gripper's command is a ramp that starts at zero after a reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from libero_gym import controller
from libero_gym.compile import CompiledTask, FixtureDraw, model_from_bytes, model_to_bytes
from libero_gym.mujoco_import import mujoco

Physics = Literal["exact", "fast"]

CONTROL_FREQ = 20  # Hz
N_SUBSTEPS = 25
# Index of the substep after which stock LIBERO's observables sample, once `set_init_state` has been called.
SAMPLED_SUBSTEP = 23
# Opens the gripper and holds still; the evaluation protocol settles objects with it.
SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


@dataclass(frozen=True)
class Memory:
    """What influences the future or the next observation beside time, qpos and qvel.

    Attributes:
        gripper: Ramped gripper command, (2,).
        goal_ori: Goal orientation of the controller, (3, 3).
        stale: Whether the next control step is the first after a reset.
        warmstart: The contact solver's starting point, (nv,).
        ctrl: The last substep's commands, (nu,); the next substep's first solves still use them.
        kinematics_qpos: Positions that the next frame shows, (nq,).
        sample: Sampled end-effector position, hand quaternion and finger joints, (9,).
        burners_on, burners_shown: Whether each burner burns now, and whether the next frame shows it burning.
        success: Whether the goal held at the end of the last control step.
    """

    gripper: np.ndarray
    goal_ori: np.ndarray
    stale: bool
    warmstart: np.ndarray
    ctrl: np.ndarray
    kinematics_qpos: np.ndarray
    sample: np.ndarray
    burners_on: tuple[bool, ...]
    burners_shown: tuple[bool, ...]
    success: bool


class SimState(np.ndarray):
    """A simulator's state: float64 ``[time, qpos, qvel]`` as LIBERO flattens it, and the controller's memory.

    It is an array, so LIBERO's tools can use it as it is. What was computed from it (a slice, a sum) has no memory.
    """

    memory: Memory | None

    def __new__(cls, values: np.ndarray, memory: Memory | None = None) -> SimState:
        state = np.asarray(values, dtype=np.float64).copy().view(cls)
        state.memory = memory
        return state

    def __array_finalize__(self, source: Any) -> None:
        self.memory = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (SimState, (np.asarray(self), self.memory))


class Simulator:
    """One instance of a task: an ``MjData`` over the task's shared model, and a few arrays.

    Args:
        compiled: The task.
        fixtures: Where the fixtures stand; the protocol's first draw by default. Other poses need a model of their own
            (3 MB).
        physics: "exact" for stock's bits; "fast" solves for the contact forces once per substep instead of three times,
            so that what follows differs from stock's within the solver's tolerance, and after contacts beyond it.
    """

    def __init__(self, compiled: CompiledTask, fixtures: FixtureDraw | None = None, physics: Physics = "exact") -> None:
        self.compiled = compiled
        self.physics = physics
        self.fixtures = compiled.fixtures if fixtures is None else fixtures
        self.model = _model_with_fixtures(compiled, self.fixtures)
        self.data = mujoco.MjData(self.model)
        self.success = False
        self.burners_on: tuple[bool, ...] = ()
        self.burners_shown: tuple[bool, ...] = ()
        self.kinematics_qpos = np.zeros(self.model.nq)
        self._checks = [predicate.bind(self.model) for predicate in compiled.goal]
        self._burner_checks = [burner.knob.bind(self.model) for burner in compiled.burners]
        self._sample = np.zeros(9)
        self._gripper = np.zeros(2)
        self._goal_ori = np.array(compiled.arm.stale["goal_ori"])
        self._stale = True
        self._bind_kernel()

    @property
    def state_size(self) -> int:
        """Length of a flattened state, 1 + nq + nv."""
        return int(1 + self.model.nq + self.model.nv)

    def reset(self, state: np.ndarray) -> None:
        """Start from an initial state, as a stock hard reset under ``seed(0)`` and ``set_init_state`` would.

        Args:
            state: ``[time, qpos, qvel]``, float64 of shape (1 + nq + nv,).

        Raises:
            ValueError: If the state has another length.
        """
        mujoco.mj_resetData(self.model, self.data)
        self.data.qacc_warmstart[:] = self.fixtures.warmstart
        self._gripper[:] = 0.0
        self._goal_ori = np.array(self.compiled.arm.stale["goal_ori"])
        self._stale = True
        self._write(state)
        mujoco.mj_forward(self.model, self.data)
        self._finish_control_step()
        self._sample_now()

    def step(self, action: np.ndarray) -> None:
        """One control step of 50 ms.

        Args:
            action: float64 (7,): position and axis-angle change in [-1, 1] of 5 cm and 0.5 rad; gripper, +1 closing.
        """
        arm = self.compiled.arm
        mujoco.mj_step1(self.model, self.data)
        if self._stale:
            eef_pos, eef_ori = arm.stale["ee_pos"], arm.stale["ee_ori_mat"]
        else:
            eef_pos = self.data.site_xpos[arm.eef_site].copy()
            eef_ori = self.data.site_xmat[arm.eef_site].reshape(3, 3).copy()
        scaled = np.clip(action[:6], -1, 1) * controller.ACTION_SCALE
        if np.any(scaled[3:] != 0.0):
            self._goal_ori = controller.rotated_goal(scaled[3:], eef_ori)
        self._gripper_plan[0] = controller.GRIPPER_SIGNS * controller.GRIPPER_SPEED * np.sign(action[6])
        controller.run_substeps(
            *self._kernel,
            eef_pos + scaled[:3],
            self._goal_ori,
            self._stale_arrays,
            self._stale,
            self._gripper,
            self._gripper_plan,
            (self.kinematics_qpos, self._sample),
            self.physics == "exact",
        )
        self._stale = False
        self._finish_control_step()

    def eef_pos(self) -> np.ndarray:
        """End-effector position in m at the sampled substep, (3,)."""
        return self._sample[0:3]

    def eef_quat(self) -> np.ndarray:
        """Hand orientation at the sampled substep, as an xyzw quaternion (4,)."""
        w, x, y, z = self._sample[3:7]
        return np.array([x, y, z, w])

    def gripper_qpos(self) -> np.ndarray:
        """Positions of the two finger joints in m, (2,)."""
        return self._sample[7:9]

    def get_state(self) -> SimState:
        """The state, exact to the bit: `set_state` and the same actions give the same future."""
        memory = Memory(
            gripper=self._gripper.copy(),
            goal_ori=self._goal_ori.copy(),
            stale=self._stale,
            warmstart=self.data.qacc_warmstart.copy(),
            ctrl=self.data.ctrl.copy(),
            kinematics_qpos=self.kinematics_qpos.copy(),
            sample=self._sample.copy(),
            burners_on=self.burners_on,
            burners_shown=self.burners_shown,
            success=self.success,
        )
        return SimState(np.concatenate([[self.data.time], self.data.qpos, self.data.qvel]), memory)

    def set_state(self, state: np.ndarray) -> None:
        """Return to a state of `get_state`; a plain array is taken as an initial state (see `reset`)."""
        memory = getattr(state, "memory", None)
        self.reset(np.asarray(state))
        if memory is None:
            return
        self._gripper[:] = memory.gripper
        self._goal_ori = memory.goal_ori.copy()
        self._stale = memory.stale
        self.data.qacc_warmstart[:] = memory.warmstart
        self.data.ctrl[:] = memory.ctrl
        self.kinematics_qpos[:] = memory.kinematics_qpos
        self._sample[:] = memory.sample
        self.burners_on = memory.burners_on
        self.burners_shown = memory.burners_shown
        self.success = memory.success

    def predicates(self) -> list[bool]:
        """Whether each predicate of the goal holds now."""
        return [check(self.data) for check in self._checks]

    def _write(self, state: np.ndarray) -> None:
        if np.shape(state) != (self.state_size,):
            raise ValueError(
                f"The state has shape {np.shape(state)}; {self.compiled.task.name!r} needs ({self.state_size},): "
                "time, qpos, qvel."
            )
        nq = self.model.nq
        self.data.time = state[0]
        self.data.qpos[:] = state[1 : 1 + nq]
        self.data.qvel[:] = state[1 + nq :]

    def _finish_control_step(self) -> None:
        self.success = all(check(self.data) for check in self._checks)
        # Frames show what held at the end of the control step before them, except right after a reset.
        self.burners_shown = self.burners_on
        self.burners_on = tuple(check(self.data) for check in self._burner_checks)

    def _sample_now(self) -> None:
        """Sample observations from the current state, as a forced update does after a reset."""
        arm = self.compiled.arm
        self.kinematics_qpos[:] = self.data.qpos
        self.burners_shown = self.burners_on
        self._sample[0:3] = self.data.site_xpos[arm.eef_site]
        self._sample[3:7] = self.data.xquat[arm.hand_body]
        self._sample[7:9] = self.data.qpos[arm.gripper_qpos]

    def _bind_kernel(self) -> None:
        """Gather the arguments of the compiled loop that never change."""
        arm, model, data, stale = self.compiled.arm, self.model, self.data, self.compiled.arm.stale
        low, high = model.actuator_ctrlrange[arm.gripper_actuators].T
        # Rows: step per substep, then bias and weight from command to control range.
        self._gripper_plan = np.stack([np.zeros(2), 0.5 * (high + low), 0.5 * (high - low)])
        self._stale_arrays = (
            *(stale[name] for name in ("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel")),
            tuple(np.asfortranarray(stale[name]) for name in ("J_full", "J_pos", "J_ori")),
            np.asfortranarray(stale["mass_matrix"]),
        )
        self._kernel = (
            (model._address, data._address),
            (arm.eef_site, arm.hand_body, N_SUBSTEPS, SAMPLED_SUBSTEP),
            (stale["initial_joint"], arm.torque_low, arm.torque_high),
            (data.qpos, data.qvel, data.ctrl, data.qM, data.qfrc_bias, data.site_xpos, data.site_xmat, data.xquat,
             model.dof_Madr, model.dof_parentid),
            (arm.qpos, arm.dof, arm.actuators, arm.gripper_qpos, arm.gripper_actuators),
        )  # fmt: skip


def _model_with_fixtures(compiled: CompiledTask, fixtures: FixtureDraw) -> mujoco.MjModel:
    """The task's shared model, or a copy with other fixture poses."""
    if fixtures is compiled.fixtures:
        return compiled.physics
    model = model_from_bytes(model_to_bytes(compiled.physics))
    model.body_pos[fixtures.body_ids] = fixtures.pos
    model.body_quat[fixtures.body_ids] = fixtures.quat
    return model
