"""Gymnasium environments over the LIBERO manipulation benchmark: exact, fast, with language instructions."""

from typing import Any

from libero_gym.common.opencv import undo_failed_imports
from libero_gym.registration import register_envs
from libero_gym.stock_api import install_stock_api, uninstall_stock_api
from libero_gym.tasks import SUITES, Suite, Task, get_suite, get_tasks, initial_states, register_suite

__all__ = [
    "SUITES",
    "Suite",
    "Task",
    "get_suite",
    "get_tasks",
    "initial_states",
    "install_stock_api",
    "register_envs",
    "register_suite",
    "uninstall_stock_api",
]


def __getattr__(name: str) -> Any:
    """``__version__``, looked up at its first use."""
    if name == "__version__":
        from libero_gym.common.version import version

        return version()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


register_envs()
undo_failed_imports()
