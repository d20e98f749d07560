"""Policies that tests record; worker processes import this module by its name."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scripted import soup_into_basket

from libero_gym.env import LiberoEnv


def push(env: LiberoEnv) -> Callable[[dict[str, Any]], np.ndarray]:
    """A policy that moves forward."""
    return lambda obs: np.array([0.3, 0, -0.2, 0, 0, 0, 1.0])


def slow_push(env: LiberoEnv) -> Callable[[dict[str, Any]], np.ndarray]:
    def act(obs: dict[str, Any]) -> np.ndarray:
        time.sleep(0.15)
        return np.array([0.3, 0, -0.2, 0, 0, 0, 1.0])

    return act


def dies_once(env: LiberoEnv) -> Callable[[dict[str, Any]], np.ndarray]:
    """Kills its process the first time that it is asked for an action."""
    marker = Path(os.environ["DIES_ONCE"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return push(env)


def dies_always(env: LiberoEnv) -> None:
    """Kills its process."""
    os.kill(os.getpid(), signal.SIGKILL)


class Soup:
    """An object with `act()`, on privileged state."""

    def __init__(self, env: LiberoEnv) -> None:
        self.actions = soup_into_basket(env.simulator)

    def act(self) -> np.ndarray:
        return next(self.actions)


def full_disk(env: LiberoEnv) -> Callable[[dict[str, Any]], np.ndarray]:
    if os.environ.get("FULL_DISK"):
        raise OSError(errno.ENOSPC, "No space left on device")
    return push(env)


class GivesUp:
    """An object that is done after three actions."""

    def __init__(self, env: LiberoEnv) -> None:
        self.done = True

    def reset(self) -> None:
        self.n_actions, self.done = 0, False

    def act(self) -> np.ndarray:
        self.n_actions += 1
        self.done = self.n_actions > 3
        return np.zeros(7)


def two_steps(env: LiberoEnv) -> Callable[[dict[str, Any]], np.ndarray]:
    actions = iter(np.zeros((2, 7)))
    return lambda obs: next(actions)


def broken(env: LiberoEnv) -> Callable[[dict[str, Any]], np.ndarray]:
    return lambda obs: np.zeros(6)


def only_once(env: LiberoEnv) -> Callable[[dict[str, Any]], np.ndarray]:
    """Ends before its first action, but not where an episode begins from initial state 1."""
    return push(env) if env.snapshot()["init_state_id"] == 1 else lambda obs: next(iter(()))
