"""The gripper's opening from its two finger joints; an array function that needs no simulator."""

from __future__ import annotations

import numpy as np

FINGERS = slice(6, 8)
"""The finger joints' places in a robot's state (8,)."""


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
