"""Shared fixtures: tasks are compiled once per test run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from libero_gym.env import LiberoEnv
from libero_gym.tasks import Task, get_tasks


@pytest.fixture(scope="session")
def spatial_task() -> Task:
    return get_tasks("libero_spatial")[0]


@pytest.fixture
def state_env() -> Iterator[LiberoEnv]:
    """LIBERO-Spatial task 0 without cameras."""
    env = LiberoEnv("libero_spatial", task_id=0, cameras=())
    yield env
    env.close()


def random_actions(n: int, seed: int = 0) -> np.ndarray:
    """Actions as a random policy gives them; every seventh asks for no rotation, which the controller treats apart."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (n, 7))
    actions[::7, 3:6] = 0.0
    return actions


def equal_observations(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return gym.utils.env_checker.data_equivalence(first, second, exact=True)
