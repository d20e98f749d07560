"""What agents and evaluations need to know of the registered suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
from tqdm import tqdm

from libero_gym.common.checks import did_you_mean
from vla_agent.common.hashes import fingerprint


class SuiteDescription(NamedTuple):
    """What an evaluation has to know of a suite.

    Attributes:
        name: LIBERO's own name, such as ``libero_spatial``.
        max_steps: Control steps that the evaluation protocol allows an episode, of the longest task.
        task_names: LIBERO's names of the tasks, in benchmark order.
        instructions: The tasks' instructions, in the same order.
        step_limits: Control steps that each task's episodes may take, in the same order.
        sources: Name of the suite that each task comes from, in the same order; its own unless it joins several.
    """

    name: str
    max_steps: int
    task_names: tuple[str, ...]
    instructions: tuple[str, ...]
    step_limits: tuple[int, ...]
    sources: tuple[str, ...]

    def n_initial_states(self, task_id: int) -> int:
        """Number of official initial states of a task."""
        from libero_gym.tasks import get_tasks, initial_states

        return len(initial_states(get_tasks(self.name)[task_id]))

    def fingerprint(self, task_ids: Sequence[int]) -> str:
        """Short hash of some tasks' definitions and official initial states: files of one name may change."""
        from libero_gym.demonstrations.plan import describe_tasks
        from libero_gym.tasks import get_tasks

        tasks = get_tasks(self.name)
        return fingerprint(told.encode() for told in describe_tasks(tasks[task_id] for task_id in task_ids))

    def states_by_source(
        self, task_ids: Sequence[int] | None, init_state_ids: Sequence[int] | None
    ) -> dict[str, list[int]]:
        """Official initial states of chosen tasks, by the suite that each task comes from.

        Args:
            task_ids: The tasks; None for all.
            init_state_ids: The states; None for all that there are.

        Raises:
            ValueError: If there is no such task.
        """
        states: dict[str, set[int]] = {}
        for task_id in range(len(self.task_names)) if task_ids is None else task_ids:
            if not 0 <= task_id < len(self.task_names):
                raise ValueError(f"task_ids has {task_id!r}; {self.name} has tasks 0 to {len(self.task_names) - 1}.")
            own = range(self.n_initial_states(task_id)) if init_state_ids is None else init_state_ids
            states.setdefault(self.sources[task_id], set()).update(own)
        return {source: sorted(ids) for source, ids in states.items()}

    def prepare_fixtures(self, draws: Mapping[int, int], seed: int) -> None:
        """Draw and cache fixture poses, before several workers ask for them at once.

        Args:
            draws: The last draw that is needed of each task, counted from 1, by task id.
            seed: Seed that the fixtures are drawn from.
        """
        from libero_gym.compilation.draws import prepare
        from libero_gym.tasks import get_tasks

        # Draw 1 after seed 0 is compiled into the task itself.
        wanted = {task_id: draw for task_id, draw in draws.items() if seed != 0 or draw > 1}
        tasks = get_tasks(self.name)
        for task_id in tqdm(
            wanted, desc="Drawing fixtures", unit="task", disable=None if wanted else True, leave=False
        ):
            prepare(tasks[task_id], wanted[task_id], seed)


# The suites that have demonstrations. LIBERO-PRO's variants are named after them, as libero_spatial_task.
_BASES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


def base_suite(name: str) -> str | None:
    """The suite of LIBERO whose demonstrations are of these tasks or their like; None for suites of others."""
    return next((base for base in _BASES if name == base or name.startswith(f"{base}_")), None)


def suites_of_statistics(unnorm_key: str) -> set[str] | None:
    """The suites whose demonstrations a checkpoint's statistics are of, by the name that they have; None if unknown.

    Published checkpoints name them after the suite, such as ``libero_spatial_no_noops``. A suite that joins several
    stands for those.
    """
    from libero_gym.tasks import SUITES, get_tasks

    name = unnorm_key.removesuffix("_no_noops")
    if name not in SUITES:
        return None
    return {name} | {task.source for task in get_tasks(name)}


def describe_suite(env_id: str) -> SuiteDescription:
    """The suite behind a registered id, of that name, or of a BDDL file or a folder of such.

    Raises:
        OSError: If a BDDL file cannot be read.
        ValueError: If the id is unknown; the message offers the nearest id.
    """
    import libero_gym  # noqa: F401 - registers the ids, where Gymnasium's plugin has not
    from libero_gym.custom import ENV_ID
    from libero_gym.tasks import SUITES, get_tasks

    env_id = id_of(env_id)
    if env_id == ENV_ID:
        raise ValueError(f"{ENV_ID} says no tasks by itself; give the BDDL file, or its folder, in the id's place.")
    named = {spec.id: spec.kwargs.get("suite") for spec in gym.registry.values()}
    known = {name: suite for name, suite in named.items() if isinstance(suite, str) and suite in SUITES}
    if env_id not in known:
        hint = f"{did_you_mean(env_id, known)} Ids: {', '.join(known)}; or a BDDL file, or a folder of such."
        raise ValueError(f"Unknown id {env_id!r}.{hint}")
    suite = SUITES[known[env_id]]
    tasks = get_tasks(suite.name)
    return SuiteDescription(
        suite.name,
        suite.max_steps,
        tuple(task.name for task in tasks),
        tuple(task.instruction for task in tasks),
        tuple(task.max_steps or suite.max_steps for task in tasks),
        tuple(task.source for task in tasks),
    )


def id_of(env_id: str) -> str:
    """The id itself, that of a suite's name, or of a BDDL file or a folder of such, which is then registered.

    Raises:
        OSError, ValueError: As `libero_gym.tasks.register_files`.
    """
    from libero_gym.tasks import SUITES, register_files

    if _stands_for_files(env_id):
        return register_files(env_id).env_id
    return SUITES[env_id].env_id if isinstance(env_id, str) and env_id in SUITES else env_id


def located(env_id: str) -> str:
    """The id; or the whole path of the files that it stands for, which a process in another folder finds, too."""
    return str(Path(env_id).expanduser().absolute()) if _stands_for_files(env_id) else id_of(env_id)


def _stands_for_files(env_id: Any) -> bool:
    from libero_gym.tasks import names_files

    return isinstance(env_id, str) and env_id not in gym.registry and names_files(env_id)
