"""What the simulator knows and no camera shows, as numbers for a critic: where the goal's objects are.

Privileged: to train with, never to act or to evaluate with. A critic that sees the state while the policy sees frames
tells luck from skill sooner (asymmetric actor-critic; Pinto et al., 2017, arXiv 1710.06542).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from libero_gym.mujoco_import import mujoco
from libero_gym.rewards import bind_target
from libero_gym.simulation import goals

# Goals of LIBERO have at most so many predicates.
MAX_PREDICATES = 3
N_FEATURES = 14
SIZE = 9 + MAX_PREDICATES * N_FEATURES
# Distances are given in this unit, and the fingers in theirs, so that what matters for a grasp is of order one.
DISTANCE_UNIT, FINGER_UNIT = 0.1, 0.01  # m

Features: TypeAlias = Callable[[mujoco.MjData, np.ndarray], np.ndarray]


class PrivilegedState:
    """A task's privileged observation, float32 (`SIZE`,).

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
        self._features = [_bind(predicate, model) for predicate in goal]

    def __call__(self, data: mujoco.MjData, state: np.ndarray, time_left: float) -> np.ndarray:
        """The observation.

        Args:
            data: The simulator's.
            state: The robot's state as observed, (8,).
            time_left: Share of the episode's control steps that are left.
        """
        observation = np.zeros(SIZE, dtype=np.float32)
        observation[0] = time_left
        observation[1:9] = state / np.array([1.0] * 6 + [FINGER_UNIT] * 2)
        for index, features in enumerate(self._features):
            start = 9 + index * N_FEATURES
            observation[start : start + N_FEATURES] = features(data, state[:3])
        return observation


def _bind(predicate: goals.Predicate, model: mujoco.MjModel) -> Features:
    holds = predicate.bind(model)
    place = _joint_place(predicate, model) if isinstance(predicate, goals.JointThreshold) else _object(predicate, model)

    def features(data: mujoco.MjData, eef_pos: np.ndarray) -> np.ndarray:
        position, to_target, axis = place(data)
        ways = np.concatenate([position - eef_pos, to_target]) / DISTANCE_UNIT
        return np.concatenate([[1.0, float(holds(data))], ways, position, axis])

    return features


Place: TypeAlias = Callable[[mujoco.MjData], tuple[np.ndarray, np.ndarray, np.ndarray]]


def _object(predicate: goals.Predicate, model: mujoco.MjModel) -> Place:
    name = predicate.upper_body if isinstance(predicate, goals.OnObject) else predicate.body  # type: ignore[union-attr]
    body, target = model.body(name).id, bind_target(predicate, model)
    return lambda data: (data.xpos[body], target(data) - data.xpos[body], data.xmat[body].reshape(3, 3)[:, 2])


def _joint_place(predicate: goals.JointThreshold, model: mujoco.MjModel) -> Place:
    joint = model.joint(predicate.joints[0])
    address, body = joint.qposadr[0], joint.bodyid[0]

    def place(data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        missing = predicate.threshold - data.qpos[address]
        return data.xipos[body], np.full(3, missing), data.xmat[body].reshape(3, 3)[:, 2]

    return place
