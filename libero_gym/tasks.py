"""Tasks and suites as values: what a world is made of, what the robot is told, where episodes start.

A task says all of that itself, so it can be sent to another process that has never heard of its suite. LIBERO's own
suites are registered by `libero_gym.registration`; `register_suite` adds others.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from libero_gym.bddl import read_instruction
from libero_gym.common.checks import as_path, did_you_mean, whole_number
from libero_gym.common.initial_states import NO_STATES, checked_states, read_states

_ENV = "libero_gym.env:LiberoEnv"
_VECTOR_ENV = "libero_gym.vector:LiberoVectorEnv"
# Placement seeds that resets draw from if a task has no initial states and the environment names no seeds: as many as
# LIBERO ships initial states, and what `compilation.placements` draws in one go.
PLACEMENT_SEEDS = tuple(range(50))
FILES_MAX_STEPS = 600  # of an episode of a BDDL file's task if nothing else is said: 30 s


@dataclass(frozen=True, eq=False)
class Task:
    """One task. It can be pickled and compared; equal tasks simulate alike.

    Attributes:
        name: Name of the task; LIBERO's is its file name.
        instruction: What the robot is told.
        bddl_file: The task's definition: its scene, objects, regions and goal.
        init_states: Official initial states, as an array (n_states, 1 + nq + nv) of time, qpos, qvel, or as a file: an
            NPZ with that array under ``states``, or an NPY. None if there are none: resets then draw placements.
        suite: Name of the suite that the task belongs to; `register_suite` fills it in.
        task_id: Index in that suite; `register_suite` fills it in.
        max_steps: Control steps that an episode may take; None takes the suite's. A task of a suite has a number.
        source: Name of the suite that the task was in first. It is kept when the task is put into another suite, so
            that a mixed suite can be reported by its sources, and says whose official initial states these are: give
            "" to a task whose initial states you replace.

    Raises:
        TypeError: If a path is neither text nor a path, or a text is none.
        ValueError: If the initial states are no array of such a shape, or not finite; if ``max_steps`` is below 1.
    """

    name: str
    instruction: str
    bddl_file: Path
    init_states: Path | np.ndarray | None = None
    suite: str = ""
    task_id: int = 0
    max_steps: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "instruction"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}={getattr(self, name)!r:.80}; expected a str.")
        if self.max_steps is not None:
            object.__setattr__(self, "max_steps", whole_number("max_steps", self.max_steps, minimum=1))
        # A worker process may stand in another folder.
        object.__setattr__(self, "bddl_file", as_path("bddl_file", self.bddl_file).absolute())
        if isinstance(self.init_states, (str, Path)):
            object.__setattr__(self, "init_states", Path(self.init_states).absolute())
        elif self.init_states is not None:
            object.__setattr__(self, "init_states", checked_states(self.init_states, f"init_states of {self.name!r}"))

    @classmethod
    def from_bddl(
        cls,
        bddl_file: str | Path,
        init_states: str | Path | np.ndarray | None = None,
        instruction: str | None = None,
    ) -> Task:
        """The task of a BDDL file, by that file's name.

        Args:
            bddl_file: The task's definition.
            init_states: As the attribute.
            instruction: What the robot is told; None for what the file says.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it states no instruction, or is too large.
        """
        path = as_path("bddl_file", bddl_file)
        words = bddl_instruction(path) if instruction is None else instruction
        return cls(path.stem, words, path, init_states)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        states = self.init_states
        content = (states.shape, states.tobytes()) if isinstance(states, np.ndarray) else states
        where = self.suite, self.task_id, self.max_steps, self.source
        return *where, self.name, self.instruction, self.bddl_file, content


@dataclass(frozen=True, init=False)
class Suite:
    """Tasks under one name and one Gymnasium id. `LiberoEnv` takes it as it is; `register_suite` also makes it known.

    Attributes:
        name: Name of the suite; LIBERO's own are such as ``libero_spatial``.
        env_id: Gymnasium id, such as ``LIBERO-Spatial-v0``.
        max_steps: Control steps that an episode may take, of the longest task if they differ. Where a number is given,
            each task gets it; None leaves each task its own.
        tasks: The tasks, whose order gives them their ``task_id``. A hashable sequence of another type than list and
            tuple is kept as it is: it can load its tasks at first use, and gives them their ``suite`` and ``task_id``
            itself. If their ``max_steps`` differ, it has ``limits_differ = True``. See `get_tasks`.

    Raises:
        TypeError: If a name is no text, or the tasks are no `Task`.
        ValueError: If there is no task, a file is missing, or ``max_steps`` is less than 1 or nowhere given.
    """

    name: str
    env_id: str
    max_steps: int
    tasks: Sequence[Task]

    def __init__(self, name: str, env_id: str, max_steps: int | None, tasks: Sequence[Task]) -> None:
        for label, value in (("suite", name), ("env_id", env_id)):
            if not isinstance(value, str) or not value:
                raise TypeError(f"{label}={value!r}; expected a name.")
        if max_steps is not None or not isinstance(tasks, (list, tuple)):
            max_steps = whole_number("max_steps", max_steps, minimum=1)
        if isinstance(tasks, (list, tuple)):
            tasks = tuple(_placed(task, name, task_id, max_steps) for task_id, task in enumerate(tasks))
            max_steps = max((task.max_steps or 0 for task in tasks), default=max_steps)
        if not isinstance(tasks, Sequence) or isinstance(tasks, str):
            raise TypeError(f"tasks={tasks!r:.80}; expected a list of Task.")
        if not len(tasks):
            raise ValueError(f"Suite {name!r} has no tasks; give at least one.")
        for attribute, given in {"name": name, "env_id": env_id, "max_steps": max_steps, "tasks": tasks}.items():
            object.__setattr__(self, attribute, given)

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return len(self.tasks)

    @property
    def time_limit(self) -> int | None:
        """What Gymnasium's ``TimeLimit`` counts up to; None if tasks' limits differ, which environments count."""
        if isinstance(self.tasks, tuple):
            return self.max_steps if {task.max_steps for task in self.tasks} == {self.max_steps} else None
        return None if getattr(self.tasks, "limits_differ", False) else self.max_steps

    def loaded(self) -> Suite:
        """The suite with its tasks in hand, so another process needs neither LIBERO nor the sequence's class for it."""
        return self if isinstance(self.tasks, tuple) else Suite(self.name, self.env_id, None, get_tasks(self))


_registered: dict[str, Suite] = {}
_from_files: dict[str, Path] = {}  # what the suites of `register_files` were made of
# The registered suites by name. To add one, call `register_suite`.
SUITES: Mapping[str, Suite] = MappingProxyType(_registered)


def register_suite(
    suite: str, tasks: Sequence[Task] | str | Path, *, env_id: str | None = None, max_steps: int | None = None
) -> Suite:
    """Make tasks known as a suite, and to Gymnasium under an id; doing the same again changes nothing.

    `gym.make`, `gym.make_vec`, and whatever takes the name of a suite or an id then take these. The registration holds
    for this process; worker processes get the tasks themselves.

    Args:
        suite: Name of the suite.
        tasks: Its tasks; see `Suite`. They may come from other suites, by `get_tasks`. Or a folder, whose BDDL files
            are the tasks; see `tasks_of_folder`.
        env_id: Gymnasium id, such as ``MyTasks-v0``; None makes one of the suite's name.
        max_steps: Control steps that an episode may take; None leaves each task its own, such as that of the suite
            which it comes from.

    Returns:
        The suite as it is registered.

    Raises:
        TypeError: If a name is no text, or the tasks are no `Task`.
        ValueError: If there is no task, a file is missing, ``max_steps`` is less than 1 or nowhere given, or the name
            or the id is taken by something else.
        gymnasium.error.Error: If the id is not of Gymnasium's form.
    """
    if isinstance(tasks, (str, Path)):
        tasks = tasks_of_folder(tasks)
    made = Suite(suite, f"{suite}-v0" if env_id is None else env_id, max_steps, tasks)
    _check_name(made)
    register_id(made.env_id, made)
    return add_suite(made)


def tasks_of_folder(folder: str | Path) -> list[Task]:
    """The tasks of a folder's BDDL files, in the order of their names.

    ``a_task.bddl`` has the initial states of ``a_task.npz``, ``a_task.npy`` or ``a_task.pruned_init.npz`` beside it, if
    there is one.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If the folder has no BDDL file, or one states no instruction.
    """
    path = as_path("folder", folder)
    files = sorted(path.glob("*.bddl"))
    if not files:
        raise ValueError(f"{str(path)!r} has no BDDL file; expected a folder of tasks' definitions.")
    return [task_of_file(file) for file in files]


def task_of_file(file: Path) -> Task:
    """The task of a BDDL file, with the initial states beside it as `tasks_of_folder` finds them."""
    beside = (file.with_suffix(suffix) for suffix in (".npz", ".npy", ".pruned_init.npz"))
    return Task.from_bddl(file, next(filter(Path.is_file, beside), None))


def names_files(text: str) -> bool:
    """Whether a text that is no name of a suite and no id stands for a BDDL file, or for a folder of such."""
    is_path = text.endswith((".bddl", "/")) or text.startswith((".", "/", "~"))
    return is_path or (bool(text) and Path(text).is_dir())  # no text is the current folder to `Path`


def register_files(path: str | Path) -> Suite:
    """Register the suite of a BDDL file, or of a folder's; what it is named after them, ``-v0`` makes an id of.

    Once more, for the same path, it is the suite of what the file or the folder holds now.

    Args:
        path: The file or folder; initial states are found beside as by `tasks_of_folder`. An episode may take
            `FILES_MAX_STEPS` control steps.

    Returns:
        The suite, under the name of the file or folder; ``_files`` follows if another suite has that name.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If there is no BDDL file, one states no instruction, or two other suites have those names.
    """
    found = _place(path)
    tasks = [task_of_file(found)] if found.suffix == ".bddl" else tasks_of_folder(found)
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", found.stem)  # as ids may be
    mine = Suite(name, f"{name}-v0", FILES_MAX_STEPS, tasks)
    if SUITES.get(name, mine) != mine and _from_files.get(name) != found:
        name = f"{name}_files"
    if _from_files.get(name) == found:  # made anew, for its files may have changed; the id finds it by its name
        _registered.pop(name, None)
    made = register_suite(name, tasks, max_steps=FILES_MAX_STEPS)
    _from_files[name] = found
    return made


def _place(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def add_suite(suite: Suite) -> Suite:
    """Make a suite known by its name, without an id for Gymnasium.

    Raises:
        ValueError: If another suite has that name.
    """
    _check_name(suite)
    _registered[suite.name] = suite
    return suite


def register_id(env_id: str, suite: Suite, *, keep_other: bool = False) -> None:
    """Register an id for a suite with Gymnasium; nothing happens without Gymnasium.

    Args:
        env_id: The id.
        suite: The suite.
        keep_other: Whether an id that is taken by something else is left as it is, without an error.

    Raises:
        ValueError: If the id is taken by something else.
        gymnasium.error.Error: If it is not of Gymnasium's form.
    """
    if find_spec("gymnasium") is None:  # a machine that runs models alone need not have it
        return
    from gymnasium.envs.registration import register, registry  # complete even while gymnasium itself is loading

    # Workers of Gymnasium's own vector environments make theirs from the id's arguments, so a name it is.
    kwargs = {"suite": suite.name}
    if env_id in registry:
        other = registry[env_id].kwargs != kwargs or registry[env_id].max_episode_steps != suite.time_limit
        if other and not keep_other:
            raise ValueError(f"The id {env_id!r} is taken, by {registry[env_id].entry_point}; choose another env_id.")
        return
    register(
        id=env_id,
        entry_point=_ENV,
        vector_entry_point=_VECTOR_ENV,
        max_episode_steps=suite.time_limit,
        kwargs=kwargs,
        # Gymnasium's checker forgets the first reset where that raised: every later step then fails with its own error.
        disable_env_checker=True,
    )


def get_suite(suite: str | Suite) -> Suite:
    """The suite of that name; a `Suite` itself is returned as it is.

    Args:
        suite: Name of a registered suite, such as ``libero_spatial``, or its id, such as ``LIBERO-Spatial-v0``; or a
            BDDL file or a folder of such, which is then registered (`register_files`).

    Raises:
        OSError: If a BDDL file cannot be read.
        ValueError: If there is none; the message offers the nearest name.
    """
    if isinstance(suite, Suite):
        return suite
    named = isinstance(suite, str) and (suite not in SUITES or _from_files.get(suite) == _place(suite))
    if named and names_files(suite):
        return register_files(suite)
    if isinstance(suite, str) and suite in SUITES:
        return SUITES[suite]
    by_id = next((found for found in SUITES.values() if found.env_id == suite), None)
    if by_id is None:
        raise ValueError(f"Unknown suite {suite!r}.{did_you_mean(str(suite), SUITES)} Suites: {', '.join(SUITES)}.")
    return by_id


def _once(function: Callable[[str | Suite], tuple[Task, ...]]) -> functools._lru_cache_wrapper[tuple[Task, ...]]:
    """The function with a memory by suites, and not by their names: what a folder's name stands for can change."""
    remembered = functools.cache(function)

    @functools.wraps(function)
    def look(suite: str | Suite) -> tuple[Task, ...]:
        return remembered(get_suite(suite))

    look.cache_clear = remembered.cache_clear  # type: ignore[attr-defined]
    return look  # type: ignore[return-value]


@_once
def get_tasks(suite: str | Suite) -> tuple[Task, ...]:
    """All tasks of a suite, in benchmark order; each has its ``max_steps`` and ``source``."""
    found = get_suite(suite)
    return tuple(
        replace(task, max_steps=task.max_steps or found.max_steps, source=task.source or found.name)
        for task in found.tasks
    )


def initial_states(task: Task) -> np.ndarray:
    """Official initial states of a task, float64 of shape (n_states, 1 + nq + nv): time, qpos, qvel. Read-only.

    The shape is (0, 0) if the task has none.

    Raises:
        OSError: If their file cannot be read.
        ValueError: If their file holds something else.
    """
    if task.init_states is None:
        return NO_STATES
    if isinstance(task.init_states, Path):
        return read_states(task.init_states)
    states = task.init_states.view()
    states.setflags(write=False)  # pickling and copying forget that
    return states


def placement_seeds_of(task: Task, chosen: Sequence[int]) -> tuple[int, ...]:
    """Placement seeds that resets draw from: the chosen ones; `PLACEMENT_SEEDS` if a task has nothing else."""
    return tuple(chosen) or (() if task.init_states is not None else PLACEMENT_SEEDS)


def file_name_instruction(task_name: str) -> str:
    """Instruction as the benchmark reads it from a file name; LIBERO-100 names start with the scene in capitals."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task_name).replace("_", " ")


def bddl_instruction(bddl_file: Path) -> str:
    """Instruction that a BDDL file states.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it states none, or is too large.
    """
    return read_instruction(bddl_file)


def _check_name(suite: Suite) -> None:
    known = _registered.get(suite.name, suite)
    if known != suite:
        raise ValueError(
            f"Suite {suite.name!r} is registered already, as {known.env_id} and with other tasks or another max_steps; "
            "choose another name."
        )


def _placed(task: Any, suite: str, task_id: int, max_steps: int | None) -> Task:
    """The task as that suite has it, its files found; ``max_steps`` replaces its own."""
    if not isinstance(task, Task):
        raise TypeError(f"Task {task_id} of {suite!r} is a {type(task).__name__}; expected a libero_gym.Task.")
    for path in (task.bddl_file, task.init_states):
        if isinstance(path, Path) and not path.is_file():
            raise ValueError(f"Task {task_id} of {suite!r}, {task.name!r}, needs {path}, which is no file.")
    if max_steps is None and task.max_steps is None:
        raise ValueError(
            f"Task {task_id} of {suite!r}, {task.name!r}, has no max_steps; give one to it or to the suite."
        )
    source = task.source or task.suite or suite
    return replace(task, suite=suite, task_id=task_id, max_steps=max_steps or task.max_steps, source=source)
