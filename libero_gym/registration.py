"""LIBERO's own suites, registered; runs when Gymnasium loads its plugins, so it imports nothing slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from libero_gym.custom import ENV_ID as CUSTOM_ID
from libero_gym.tasks import (
    FILES_MAX_STEPS,
    SUITES,
    Suite,
    Task,
    add_suite,
    bddl_instruction,
    file_name_instruction,
    get_tasks,
    register_id,
)

# Episode limits of the OpenVLA evaluation protocol (experiments/robot/libero/run_libero_eval.py in openvla/openvla):
# the longest demonstration, rounded up.
_BASE_SUITES = (
    ("Spatial", "libero_spatial", 220),
    ("Object", "libero_object", 280),
    ("Goal", "libero_goal", 300),
    ("10", "libero_10", 520),
)
# LIBERO-PRO: the variant in the id, its suffix in the suite's name, and whether it changes the words.
_PRO_VARIANTS = (
    ("Language", "lan", True),
    ("Object", "object", False),
    ("Swap", "swap", False),
    ("Task", "task", True),
)


@dataclass(frozen=True)
class StockTasks(Sequence[Task]):
    """The tasks of one of LIBERO's suites, looked up when they are needed: that imports a part of LIBERO.

    Attributes:
        suite: LIBERO's name of the suite.
        n_tasks: Number of its tasks.
        instruction_from_bddl: Where the instruction stands. The evaluation protocol reads the standard suites'
            instructions from the file names; the PRO variants that change the words state them in the BDDL file only.
    """

    suite: str
    n_tasks: int
    instruction_from_bddl: bool = False

    def __len__(self) -> int:
        return self.n_tasks

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[Task]:
        from libero_gym.benchmark import task_files  # imported here because it reads package metadata

        for task_id, (name, bddl_file, init_states) in enumerate(task_files(self.suite)):
            words = bddl_instruction(bddl_file) if self.instruction_from_bddl else file_name_instruction(name)
            yield Task(name, words, bddl_file, init_states, self.suite, task_id)


@dataclass(frozen=True)
class JoinedTasks(Sequence[Task]):
    """The tasks of several registered suites, one suite after the other, each with its own limit of steps.

    Attributes:
        suite: Name of the suite that they become.
        parts: Names of the suites.
    """

    suite: str
    parts: tuple[str, ...]

    @property
    def limits_differ(self) -> bool:
        """Whether episodes of some tasks may take longer than those of others."""
        return len({SUITES[part].max_steps for part in self.parts}) > 1

    def __len__(self) -> int:
        return sum(SUITES[part].n_tasks for part in self.parts)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[Task]:
        tasks = [task for part in self.parts for task in get_tasks(part)]
        for task_id, task in enumerate(tasks):
            yield replace(task, suite=self.suite, task_id=task_id)


def register_envs() -> None:
    """Register LIBERO's suites and all ids of the README's table; importing `libero_gym` did it already.

    An id that somebody has registered otherwise, for instance with another limit of steps, stays theirs.
    """
    for label, name, steps in _BASE_SUITES:
        _register(label, name, steps, 10)
    register_id("LIBERO-Long-v0", SUITES["libero_10"], keep_other=True)
    _register("90", "libero_90", 400, 90)
    parts = tuple(name for _, name, _ in _BASE_SUITES)
    longest = max(steps for _, _, steps in _BASE_SUITES)
    forty = add_suite(Suite("libero_40", "LIBERO-40-v0", longest, JoinedTasks("libero_40", parts)))
    register_id(forty.env_id, forty, keep_other=True)
    for label, name, steps in _BASE_SUITES:
        for variant, suffix, new_words in _PRO_VARIANTS:
            _register(f"{label}-{variant}", f"{name}_{suffix}", steps, 10, new_words)
    register_custom()


def register_custom() -> None:
    """Register ``LIBERO-v0``; nothing happens without Gymnasium, or where somebody has that id."""
    if find_spec("gymnasium") is None:
        return
    from gymnasium.envs.registration import register, registry

    if CUSTOM_ID not in registry:
        register(
            id=CUSTOM_ID,
            entry_point="libero_gym.custom:make_env",
            vector_entry_point="libero_gym.custom:make_vector_env",
            max_episode_steps=FILES_MAX_STEPS,
            disable_env_checker=True,
        )


def _register(label: str, name: str, max_steps: int, n_tasks: int, instruction_from_bddl: bool = False) -> None:
    suite = Suite(name, f"LIBERO-{label}-v0", max_steps, StockTasks(name, n_tasks, instruction_from_bddl))
    register_id(add_suite(suite).env_id, suite, keep_other=True)
