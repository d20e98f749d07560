"""What the simulator knows and no camera shows, as numbers for a critic: where the goal's objects are.

Privileged: to train with, never to act or to evaluate with. A critic that sees the state while the policy sees frames
tells luck from skill sooner (asymmetric actor-critic; Pinto et al., 2017, arXiv 1710.06542).
"""

from __future__ import annotations

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.simulation import goals
from libero_gym.simulation.arrays import StateArrays

# Goals of LIBERO have at most so many predicates.
MAX_PREDICATES = 3
N_FEATURES = 14
SIZE = 9 + MAX_PREDICATES * N_FEATURES
# Distances are given in this unit, and the fingers in theirs, so that what matters for a grasp is of order one.
DISTANCE_UNIT, FINGER_UNIT = 0.1, 0.01  # m


class PrivilegedState:
    """A task's privileged observation, float32 (`SIZE`,) per environment.

    The first nine numbers are the share of the episode's time that is left and the robot's state (position in m,
    axis-angle in rad, fingers in cm). Then each predicate of the goal has 14: 1 for being there; whether it holds; the
    way from the hand to its object and from there to its target, in units of 10 cm; the object's place in m; the
    direction of its upright axis. A joint's predicate has its body's place, and three times its way to the threshold.

    Args:
        goal: The goal's predicates.
        model: The model to resolve their names in.

    Raises:
        ValueError: If the goal has more than `MAX_PREDICATES`.
    """

    def __init__(self, goal: tuple[goals.Predicate, ...], model: mujoco.MjModel) -> None:
        if len(goal) > MAX_PREDICATES:
            raise ValueError(f"The goal has {len(goal)} predicates; privileged observations hold {MAX_PREDICATES}.")
        self._predicates = [(predicate.bind(model), predicate.bind_relation(model)) for predicate in goal]

    def __call__(self, state: StateArrays, robot_state: np.ndarray, time_left: float | np.ndarray) -> np.ndarray:
        """The observations of n environments, float32 (n, `SIZE`).

        Args:
            state: The environments' state.
            robot_state: The robots' states as observed, (n, 8).
            time_left: Share of the episode's control steps that is left, (n,), or one number for all.
        """
        observation = np.zeros((len(robot_state), SIZE), dtype=np.float32)
        observation[:, 0] = time_left
        observation[:, 1:9] = robot_state / np.array([1.0] * 6 + [FINGER_UNIT] * 2)
        for index, (holds, relate) in enumerate(self._predicates):
            features = observation[:, 9 + index * N_FEATURES :][:, :N_FEATURES]
            points, to_target, upright, _ = relate(state)
            features[:, 0] = 1.0
            features[:, 1] = holds(state)
            if not points.shape[1]:  # nothing to be anywhere
                continue
            features[:, 2:5] = (points[:, 0] - robot_state[:, :3]) / DISTANCE_UNIT
            features[:, 5:8] = to_target / DISTANCE_UNIT
            features[:, 8:11] = points[:, 0]
            features[:, 11:14] = upright
        return observation
