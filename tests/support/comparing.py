"""What many tests do alike: random actions, and observations compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.utils.env_checker import data_equivalence


def random_actions(n: int, seed: int = 0) -> np.ndarray:
    """Actions as a random policy gives them; every seventh asks for no rotation, which the controller treats apart."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (n, 7))
    actions[::7, 3:6] = 0.0
    return actions


def equal_observations(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return data_equivalence(first, second, exact=True)
