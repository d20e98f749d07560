"""Gymnasium environments over the LIBERO manipulation benchmark: exact, fast, with language instructions."""

from libero_gym.registration import register_envs
from libero_gym.tasks import SUITES, Suite, Task, get_suite, get_tasks, initial_states

__all__ = ["SUITES", "Suite", "Task", "get_suite", "get_tasks", "initial_states", "register_envs"]

register_envs()
