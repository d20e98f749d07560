"""Rows that hold all that a world's future depends on, in tables on the device, and their way to and from the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import warp as wp

from libero_gym.gpu import kernels
from libero_gym.gpu.arm_kernels import GOAL_ORI, GRIPPER, MEMORY_SIZE, STALE
from libero_gym.simulation.compiled import CompiledTask, FixtureDraw
from libero_gym.simulation.states import Memory, SimState

# A world's row on the host: an array (k,) per column of `columns_of`.
Row = Mapping[str, np.ndarray]

_TYPES: dict[str, Any] = {"memory": wp.float64, "phi": wp.float64, "flags": wp.int32, "task": wp.int32}
# What a control step changes; the others only a new episode does.
CHANGING = ("time", "qpos", "qvel", "warmstart", "ctrl", "memory", "kinematics_qpos", "sample", "flags", "phi")


def columns_of(compiled: CompiledTask) -> dict[str, int]:
    """Names and widths of a row's columns.

    ``memory`` is the controller's (see `arm_kernels`); ``flags`` are success and burners, and ``phi`` is the potential
    of progress (see `goals.judge`); ``fixtures`` are a position and a quaternion (wxyz) per body; ``task`` is the row
    of the scene's tables.
    """
    model = compiled.physics
    return {
        "time": 1,
        "qpos": model.nq,
        "qvel": model.nv,
        "warmstart": model.nv,
        "ctrl": model.nu,
        "memory": MEMORY_SIZE,
        "kinematics_qpos": model.nq,
        "sample": 9,
        "flags": 1 + 2 * len(compiled.burners),
        "phi": 1,
        "fixtures": 7 * len(compiled.fixtures.body_ids),
        "task": 1,
    }


def type_of(name: str) -> Any:
    """Warp's type of a column."""
    return _TYPES.get(name, wp.float32)


def initial_row(compiled: CompiledTask, task: int, state: np.ndarray, fixtures: FixtureDraw) -> Row:
    """The row of an initial state, as a stock reset leaves controller, gripper and solver.

    Args:
        compiled: The task.
        task: Its row in the scene's tables.
        state: ``[time, qpos, qvel]``, (1 + nq + nv,).
        fixtures: Poses of the fixtures, and the solver's starting point.
    """
    stale, model = compiled.robot.stale, compiled.physics
    memory = Memory(
        gripper=np.zeros(2),
        goal_ori=np.asarray(stale["goal_ori"]),
        stale=True,
        warmstart=fixtures.warmstart,
        ctrl=np.zeros(model.nu),
        kinematics_qpos=state[1 : 1 + model.nq],
        sample=np.zeros(9),
        burners_on=(False,) * len(compiled.burners),
        burners_shown=(False,) * len(compiled.burners),
        success=False,
    )
    return row_of(compiled, task, SimState(state, memory), fixtures)


def row_of(compiled: CompiledTask, task: int, state: SimState, fixtures: FixtureDraw, phi: float = 0.0) -> Row:
    """The row of a state that a simulator or a batch gave, in single precision; `state_of` reverses it."""
    memory, nq = state.memory, compiled.physics.nq
    assert memory is not None
    values = np.asarray(state)
    return {
        "time": values[:1],
        "qpos": values[1 : 1 + nq],
        "qvel": values[1 + nq :],
        "warmstart": memory.warmstart,
        "ctrl": memory.ctrl,
        "memory": np.concatenate([memory.gripper, memory.goal_ori.ravel(), [float(memory.stale)]]),
        "kinematics_qpos": memory.kinematics_qpos,
        "sample": memory.sample,
        "flags": np.array([memory.success, *memory.burners_on, *memory.burners_shown], dtype=np.int32),
        "phi": np.array([phi]),
        "fixtures": np.concatenate([fixtures.pos, fixtures.quat], axis=1).ravel(),
        "task": np.array([task], dtype=np.int32),
    }


def state_of(row: Row) -> SimState:
    """A world's state and its controller's memory, as `simulation.simulator.Simulator.get_state` gives them."""
    memory, flags = np.asarray(row["memory"]), [bool(flag) for flag in row["flags"]]
    n_burners = len(flags) // 2
    return SimState(
        np.concatenate([row["time"], row["qpos"], row["qvel"]]).astype(np.float64),
        Memory(
            gripper=memory[GRIPPER : GRIPPER + 2].copy(),
            goal_ori=memory[GOAL_ORI : GOAL_ORI + 9].reshape(3, 3).copy(),
            stale=bool(memory[STALE]),
            warmstart=row["warmstart"].astype(np.float64),
            ctrl=row["ctrl"].astype(np.float64),
            kinematics_qpos=row["kinematics_qpos"].astype(np.float64),
            sample=row["sample"].astype(np.float64),
            burners_on=tuple(flags[1 : 1 + n_burners]),
            burners_shown=tuple(flags[1 + n_burners :]),
            success=flags[0],
        ),
    )


class StateTable:
    """Rows on the device, which grow in number as they are added.

    Args:
        columns: Names and widths; see `columns_of`.
        device: Warp's device.
        capacity: Number of rows to begin with.

    Attributes:
        columns: Arrays (capacity, width) by name.
    """

    def __init__(self, columns: Mapping[str, int], device: Any, capacity: int = 64) -> None:
        self._device, self._capacity, self.n_rows = device, capacity, 0
        self.columns = {
            name: wp.zeros((capacity, width), dtype=type_of(name), device=device) for name, width in columns.items()
        }

    def reserve(self, count: int) -> range:
        """Numbers of so many new rows, which hold zeros."""
        rows = range(self.n_rows, self.n_rows + count)
        while rows.stop > self._capacity:
            self._grow()
        self.n_rows = rows.stop
        return rows

    def write(self, first: int, rows: Iterable[Row]) -> None:
        """Write rows from the host, in the order of their numbers."""
        given = list(rows)
        for name, column in self.columns.items():
            values = np.stack([np.asarray(row[name]) for row in given]).astype(wp.dtype_to_numpy(column.dtype))
            if values.size:
                wp.copy(column[first : first + len(given)], wp.array(values, dtype=column.dtype, device=self._device))

    def _grow(self) -> None:
        for name, old in self.columns.items():
            grown = wp.zeros((2 * self._capacity, old.shape[1]), dtype=old.dtype, device=self._device)
            if old.size:
                wp.copy(grown[: self._capacity], old)
            self.columns[name] = grown
        self._capacity *= 2


def move(kernel: Any, active: Any, rows: Any, columns: Mapping[str, Any], table: StateTable) -> None:
    """Launch `kernels.gather` or `kernels.scatter` over the columns of a batch and a table."""
    for name, column in columns.items():
        if column.size:
            own, other = kernels.words(column), kernels.words(table.columns[name])
            pair = (other, own) if kernel is kernels.gather else (own, other)
            wp.launch(kernel, own.shape, [active, rows, *pair], device=own.device)
