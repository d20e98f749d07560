"""The worker processes of a vector environment, as tests that end them need to know them."""

from __future__ import annotations

from typing import Any

from libero_gym.vector.processes import Processes


def worker_pids(env: Any) -> tuple[int, ...]:
    """The process that each environment of a `LiberoVectorEnv` lives in."""
    assert isinstance(env.backend, Processes)
    return env.backend.process_ids
