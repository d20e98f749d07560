"""Rewards as functions of arrays and as named terms. Success is LIBERO's own; progress is ours, and privileged."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.dimensions import SHAPING_GAMMA
from libero_gym.simulation import goals
from libero_gym.simulation.arrays import StateArrays

# Names of the terms by reward. The reward is the sum of all but the score, which only informs.
TERMS = {"sparse": ("success",), "progress": ("success", "progress"), "process": ("success", "process", "score")}
SCORE = "score"
# Nearness is ``1 - tanh(half * distance / scale)``, with the distance at which it is about one half, in m.
NEARNESS_HALF, NEARNESS_SCALE = 0.5493, 0.1
# Shares of a predicate's progress: the hand reaches the object, the object comes to its target, the predicate holds.
SHARES = (0.3, 0.5, 1.0 - 0.3 - 0.5)
_PARTS = ("reach", "place", "hold")

# One number, or one per environment.
_Values = TypeVar("_Values", float, np.ndarray)


def nearness(distance: _Values) -> _Values:
    """1 at distance 0, falling smoothly to 0: ``1 - tanh(distance / 0.18 m)``, about one half at 10 cm."""
    return 1.0 - np.tanh(NEARNESS_HALF * distance / NEARNESS_SCALE)


def discounted_potential(phi: _Values, next_phi: _Values, gamma: float = SHAPING_GAMMA) -> _Values:
    """Potential-based shaping term, which leaves the optimal policy unchanged.

    Implements F(s, s') = gamma * phi(s') - phi(s) of Ng, Harada and Russell (1999), Theorem 1.

    Args:
        phi: Task progress before the step, in [0, 1]; a number, or one per environment.
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
        self.names = tuple(f"{predicate.label}/{part}" for predicate in goal for part in _PARTS)
        self._predicates = [(predicate.bind(model), predicate.bind_relation(model)) for predicate in goal]

    def __call__(self, state: StateArrays, eef_pos: np.ndarray) -> np.ndarray:
        """The potential phi in [0, 1] of n environments, (n,).

        Args:
            state: The environments' state.
            eef_pos: Positions of their end effectors in m, (n, 3).
        """
        return self.potential(self.shares(state, eef_pos))

    def shares(self, state: StateArrays, eef_pos: np.ndarray) -> np.ndarray:
        """Each predicate's reach, place and hold, at most 0.3, 0.5 and 0.2; all in full where it holds.

        Args:
            state: The environments' state.
            eef_pos: Positions of their end effectors in m, (n, 3).

        Returns:
            Shares of shape (n, number of predicates, 3), for `potential` and `terms`.
        """
        shares = np.zeros((len(eef_pos), len(self._predicates), len(_PARTS)))
        for index, (holds, relate) in enumerate(self._predicates):
            relation = relate(state)
            to_hand = np.minimum.reduce(goals.length(relation.points - eef_pos[:, None]), axis=-1, initial=np.inf)
            done = nearness(goals.length(relation.to_target)) if relation.done is None else relation.done
            shares[:, index, 0] = SHARES[0] * nearness(to_hand)
            shares[:, index, 1] = SHARES[1] * done
            shares[holds(state), index] = SHARES
        return shares

    def potential(self, shares: np.ndarray) -> np.ndarray:
        """The potential phi in [0, 1], (n,), of what `shares` gave."""
        return np.asarray(np.add.reduce(np.add.reduce(shares, axis=-1), axis=-1) / len(self._predicates))

    def terms(self, shares: np.ndarray) -> dict[str, np.ndarray]:
        """The terms of phi by name, such as ``on(akita_black_bowl_1, plate_1)/place``, (n,) each; their sum is phi."""
        return dict(zip(self.names, shares.reshape(len(shares), -1).T / len(self._predicates), strict=True))
