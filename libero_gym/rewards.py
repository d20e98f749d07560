"""Rewards as pure functions and named terms. Success is LIBERO's own; progress is ours, and privileged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from libero_gym.mujoco_import import mujoco
from libero_gym.simulation import goals

# Names of the terms by reward. The reward is the sum of all but the score, which is there to be watched.
TERMS = {"sparse": ("success",), "progress": ("success", "progress"), "process": ("success", "process", "score")}
SCORE = "score"
# Where packages offer to load reward models by name, as entry points: a function from a folder to a scorer.
SCORER_ENTRY_POINTS = "libero_gym.reward_models"
# Discount of the shaping term; equal to the default of PPO, so that shaping leaves the optimal policy unchanged.
SHAPING_GAMMA = 0.99
# Distance at which nearness is about one half, in m.
_NEARNESS_SCALE = 0.1
# Of a predicate's progress: for reaching the object, and for bringing it to its target. The rest is for the predicate.
_REACH_SHARE, _PLACE_SHARE = 0.3, 0.5

# Of the data and the hand's position: nearness of hand and of object, each in [0, 1]; and a predicate's three parts.
Closeness: TypeAlias = Callable[[mujoco.MjData, np.ndarray], tuple[float, float]]
Parts: TypeAlias = Callable[[mujoco.MjData, np.ndarray], tuple[float, float, float]]


class Scorer(Protocol):
    """Says from a frame how much of an instruction is done."""

    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """Scores in [0, 1], (n,), of images uint8 (n, H, W, 3) under n instructions."""


def find_scorer(model: Scorer | str | Path | None) -> Scorer:
    """The scorer itself, or the one that an installed package has by that name.

    Raises:
        ValueError: If there is none.
    """
    if model is None:
        raise ValueError("reward='process' needs reward_model: a scorer's folder or name, or an object with score().")
    if not isinstance(model, (str, Path)):
        if not callable(getattr(model, "score", None)):
            raise ValueError(f"reward_model is a {type(model).__name__}; expected score(images, instructions).")
        return model
    loaders = entry_points(group=SCORER_ENTRY_POINTS)
    if not loaders:
        raise ValueError(f"No installed package loads reward models by name, such as {model!r}; give an object.")
    return next(iter(loaders)).load()(model)


def score_frame(scorer: Scorer, frame: np.ndarray, instruction: str) -> float:
    """A scorer's opinion of one frame, uint8 (H, W, 3).

    Raises:
        ValueError: If it is no number in [0, 1].
    """
    scores = np.asarray(scorer.score(frame[None], [instruction]))
    if scores.shape != (1,):
        raise ValueError(f"{type(scorer).__name__}.score gave shape {scores.shape} for one frame; expected (1,).")
    (score,) = scores
    if not 0 <= score <= 1:
        raise ValueError(f"{type(scorer).__name__}.score gave {score} for '{instruction}'; expected a score in [0, 1].")
    return float(score)


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


class TaskProgress:
    """How far a goal is, as a potential phi in [0, 1] and the named terms that it is the sum of.

    A goal of n predicates gives each of them a share of 1/n, split into three terms: ``reach`` (30 %), the hand's
    nearness to the object or joint; ``place`` (50 %), the object's nearness to its target or the joint's way to its
    threshold; and ``hold`` (20 %), whether the predicate holds, which also fills the other two. So phi is 1 where all
    predicates hold, and at most 0.8 of a predicate's share is paid for being close.

    It is privileged: it reads the simulator's state (positions of objects and joints), which no camera gives. Use it
    to train, never to act or to evaluate.

    Args:
        goal: The goal's predicates.
        model: The model to resolve their names in.
    """

    def __init__(self, goal: tuple[goals.Predicate, ...], model: mujoco.MjModel) -> None:
        self.names = tuple(f"{_label(predicate)}/{part}" for predicate in goal for part in ("reach", "place", "hold"))
        self._predicates = [_bind_predicate(predicate, model) for predicate in goal]

    def __call__(self, data: mujoco.MjData, eef_pos: np.ndarray) -> float:
        """The potential phi in [0, 1] with the end effector at that position, (3,) in m."""
        return float(np.mean([sum(parts(data, eef_pos)) for parts in self._predicates]))

    def terms(self, data: mujoco.MjData, eef_pos: np.ndarray) -> dict[str, float]:
        """The terms of phi by name, such as ``on(akita_black_bowl_1, plate_1)/place``; their sum is phi."""
        shares = [share / len(self._predicates) for parts in self._predicates for share in parts(data, eef_pos)]
        return dict(zip(self.names, shares, strict=True))


def bind_progress(goal: tuple[goals.Predicate, ...], model: mujoco.MjModel) -> TaskProgress:
    """The potential phi of a goal, a function of the ``MjData`` and the end effector's position; privileged."""
    return TaskProgress(goal, model)


def _label(predicate: goals.Predicate) -> str:
    """A predicate in words, such as ``in(alphabet_soup_1, basket_1_contain_region)``."""
    if isinstance(predicate, goals.OnObject):
        return f"on({_object(predicate.upper_body)}, {_object(predicate.lower_body)})"
    if isinstance(predicate, goals.OnSite):
        return f"on({_object(predicate.body)}, {predicate.site})"
    if isinstance(predicate, goals.InSite):
        return f"in({_object(predicate.body)}, {predicate.site})"
    if isinstance(predicate, goals.Up):
        return f"up({_object(predicate.body)})"
    return f"{'above' if predicate.above else 'below'}({', '.join(predicate.joints)}, {predicate.threshold:g})"


def _object(root_body: str) -> str:
    return root_body.removesuffix("_main")


def _bind_predicate(predicate: goals.Predicate, model: mujoco.MjModel) -> Parts:
    """A predicate's three parts of at most 0.3, 0.5 and 0.2; all in full where it holds."""
    holds = predicate.bind(model)
    if isinstance(predicate, goals.JointThreshold):
        closeness = _joint_closeness(predicate, model)
    else:
        closeness = _placing_closeness(predicate, model)

    def parts(data: mujoco.MjData, eef_pos: np.ndarray) -> tuple[float, float, float]:
        if holds(data):
            return _REACH_SHARE, _PLACE_SHARE, 1.0 - _REACH_SHARE - _PLACE_SHARE
        reach, place = closeness(data, eef_pos)
        return _REACH_SHARE * reach, _PLACE_SHARE * place, 0.0

    return parts


def _placing_closeness(predicate: goals.Predicate, model: mujoco.MjModel) -> Closeness:
    """Nearness of hand to object, and of object to target."""
    body_name = predicate.upper_body if isinstance(predicate, goals.OnObject) else predicate.body  # type: ignore[union-attr]
    body = model.body(body_name).id

    target = bind_target(predicate, model)

    def closeness(data: mujoco.MjData, eef_pos: np.ndarray) -> tuple[float, float]:
        reach = nearness(float(np.linalg.norm(eef_pos - data.xpos[body])))
        return reach, nearness(float(np.linalg.norm(target(data) - data.xpos[body])))

    return closeness


def bind_target(predicate: goals.Predicate, model: mujoco.MjModel) -> Callable[[mujoco.MjData], np.ndarray]:
    """Where the object of a placing predicate should be, (3,) in m."""
    if isinstance(predicate, goals.OnObject):
        lower = model.body(predicate.lower_body).id
        return lambda data: np.asarray(data.xpos[lower])
    if isinstance(predicate, goals.Up):
        body = model.body(predicate.body).id
        return lambda data: np.array([*data.xpos[body][:2], goals.UP_HEIGHT])
    site = model.site(predicate.site).id  # type: ignore[union-attr]
    return lambda data: np.asarray(data.site_xpos[site])


def _joint_closeness(predicate: goals.JointThreshold, model: mujoco.MjModel) -> Closeness:
    """Nearness of the hand to the joint's body, and the best joint's way to the threshold as a share of its range."""
    joints = [model.joint(name) for name in predicate.joints]
    addresses = np.array([joint.qposadr[0] for joint in joints])
    spans = np.array([max(float(joint.range[1] - joint.range[0]), 1e-6) for joint in joints])
    bodies = np.array([joint.bodyid[0] for joint in joints])
    combine = np.min if predicate.every else np.max

    def closeness(data: mujoco.MjData, eef_pos: np.ndarray) -> tuple[float, float]:
        missing = (predicate.threshold - data.qpos[addresses]) * (1.0 if predicate.above else -1.0)
        way = float(combine(1.0 - np.clip(missing / spans, 0.0, 1.0)))
        return nearness(float(np.min(np.linalg.norm(data.xipos[bodies] - eef_pos, axis=1)))), way

    return closeness
