"""The gripper: its opening from two finger joints, and the convention of its commands; it needs no simulator."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

FINGERS = slice(6, 8)
"""The finger joints' places in a robot's state (8,)."""
CONVENTION = (
    "Here -1 opens the gripper and +1 closes it. If 1 is open and 0 is closed in the data, as in OpenVLA's pipeline, "
    "convert them first: actions[:, 6] = 1 - 2 * actions[:, 6]."
)


def gripper_opening(fingers: np.ndarray) -> np.ndarray:
    """Distance between the fingers.

    The Panda's fingers slide in opposite directions, so that the left joint's position is positive and the right one's
    negative.

    Args:
        fingers: Positions of the left and the right finger joint in m, shape (..., 2).

    Returns:
        Distances in m, shape (...), in the type of ``fingers``.
    """
    return np.asarray(fingers[..., 0] - fingers[..., 1])


class GripperCommands(NamedTuple):
    """The range of the gripper's commands in a data set.

    Attributes:
        low: Smallest command.
        high: Largest command.
        has_zero: Whether a command is exactly 0, which neither opens nor closes.
    """

    low: float = math.inf
    high: float = -math.inf
    has_zero: bool = False

    @classmethod
    def of(cls, commands: np.ndarray) -> GripperCommands:
        """The range of commands (T,), T > 0."""
        return cls(float(np.min(commands)), float(np.max(commands)), bool(np.any(commands == 0)))

    def __or__(self, other: GripperCommands) -> GripperCommands:
        """The range of both data sets together."""
        return GripperCommands(min(self.low, other.low), max(self.high, other.high), self.has_zero or other.has_zero)

    @property
    def fault(self) -> str:
        """A sentence that says what is certainly wrong, with the convention; empty if nothing is.

        A model that learns commands of 0 to 1 never opens the hand; commands of -1 to 0 teach it never to close.
        """
        if self.low == self.high == 0:
            return f"The gripper's command is 0 in every frame, which neither opens nor closes it. {CONVENTION}"
        # Data without an exact 0 may still mean 0 and 1: recorded commands of 0.02 and 0.98 do.
        if self.low >= 0 and (self.has_zero or self.low < 0.5 <= self.high):
            return (
                f"The gripper's command lies in {self.low:g} to {self.high:g} and is never negative: the hand would "
                f"never open. {CONVENTION}"
            )
        if self.high <= 0 and self.has_zero:
            return (
                f"The gripper's command lies in {self.low:g} to {self.high:g} and is never positive: the hand would "
                f"never close. {CONVENTION}"
            )
        return ""

    @property
    def doubt(self) -> str:
        """A sentence on what looks odd but may be right, as in a task of pushing; empty if nothing looks odd."""
        if self.fault or self.low < 0 < self.high:
            return ""
        never = "open" if self.low > 0 else "close"
        return (
            f"The gripper's command is {self.low:g} to {self.high:g} throughout: the hand never {never}s. {CONVENTION}"
        )
