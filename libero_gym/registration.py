"""LIBERO's own suites, registered; runs when Gymnasium loads its plugins, so it imports nothing slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from libero_gym.tasks import SUITES, Task, bddl_instruction, file_name_instruction, register_id, register_suite

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
        from libero_gym.stock import task_files  # imported here because it reads package metadata

        for task_id, (name, bddl_file, init_states) in enumerate(task_files(self.suite)):
            words = bddl_instruction(bddl_file) if self.instruction_from_bddl else file_name_instruction(name)
            yield Task(name, words, bddl_file, init_states, self.suite, task_id)


def register_envs() -> None:
    """Register LIBERO's suites and all ids of the README's table; importing `libero_gym` did it already."""
    for label, name, steps in _BASE_SUITES:
        register_suite(name, StockTasks(name, 10), env_id=f"LIBERO-{label}-v0", max_steps=steps)
    register_id("LIBERO-Long-v0", SUITES["libero_10"])
    register_suite("libero_90", StockTasks("libero_90", 90), env_id="LIBERO-90-v0", max_steps=400)
    for label, name, steps in _BASE_SUITES:
        for variant, suffix, new_words in _PRO_VARIANTS:
            tasks = StockTasks(f"{name}_{suffix}", 10, new_words)
            register_suite(tasks.suite, tasks, env_id=f"LIBERO-{label}-{variant}-v0", max_steps=steps)
