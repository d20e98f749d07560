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

import copy
import logging
import warnings
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.dimensions import Physics
from libero_gym.equivalence import physics as equivalence
from libero_gym.equivalence.inertia import inertia_addresses, inertia_values
from libero_gym.simulation import controller, goals
from libero_gym.simulation.arrays import StateArrays, contacts_of
from libero_gym.simulation.compiled import COARSE_SUBSTEPS, CompiledTask, FixtureDraw
from libero_gym.simulation.states import Memory, SimState

logger = logging.getLogger(__name__)

STOCK_SUBSTEPS = 25  # of a control step, of 2 ms each
N_SUBSTEPS: dict[Physics, int] = {"exact": STOCK_SUBSTEPS, "fast": STOCK_SUBSTEPS, "coarse": COARSE_SUBSTEPS}
# Stock LIBERO's observables sample after the last substep but one, once `set_init_state` has been called.
SAMPLED_FROM_END = 2
# Opens the gripper and holds still; the evaluation protocol settles objects with it.
SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_LOST_MEMORY = (
    "The state is of mid-episode (time {time:g} s) and has lost the controller's memory, so what follows differs from "
    "what followed it. Keep what get_state() gave, or a copy or a pickle of it with the same values; or use snapshot() "
    "and restore()."
)


class Stepping(NamedTuple):
    """How control steps are divided into substeps.

    Attributes:
        model: The model with their time step.
        n_substeps: Of a control step.
        kernel: Arguments of the compiled loop that never change.
        gripper_speed: Change of the gripper's command per substep, (2,).
    """

    model: mujoco.MjModel
    n_substeps: int
    kernel: tuple[Any, ...]
    gripper_speed: np.ndarray


class Simulator(Uncopyable):
    """One instance of a task: an ``MjData`` over the task's shared model, and a few arrays.

    Args:
        compiled: The task.
        fixtures: Poses of the fixtures; None for the protocol's first draw. Other poses need a model of their own
            (3 MB).
        physics: "exact" gives stock's bits. "fast" solves for the contact forces once per substep instead of three
            times: states differ from stock's within the solver's tolerance, and after contacts beyond it. "coarse" is
            "fast" with fewer and longer substeps: another, similar robot, to train with. Objects settle as with "fast".
    """

    copy_instead = "copy.deepcopy() gives one of its own; get_state() and set_state() move its state to another one."

    def __init__(self, compiled: CompiledTask, fixtures: FixtureDraw | None = None, physics: Physics = "exact") -> None:
        equivalence.enable()
        self.compiled = compiled
        self.physics = physics
        self.fixtures = compiled.fixtures if fixtures is None else fixtures
        self.model = _model(compiled, self.fixtures, physics)
        self.data = mujoco.MjData(self.model)
        self.success = False
        self.burners_on: tuple[bool, ...] = (False,) * len(compiled.burners)
        self.burners_shown = self.burners_on
        self.kinematics_qpos, self.sampled_qpos, self.latest_qpos = np.zeros((3, self.model.nq))
        self.sampled_qvel = np.zeros(self.model.nv)
        self._goal = goals.bind_goal(compiled.goal, self.model)
        self._checks = [predicate.bind(self.model) for predicate in compiled.goal]
        self._burner_checks = [burner.knob.bind(self.model) for burner in compiled.burners]
        self._sample = np.zeros(9)
        self._gripper = np.zeros(2)
        self._goal_ori = np.array(compiled.robot.stale["goal_ori"])
        self._stale = True
        self._bind_kernel()

    def __deepcopy__(self, memo: dict[int, Any]) -> Simulator:
        """Another simulator in the same state; the compiled task is shared."""
        twin = Simulator(self.compiled, self.fixtures, self.physics)
        twin.set_state(self.get_state())
        # A state lacks the kinematics of the last substep's start, which the data has.
        twin.model, twin.data = self.model, copy.copy(self.data)
        for name in ("kinematics_qpos", "sampled_qpos", "latest_qpos", "sampled_qvel"):  # nor what cameras show
            getattr(twin, name)[:] = getattr(self, name)
        twin._bind_kernel()
        return twin

    @property
    def state_size(self) -> int:
        """Length of a flattened state, 1 + nq + nv."""
        return int(1 + self.model.nq + self.model.nv)

    def reset(self, state: np.ndarray) -> None:
        """Start from an initial state, as stock LIBERO does by a hard reset under ``seed(0)`` and ``set_init_state``.

        Args:
            state: ``[time, qpos, qvel]``, float64 of shape (1 + nq + nv,).

        Raises:
            ValueError: If the state has another length, or holds numbers at which MuJoCo would reset itself.
        """
        values = self._check_state(state)
        equivalence.enable()  # somebody may have taken it out since
        mujoco.mj_resetData(self.model, self.data)
        self.data.qacc_warmstart[:] = self.fixtures.warmstart
        self._gripper[:] = 0.0
        self._goal_ori = np.array(self.compiled.robot.stale["goal_ori"])
        self._stale = True
        self.move(values)

    def reset_as_drawn(self, state: np.ndarray) -> None:
        """Start from the state that a stock reset itself has left, without a ``set_init_state`` after it.

        Args:
            state: As for `reset`. It belongs to the draw of the simulator's fixtures.

        Raises:
            ValueError: As `reset`.
        """
        self.reset(state)
        self.data.qacc_warmstart[:] = self.fixtures.warmstart  # which the reset's own forward pass has left

    def move(self, state: np.ndarray) -> None:
        """Put everything at a state and leave the controller's memory, as stock's ``regenerate_obs_from_state``.

        Raises:
            ValueError: As `reset`.
        """
        self.write(state)
        self.forward()
        self._finish_control_step()
        self._sample_now()

    def forward(self) -> None:
        """Compute everything that follows from the state."""
        mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = self.data.qacc  # as MuJoCo does by itself up to 3.3.5
        self.latest_qpos[:] = self.data.qpos

    def write(self, state: np.ndarray) -> None:
        """Overwrite time, positions and velocities, and nothing that is computed from them.

        Raises:
            ValueError: As `reset`.
        """
        values, nq = self._check_state(state), self.model.nq
        self.data.time = values[0]
        self.data.qpos[:] = values[1 : 1 + nq]
        self.data.qvel[:] = values[1 + nq :]

    def step(self, action: np.ndarray, *, absolute: bool = False, sampled_from_end: int = SAMPLED_FROM_END) -> None:
        """One control step of 50 ms.

        Args:
            action: float64 (7,): position and axis-angle change in [-1, 1] of 5 cm and 0.5 rad; gripper, +1 closing.
            absolute: Whether the action's first six numbers are the goal pose itself, in m and rad.
            sampled_from_end: The substep after which observations are sampled: 1 is the last one.
        """
        self._step(action, self._stepping, absolute, sampled_from_end)

    def settle(self, n_steps: int) -> None:
        """Hold still with an open gripper for so many control steps, while objects fall and come to rest.

        "coarse" has stock's substeps here: initial states hold objects up to 10 cm above their place, and where they
        come to rest depends on the time step.
        """
        for _ in range(n_steps):
            self._step(SETTLE_ACTION, self._settling)

    def _step(
        self,
        action: np.ndarray,
        stepping: Stepping,
        absolute: bool = False,
        sampled_from_end: int = SAMPLED_FROM_END,
    ) -> None:
        mujoco.mj_step1(stepping.model, self.data)
        eef_pos, eef_ori = self.controller_pose()
        if absolute:
            goal_pos = np.array(action[:3], dtype=np.float64)
            self._goal_ori = controller.rotation_matrix(action[3:6])
        else:
            scaled = np.clip(action[:6], -1, 1) * controller.ACTION_SCALE
            goal_pos = eef_pos + scaled[:3]
            if np.any(scaled[3:] != 0.0):
                self._goal_ori = controller.rotated_goal(scaled[3:], eef_ori)
        self._gripper_plan[0] = stepping.gripper_speed * np.sign(action[6])
        controller.run_substeps(
            *stepping.kernel,
            (goal_pos, self._goal_ori),
            self._stale_arrays,
            self._stale,
            self._gripper,
            self._gripper_plan,
            stepping.n_substeps - sampled_from_end,
            (self.kinematics_qpos, self._sample, self.sampled_qpos, self.sampled_qvel, self.latest_qpos),
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

    def controller_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) in m and orientation (3, 3) of the end effector, as the controller has last looked at them."""
        robot = self.compiled.robot
        if self._stale:
            return np.array(robot.stale["ee_pos"]), np.array(robot.stale["ee_ori_mat"])
        return self.data.site_xpos[robot.eef_site].copy(), self.data.site_xmat[robot.eef_site].reshape(3, 3).copy()

    def goal_ori(self) -> np.ndarray:
        """Orientation that the controller pulls the end effector to, (3, 3)."""
        return self._goal_ori.copy()

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
        """Return to a state of `get_state`; a plain array is taken as an initial state (see `reset`).

        Raises:
            ValueError: If the state has another shape than the task's, or is not finite.

        Warns:
            UserWarning: If the state is of mid-episode and has lost the controller's memory.
        """
        memory = getattr(state, "memory", None)
        if memory is not None:
            self._check_memory(memory)
        self.reset(state)
        if memory is None:
            if self.data.time > 0:  # official initial states are of time 0
                warnings.warn(_LOST_MEMORY.format(time=self.data.time), stacklevel=3)
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

    @property
    def arrays(self) -> StateArrays:
        """What predicates and rewards read, as a batch of one: views, so they hold until the next step."""
        return self._views._replace(contacts=contacts_of(self.data))

    def predicates(self) -> list[bool]:
        """Whether each predicate of the goal holds now."""
        state = self.arrays
        return [bool(check(state)[0]) for check in self._checks]

    def _check_state(self, state: Any) -> np.ndarray:
        """The state as float64 (1 + nq + nv,)."""
        needs = f"{self.compiled.task.name!r} needs ({self.state_size},): time, qpos, qvel."
        try:
            values = np.asarray(state, dtype=np.float64)
        except (TypeError, ValueError) as error:
            kind = type(state).__name__
            raise ValueError(f"The state is a {kind} that is no array of numbers ({error}); {needs}") from None
        if values.shape != (self.state_size,):
            raise ValueError(f"The state has shape {values.shape}; {needs}")
        bad = np.flatnonzero(~(np.abs(values) <= mujoco.mjMAXVAL))  # NaN compares as False
        if bad.size:
            raise ValueError(
                f"The state holds {values[bad[0]]} at index {bad[0]}; expected finite numbers of at most "
                f"{mujoco.mjMAXVAL:g}, for MuJoCo resets itself at others."
            )
        return values

    def _check_memory(self, memory: Memory) -> None:
        own = self.get_state().memory
        for field in fields(Memory):
            given, expected = (np.asarray(getattr(holder, field.name)) for holder in (memory, own))
            if given.shape != expected.shape or given.dtype != expected.dtype or not np.isfinite(given).all():
                raise ValueError(
                    f"The state's memory has {field.name} of shape {given.shape}, or not finite; "
                    f"{self.compiled.task.name!r} needs {expected.dtype} {expected.shape}. It is damaged, or of "
                    "another task."
                )

    def _finish_control_step(self) -> None:
        state = self.arrays
        self.success = bool(self._goal(state)[0])
        # Frames show what held at the end of the control step before them, except right after a reset.
        self.burners_shown = self.burners_on
        self.burners_on = tuple(bool(check(state)[0]) for check in self._burner_checks)

    def _sample_now(self) -> None:
        """Sample observations from the current state, as a forced update does after a reset."""
        robot = self.compiled.robot
        self.kinematics_qpos[:] = self.sampled_qpos[:] = self.data.qpos
        self.sampled_qvel[:] = self.data.qvel
        self.burners_shown = self.burners_on
        self._sample[0:3] = self.data.site_xpos[robot.eef_site]
        self._sample[3:7] = self.data.xquat[robot.hand_body]
        self._sample[7:9] = self.data.qpos[robot.gripper_qpos]

    def _bind_kernel(self) -> None:
        """Gather the arguments of the compiled loop that never change, and the views of the data."""
        self._views = StateArrays.of(self.data)
        robot, model, stale = self.compiled.robot, self.model, self.compiled.robot.stale
        low, high = model.actuator_ctrlrange[robot.gripper_actuators].T
        # Rows: step per substep, then bias and weight from command to control range.
        self._gripper_plan = np.stack([np.zeros(2), 0.5 * (high + low), 0.5 * (high - low)])
        self._stale_arrays = (
            *(stale[name] for name in ("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel")),
            tuple(np.asfortranarray(stale[name]) for name in ("J_full", "J_pos", "J_ori")),
            np.asfortranarray(stale["mass_matrix"]),
        )
        self._stepping = self._settling = self._divided(model, N_SUBSTEPS[self.physics])
        if self.physics == "coarse":
            self._settling = self._divided(_model(self.compiled, self.fixtures, "fast"), STOCK_SUBSTEPS)

    def _divided(self, model: mujoco.MjModel, n_substeps: int) -> Stepping:
        """Control steps of so many substeps; the model has their time step, and the data's sizes."""
        robot, data = self.compiled.robot, self.data
        kernel = (
            (model._address, data._address),
            (robot.eef_site, robot.hand_body, n_substeps),
            (robot.stale["initial_joint"], robot.torque_low, robot.torque_high),
            (data.qpos, data.qvel, data.ctrl, data.qacc, data.qacc_warmstart, inertia_values(data), data.qfrc_bias,
             data.site_xpos, data.site_xmat, data.xquat, inertia_addresses(model, robot.dof)),
            (robot.qpos, robot.dof, robot.actuators, robot.gripper_qpos, robot.gripper_actuators),
        )  # fmt: skip
        speed = controller.GRIPPER_SPEED * (STOCK_SUBSTEPS / n_substeps)  # the same in a control step
        return Stepping(model, n_substeps, kernel, controller.GRIPPER_SIGNS * speed)


def _model(compiled: CompiledTask, fixtures: FixtureDraw, physics: Physics) -> mujoco.MjModel:
    """The task's shared model of a physics, or a copy with other fixture poses."""
    own = compiled.fixtures
    shared = compiled.coarse_physics if physics == "coarse" else compiled.physics
    if np.array_equal(fixtures.pos, own.pos) and np.array_equal(fixtures.quat, own.quat):
        return shared
    model = copy.copy(shared)
    model.body_pos[fixtures.body_ids] = fixtures.pos
    model.body_quat[fixtures.body_ids] = fixtures.quat
    return model


def _log_warning(message: str) -> None:
    logger.warning("MuJoCo: %s", message)


if mujoco.get_mju_user_warning() is None:  # else MuJoCo appends to MUJOCO_LOG.TXT in the current folder
    mujoco.set_mju_user_warning(_log_warning)
