"""A scripted pick and place on privileged state: the shortest way to an episode that ends in success."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from libero_gym.simulation.simulator import Simulator

# An action of 1 moves the hand's goal by 5 cm.
ACTION_METRES = 0.05
OPEN, CLOSED = -1.0, 1.0


def soup_into_basket(simulator: Simulator) -> Iterator[np.ndarray]:
    """Actions (7,) that solve LIBERO-Object task 0, chosen one by one from where hand, can and basket are."""
    data = simulator.data
    can, basket = data.body("alphabet_soup_1_main").xpos, data.site("basket_1_contain_region").xpos
    yield from _move(simulator, can + [0, 0, 0.12], OPEN)
    yield from _move(simulator, can, OPEN)
    yield from _stay(12, CLOSED)
    yield from _move(simulator, can + [0, 0, 0.25], CLOSED)
    yield from _move(simulator, basket + [0, 0, 0.25], CLOSED)
    yield from _move(simulator, basket + [0, 0, 0.14], CLOSED)
    yield from _stay(20, OPEN)


def _move(simulator: Simulator, target: np.ndarray, gripper: float, max_steps: int = 60) -> Iterator[np.ndarray]:
    """Move the hand straight to a point in m, until 8 mm from it."""
    target = np.array(target)
    for _ in range(max_steps):
        error = target - simulator.eef_pos()
        if np.linalg.norm(error) < 0.008:
            return
        yield np.array([*np.clip(error / ACTION_METRES, -1, 1), 0, 0, 0, gripper])


def _stay(n: int, gripper: float) -> Iterator[np.ndarray]:
    for _ in range(n):
        yield np.array([0, 0, 0, 0, 0, 0, gripper])
