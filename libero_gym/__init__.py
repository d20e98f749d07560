"""Gymnasium environments over the LIBERO manipulation benchmark: exact, fast, with language instructions."""

from importlib.util import find_spec
from typing import Any

from libero_gym.tasks import SUITES, Suite, Task, get_suite, get_tasks, initial_states

__all__ = ["SUITES", "Suite", "Task", "get_suite", "get_tasks", "initial_states", "register_envs"]


def register_envs() -> None:
    """Register all ids with Gymnasium; importing this package did it already."""
    from libero_gym.registration import register_envs as register

    register()


def __getattr__(name: str) -> Any:
    """``__version__``, looked up at its first use."""
    if name == "__version__":
        from libero_gym.version import version

        return version()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


if find_spec("gymnasium") is not None:  # a machine that runs models alone need not have it
    register_envs()
