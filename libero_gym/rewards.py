"""Rewards as pure functions and named terms. Success is LIBERO's own; progress is ours, and privileged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import mujoco
import numpy as np

from libero_gym import goals

REWARDS = ("sparse", "progress")
# Discount of the shaping term; equal to the default of PPO, so that shaping leaves the optimal policy unchanged.
SHAPING_GAMMA = 0.99
# Distance at which nearness is about one half, in m.
_NEARNESS_SCALE = 0.1
# Of a predicate's progress: for reaching the object, and for bringing it to its target. The rest is for the predicate.
_REACH_SHARE, _PLACE_SHARE = 0.3, 0.5

Progress: TypeAlias = Callable[[mujoco.MjData, np.ndarray], float]


def nearness(distance: float) -> float:
    """1 at distance 0, falling smoothly to 0: ``1 - tanh(distance / 0.18 m)``, about one half at 10 cm."""
    return float(1.0 - np.tanh(0.5493 * distance / _NEARNESS_SCALE))


def discounted_potential(phi: float, next_phi: float, gamma: float = SHAPING_GAMMA) -> float:
    """Potential-based shaping term, which leaves the optimal policy unchanged.

    Implements F(s, s') = gamma * phi(s') - phi(s) of Ng, Harada and Russell (1999), Theorem 1.

    Args:
        phi: Task progress before the step, in [0, 1].
        next_phi: Task progress after the step, 0 if the episode terminated.
        gamma: Discount factor; must equal the one the agent trains with.

    Returns:
        Shaping reward in [-1, 1].
    """
    return gamma * next_phi - phi


def bind_progress(goal: tuple[goals.Predicate, ...], model: mujoco.MjModel) -> Callable[..., float]:
    """The potential phi of a goal: the mean progress of its predicates, in [0, 1], and 1 only where all hold.

    It reads the simulator's state (object positions, joint positions), which no camera gives: use it to train, never
    to evaluate.

    Returns:
        A function of the ``MjData`` and the end effector's position (3,) in m.
    """
    parts = [_bind_predicate(predicate, model) for predicate in goal]

    def potential(data: mujoco.MjData, eef_pos: np.ndarray) -> float:
        return float(np.mean([part(data, eef_pos) for part in parts]))

    return potential


def _bind_predicate(predicate: goals.Predicate, model: mujoco.MjModel) -> Progress:
    holds = predicate.bind(model)
    if isinstance(predicate, goals.JointThreshold):
        partial = _joint_progress(predicate, model)
    else:
        partial = _placing_progress(predicate, model)
    return lambda data, eef_pos: 1.0 if holds(data) else partial(data, eef_pos)


def _placing_progress(predicate: goals.Predicate, model: mujoco.MjModel) -> Progress:
    """Nearness of hand to object, and of object to target."""
    body_name = predicate.upper_body if isinstance(predicate, goals.OnObject) else predicate.body  # type: ignore[union-attr]
    body = model.body(body_name).id

    target = _bind_target(predicate, model)

    def progress(data: mujoco.MjData, eef_pos: np.ndarray) -> float:
        reach = nearness(float(np.linalg.norm(eef_pos - data.xpos[body])))
        place = nearness(float(np.linalg.norm(target(data) - data.xpos[body])))
        return _REACH_SHARE * reach + _PLACE_SHARE * place

    return progress


def _bind_target(predicate: goals.Predicate, model: mujoco.MjModel) -> Callable[[mujoco.MjData], np.ndarray]:
    """Where the object of a placing predicate should be, (3,) in m."""
    if isinstance(predicate, goals.OnObject):
        lower = model.body(predicate.lower_body).id
        return lambda data: np.asarray(data.xpos[lower])
    if isinstance(predicate, goals.Up):
        body = model.body(predicate.body).id
        return lambda data: np.array([*data.xpos[body][:2], goals.UP_HEIGHT])
    site = model.site(predicate.site).id  # type: ignore[union-attr]
    return lambda data: np.asarray(data.site_xpos[site])


def _joint_progress(predicate: goals.JointThreshold, model: mujoco.MjModel) -> Progress:
    """Nearness of the hand to the joint's body, and the best joint's way to the threshold as a share of its range."""
    joints = [model.joint(name) for name in predicate.joints]
    addresses = np.array([joint.qposadr[0] for joint in joints])
    spans = np.array([max(float(joint.range[1] - joint.range[0]), 1e-6) for joint in joints])
    bodies = np.array([joint.bodyid[0] for joint in joints])
    combine = np.min if predicate.every else np.max

    def progress(data: mujoco.MjData, eef_pos: np.ndarray) -> float:
        missing = (predicate.threshold - data.qpos[addresses]) * (1.0 if predicate.above else -1.0)
        way = float(combine(1.0 - np.clip(missing / spans, 0.0, 1.0)))
        reach = nearness(float(np.min(np.linalg.norm(data.xipos[bodies] - eef_pos, axis=1))))
        return _REACH_SHARE * reach + _PLACE_SHARE * way

    return progress
