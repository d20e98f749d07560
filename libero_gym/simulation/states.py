"""A simulator's state as a value: an array that carries what the controller remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Memory:
    """What influences the future or the next observation apart from time, qpos and qvel.

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

    It is an array, so LIBERO's tools can use it as it is. Copies of the whole array carry the memory, however they were
    made. Arrays that were computed from it or changed in place (a slice, a sum, a moved object) have none.
    """

    # What `get_state` gave: the values, and the memory that belongs to them.
    _origin: tuple[np.ndarray, Memory] | None

    def __new__(cls, values: np.ndarray, memory: Memory | None = None) -> SimState:
        state = np.asarray(values, dtype=np.float64).copy().view(cls)
        state._origin = None if memory is None else (np.array(state), memory)
        return state

    def __array_finalize__(self, source: Any) -> None:
        self._origin = getattr(source, "_origin", None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (SimState, (np.asarray(self), self.memory))

    def __deepcopy__(self, memo: dict[int, Any] | None) -> SimState:  # NumPy's own makes an array without attributes
        return SimState(self, self.memory)

    @property
    def memory(self) -> Memory | None:
        """The controller's memory; None if the values are not those that it belongs to."""
        if self._origin is None or not np.array_equal(self, self._origin[0]):
            return None
        return self._origin[1]
