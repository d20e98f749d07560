"""The worlds of one scene: one MuJoCo Warp model and data, stepped together by one captured graph."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from libero_gym.gpu import arm_kernels, goals, kernels
from libero_gym.gpu.states import CHANGING, StateTable, columns_of, move, type_of
from libero_gym.simulation import controller
from libero_gym.simulation.arrays import NO_GEOM, StateArrays
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.simulation.simulator import SAMPLED_FROM_END, STOCK_SUBSTEPS

logger = logging.getLogger(__name__)

# CUDA's graphs know loops of a length that the device decides from here on; the solver's is one.
_GRAPH_LOOPS = (12, 4)
# Solver iterations that ran out drop nothing, and stock's solver has the same limit.
_HARMLESS = int(mjw.OverflowType.ITERATIONS | mjw.OverflowType.LS_ITERATIONS)


class BufferOverflowError(RuntimeError):
    """Contacts or constraints did not fit their buffers, so MuJoCo Warp has dropped some: the states are wrong."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the buffers that contacts and constraints go into.

    Attributes:
        nconmax: Contacts per world; it is a mean, for all worlds share one buffer.
        njmax: Rows of constraints of any one world.
    """

    nconmax: int
    njmax: int


class SceneBatch:
    """So many worlds of one scene, whose tasks differ in fixtures, goals and initial states.

    A world is frozen unless it is ``active`` in a call: it is simulated along, and then put back, to the bit. Rows go
    in and out through a `StateTable`; a row is all that a world's future depends on.

    Non-obvious behaviours:

    * Kinematics and contacts are those of the last substep's start when a control step ends, as in stock LIBERO, which
      judges success by them. They hold for worlds that were active in the last call alone.
    * A world's last bits may depend on how many others there are and what they do, on the CPU, too. The same worlds in
      the same states take the same step there; on a GPU they need ``deterministic`` for that, since the order of
      contacts and of atomic sums varies otherwise.
    * Graphs keep the arrays that they were captured with: write into arrays, never replace them.

    Args:
        tasks: The scene's compiled tasks; ``task`` in a row counts through them.
        n_worlds: Number of worlds.
        device: Warp's name of the device, such as ``"cpu"`` or ``"cuda:0"``.
        sizes: Sizes of the buffers.
        capture: Whether control steps are replayed from a captured graph; without, every kernel is launched anew.
        deterministic: Whether the same worlds take the same step to the bit on a GPU, too; it has room for some tens of
            worlds there.

    Raises:
        NotImplementedError: If MuJoCo Warp lacks something that the scene's model has.
    """

    def __init__(
        self,
        tasks: Sequence[CompiledTask],
        n_worlds: int,
        device: str,
        sizes: Sizes,
        capture: bool = True,
        deterministic: bool = False,
    ) -> None:
        self.tasks, self.n_worlds, self.sizes, self.deterministic = tuple(tasks), n_worlds, sizes, deterministic
        self.device = wp.get_device(device)
        self._capture = capture
        self._graphs: dict[str, Any] = {}
        self._shown: Any = None  # a second data, for frames
        with wp.ScopedDevice(self.device):
            self._put(_adapted(tasks[0].physics))
            self._allocate()

    def new_table(self, capacity: int = 64) -> StateTable:
        """An empty table whose rows fit these worlds."""
        return StateTable(columns_of(self.tasks[0]), self.device, capacity)

    def load(self, active: np.ndarray, table: StateTable, rows: np.ndarray) -> None:
        """Give active worlds rows of a table.

        Args:
            active: Which worlds, bool (n,).
            table: The table.
            rows: The row of each world; others' are not looked at, int (n,).
        """
        with wp.ScopedDevice(self.device):
            self._choose(active, rows)
            move(kernels.gather, self._active, self._rows, self.columns, table)
            n_bodies = len(self._fixture_bodies)
            poses = self.columns["fixtures"], self.model.body_pos, self.model.body_quat
            if n_bodies:
                wp.launch(kernels.place_bodies, (self.n_worlds, n_bodies), [self._active, self._fixture_bodies, *poses])

    def save(self, active: np.ndarray, table: StateTable, rows: np.ndarray) -> None:
        """Write active worlds into rows of a table, which must not be the same for two of them."""
        with wp.ScopedDevice(self.device):
            self._choose(active, rows)
            move(kernels.scatter, self._active, self._rows, self.columns, table)

    def begin(self, active: np.ndarray) -> None:
        """Start active worlds from the initial states that they were given, as stock LIBERO's forced update does."""
        self._run("begin", self._begin, active)

    def step(self, actions: np.ndarray, active: np.ndarray) -> None:
        """One control step of the active worlds.

        Args:
            actions: float64 (n, 7); see `simulation.simulator.Simulator.step`.
            active: Which worlds, bool (n,).

        Raises:
            BufferOverflowError: If contacts or constraints did not fit; the message names the size to ask for.
        """
        self._actions.assign(actions)
        self._run("step", self._step, active)

    def read(self, name: str) -> np.ndarray:
        """A column of the worlds' rows on the host, (n, width); on the CPU it is the column itself."""
        return np.asarray(self.columns[name].numpy())

    def arrays(self) -> StateArrays:
        """What predicates and features read, on the host; it holds for the worlds of the last call."""
        data = self.data
        n_contacts = min(int(data.nacon.numpy()[0]), data.naconmax)
        worlds, pairs = data.contact.worldid.numpy()[:n_contacts], data.contact.geom.numpy()[:n_contacts]
        counts, order = np.bincount(worlds, minlength=self.n_worlds), np.argsort(worlds, kind="stable")
        places = np.arange(n_contacts) - np.repeat(np.cumsum(counts) - counts, counts)
        contacts = np.full((self.n_worlds, counts.max(initial=0), 2), NO_GEOM, dtype=np.int32)
        contacts[worlds[order], places] = pairs[order]
        fields = {name: getattr(data, name).numpy().astype(np.float64) for name in StateArrays._fields[:-1]}
        return StateArrays(**fields, contacts=contacts)

    def shown_poses(self) -> Any:
        """Where bodies, cameras and lights are in what the next frames show, as a ``mujoco_warp.Data``; all worlds.

        Frames show the state of the substep that is sampled, so these are kinematics of their own.
        """
        with wp.ScopedDevice(self.device):
            if self._shown is None:
                self._shown = mjw.make_data(_adapted(self.tasks[0].physics), nworld=self.n_worlds, nconmax=1, njmax=1)
                self._shown.qpos = self.columns["kinematics_qpos"]
            mjw.kinematics(self.model, self._shown)
            mjw.com_pos(self.model, self._shown)
            mjw.camlight(self.model, self._shown)
        return self._shown

    # --------------------------------------------------------------------------------------------- building

    def _put(self, model: mujoco.MjModel) -> None:
        n, sizes = self.n_worlds, self.sizes
        try:
            self.model = mjw.put_model(model, batch_sizes={"body_pos": n, "body_quat": n})
        except (NotImplementedError, ValueError) as error:
            task = self.tasks[0].task
            raise NotImplementedError(
                f"MuJoCo Warp cannot simulate the scene of task {task.task_id} of {task.suite}: {error} "
                'backend="processes" can.'
            ) from error
        self.model.opt.warn_overflow = 0  # `_check_sizes` raises instead
        self.model.opt.deterministic = self.deterministic
        if not _knows_loops(self.device):
            self.model.opt.graph_conditional = False
        self.data = mjw.make_data(model, nworld=n, nconmax=sizes.nconmax, njmax=sizes.njmax)
        static = np.flatnonzero(model.body_weldid[model.geom_bodyid] == 0)
        self._static_geoms = wp.array(static, dtype=int)

    def _allocate(self) -> None:
        n, data = self.n_worlds, self.data
        self.columns: dict[str, Any] = {
            "time": data.time.reshape((n, 1)),
            "qpos": data.qpos,
            "qvel": data.qvel,
            "warmstart": data.qacc_warmstart,
            "ctrl": data.ctrl,
        }
        for name, width in columns_of(self.tasks[0]).items():
            self.columns.setdefault(name, wp.zeros((n, width), dtype=type_of(name)))
        changing = [self.columns[name] for name in CHANGING if self.columns[name].size]
        self._changing = [kernels.words(column) for column in changing]
        self._kept = [wp.zeros_like(column) for column in self._changing]
        self._task = self.columns["task"].reshape((n,))
        self._fixture_bodies = wp.array(self.tasks[0].fixtures.body_ids, dtype=int)
        self._active, self._rows = wp.zeros(n, dtype=int), wp.zeros(n, dtype=int)
        self._actions = wp.zeros((n, 7), dtype=wp.float64)
        self._robot, self._stale = _robot(self.tasks[0]), _stale_table(self.tasks)
        self._goal = arm_kernels.Goal()
        self._goal.pos = wp.zeros(n, dtype=wp.vec3d)
        self._goal.gripper_step = wp.zeros(n, dtype=wp.float64)
        self._goals = goals.goal_table(self.tasks, self.device)
        self._touching = wp.zeros((n, self._goals.kind.shape[1]), dtype=int)
        self._bodies = goals.Bodies()
        for name in ("qpos", "xpos", "xipos", "site_xpos", "site_xmat"):
            setattr(self._bodies, name, getattr(data, name))
        self._largest = wp.zeros(3, dtype=int)  # contacts, candidate pairs, constraints

    # ---------------------------------------------------------------------------------------------- running

    def _choose(self, active: np.ndarray, rows: np.ndarray | None = None) -> None:
        self._active.assign(np.asarray(active, dtype=np.int32))
        if rows is not None:
            self._rows.assign(np.asarray(rows, dtype=np.int32))

    def _run(self, name: str, launches: Callable[[], None], active: np.ndarray) -> None:
        """Run what these kernels do, for active worlds, and look whether all found room."""
        with wp.ScopedDevice(self.device):
            self._choose(active)
            if not self._capture:
                self._held(launches)
            else:
                if name not in self._graphs:
                    self._graphs[name] = self._recorded(launches)
                wp.capture_launch(self._graphs[name])
            self._check_sizes()

    def _recorded(self, launches: Callable[[], None]) -> Any:
        """What these kernels do, as a graph."""
        try:
            with wp.ScopedCapture() as recorded:
                self._held(launches)
        except ValueError as error:
            if not self.deterministic:
                raise
            raise ValueError(
                f"deterministic=True has no room for {self.n_worlds} worlds of the scene of "
                f"{self.tasks[0].task.name!r}: MuJoCo Warp sorts what it adds, in memory that grows with them "
                f"({error}). Take fewer environments, or deterministic=False."
            ) from error
        return recorded.graph

    def _held(self, launches: Callable[[], None]) -> None:
        for kept, column in zip(self._kept, self._changing, strict=True):
            wp.copy(kept, column)
        launches()
        for kept, column in zip(self._kept, self._changing, strict=True):
            wp.launch(kernels.put_back, kept.shape, [self._active, kept, column])

    def _begin(self) -> None:
        m, d = self.model, self.data
        self._look(first=True)
        mjw.fwd_actuation(m, d)
        mjw.fwd_acceleration(m, d)
        mjw.solve(m, d)
        wp.copy(d.qacc_warmstart, d.qacc)  # as MuJoCo's mj_fwdConstraint does, and MuJoCo Warp at a step's end alone
        self._sample(pose=True, fingers=True)
        self._judge(begins=True)

    def _step(self) -> None:
        m, d = self.model, self.data
        for substep in range(STOCK_SUBSTEPS):
            first, sampled = substep == 0, substep == STOCK_SUBSTEPS - SAMPLED_FROM_END
            self._look(first)
            self._drive(first)
            self._sample(pose=sampled)
            mjw.step2(m, d)
            self._sample(fingers=sampled)
        self._judge(begins=False)

    def _look(self, first: bool) -> None:
        """What follows from positions and velocities: MuJoCo Warp's ``step1``, with LIBERO's depths of contacts."""
        m, d, contact = self.model, self.data, self.data.contact
        mjw.fwd_kinematics(m, d)
        if first and self._static_geoms.size:
            shape = self.n_worlds, self._static_geoms.size
            poses = m.geom_bodyid, m.geom_pos, m.geom_quat, d.xpos, d.xmat, d.geom_xpos, d.geom_xmat
            wp.launch(kernels.place_static_geoms, shape, [self._static_geoms, *poses])
        mjw.crb(m, d)
        mjw.factor_m(m, d)
        mjw.collision(m, d)
        pairs = d.nacon, contact.geom, m.geom_type, d.geom_xmat, contact.worldid, contact.frame, contact.dist
        wp.launch(kernels.halve_face_depth, d.naconmax, list(pairs))
        mjw.make_constraint(m, d)
        wp.launch(kernels.note_sizes, self.n_worlds, [d.nacon, d.ncollision, d.nefc, self._largest])
        mjw.transmission(m, d)
        mjw.fwd_velocity(m, d)

    def _drive(self, first: bool) -> None:
        m, d, memory = self.model, self.data, self.columns["memory"]
        site, controlled = (d.site_xpos, d.site_xmat), (self._robot, self._stale, self._task)
        if first:
            wp.launch(arm_kernels.set_goals, self.n_worlds, [self._actions, *controlled, *site, memory, self._goal])
        inertia = m.M_rowadr, m.M_rownnz, m.M_colind, d.M
        state = d.qfrc_bias, d.qpos, d.qvel, d.xanchor, d.xaxis
        inputs = [int(first), *controlled, self._goal, *inertia, *state, *site, memory, d.ctrl]
        wp.launch(arm_kernels.drive_arm, self.n_worlds, inputs)

    def _sample(self, pose: bool = False, fingers: bool = False) -> None:
        d, sample = self.data, self.columns["sample"]
        if pose:
            inputs = [self._robot, d.qpos, d.site_xpos, d.xquat, self.columns["kinematics_qpos"], sample]
            wp.launch(arm_kernels.sample_pose, self.n_worlds, inputs)
        if fingers:
            wp.launch(arm_kernels.sample_fingers, self.n_worlds, [self._robot, d.qpos, sample])

    def _judge(self, begins: bool) -> None:
        d, contact = self.data, self.data.contact
        self._touching.zero_()
        shape = d.naconmax, self._touching.shape[1]
        pairs = d.nacon, contact.geom, contact.worldid, self._task, self._goals, self._touching
        wp.launch(goals.find_touching, shape, list(pairs))
        results = self.columns["sample"], self.columns["flags"], self.columns["phi"]
        inputs = [int(begins), self._goals, self._task, self._bodies, self._touching, *results]
        wp.launch(goals.judge, self.n_worlds, inputs)

    def _check_sizes(self) -> None:
        contacts, candidates, constraints = map(int, self._largest.numpy())
        other = int(np.bitwise_or.reduce(self.data.overflow.numpy()))
        self._largest.zero_()
        self.data.overflow.zero_()
        per_world, name = -(-max(contacts, candidates) // self.n_worlds), self.tasks[0].task.name
        if per_world > self.sizes.nconmax:
            raise BufferOverflowError(
                f"{per_world} contacts or pairs that come near per world, and there is room for "
                f"{self.sizes.nconmax}, in the scene of {name!r}: ask for nconmax={_with_reserve(per_world, 128)}."
            )
        if constraints > self.sizes.njmax:
            raise BufferOverflowError(
                f"A world has {constraints} constraints, and there is room for {self.sizes.njmax}, in the scene of "
                f"{name!r}: ask for njmax={_with_reserve(constraints, 64)}."
            )
        sized = int(mjw.OverflowType.NEFC | mjw.OverflowType.BROADPHASE | mjw.OverflowType.NARROWPHASE)
        if other & ~_HARMLESS & ~sized:
            raise BufferOverflowError(
                f"MuJoCo Warp has run out of room in the scene of {name!r} ({mjw.OverflowType(other)!r}): ask for "
                f"nconmax={2 * self.sizes.nconmax} and njmax={2 * self.sizes.njmax}."
            )


def _knows_loops(device: Any) -> bool:
    """Whether a device's graphs know loops; a driver that is too old for them is named in a warning."""
    driver = wp.get_cuda_driver_version() if device.is_cuda else _GRAPH_LOOPS
    if driver < _GRAPH_LOOPS:
        logger.warning(
            "The CUDA driver is for %s, and graphs with loops need %s: the solver's loop runs to its limit, which is "
            "slower and gives the same states. Update the driver.",
            *(".".join(map(str, version)) for version in (driver, _GRAPH_LOOPS)),
        )
    return bool(driver >= _GRAPH_LOOPS)


def _with_reserve(needed: int, step: int) -> int:
    """A quarter more than needed, in steps that keep few sizes in use: some kernels are compiled for theirs."""
    return -(-needed * 5 // 4 // step) * step


def _adapted(model: mujoco.MjModel) -> mujoco.MjModel:
    """The model as LIBERO's physics needs it of MuJoCo Warp: one box-box collider, one that gives up to 8 contacts."""
    adapted = copy.copy(model)
    flags = mujoco.mjtDisableBit.mjDSBL_NATIVECCD | mujoco.mjtDisableBit.mjDSBL_MULTICCD
    adapted.opt.disableflags |= int(flags | mujoco.mjtDisableBit.mjDSBL_SENSOR)
    return adapted


def _robot(compiled: CompiledTask) -> Any:
    indices, model = compiled.robot, compiled.physics
    low, high = model.actuator_ctrlrange[indices.gripper_actuators].T
    robot = arm_kernels.Robot()
    robot.site, robot.hand = indices.eef_site, indices.hand_body
    integers = {
        "joint": model.dof_jntid[indices.dof],
        "qpos": indices.qpos,
        "dof": indices.dof,
        "actuator": indices.actuators,
        "finger_qpos": indices.gripper_qpos,
        "finger_actuator": indices.gripper_actuators,
    }
    numbers = {
        "torque_low": indices.torque_low,
        "torque_high": indices.torque_high,
        "finger_sign": controller.GRIPPER_SIGNS,
        "finger_bias": 0.5 * (high + low),
        "finger_weight": 0.5 * (high - low),
    }
    for name, values in integers.items():
        setattr(robot, name, wp.array(values, dtype=int))
    for name, values in numbers.items():
        setattr(robot, name, wp.array(values, dtype=wp.float64))
    return robot


def _stale_table(tasks: Sequence[CompiledTask]) -> Any:
    rows = [task.robot.stale for task in tasks]
    names = {
        "pos": ("ee_pos", wp.vec3d),
        "ori": ("ee_ori_mat", wp.mat33d),
        "pos_vel": ("ee_pos_vel", wp.vec3d),
        "ori_vel": ("ee_ori_vel", wp.vec3d),
        "joint_pos": ("joint_pos", wp.float64),
        "joint_vel": ("joint_vel", wp.float64),
        "jacobian": ("J_full", wp.float64),
        "mass": ("mass_matrix", wp.float64),
        "initial_joint": ("initial_joint", wp.float64),
    }
    table = arm_kernels.StaleTable()
    for field, (name, kind) in names.items():
        setattr(table, field, wp.array(np.stack([row[name] for row in rows]), dtype=kind))
    return table
