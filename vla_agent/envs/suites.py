"""What agents and evaluations need to know of the registered suites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import gymnasium as gym
from tqdm import tqdm

from libero_gym.common.checks import did_you_mean


class SuiteDescription(NamedTuple):
    """What an evaluation has to know of a suite.

    Attributes:
        name: LIBERO's own name, such as ``libero_spatial``.
        max_steps: Control steps that the evaluation protocol allows an episode.
        task_names: LIBERO's names of the tasks, in benchmark order.
        instructions: The tasks' instructions, in the same order.
    """

    name: str
    max_steps: int
    task_names: tuple[str, ...]
    instructions: tuple[str, ...]

    def n_initial_states(self, task_id: int) -> int:
        """Number of official initial states of a task."""
        from libero_gym.tasks import get_tasks, initial_states

        return len(initial_states(get_tasks(self.name)[task_id]))

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


def describe_suite(env_id: str) -> SuiteDescription:
    """The suite behind a registered id.

    Raises:
        ValueError: If the id is unknown; the message offers the nearest id.
    """
    import libero_gym  # noqa: F401 - registers the ids, where Gymnasium's plugin has not
    from libero_gym.tasks import SUITES, get_tasks

    named = {spec.id: spec.kwargs.get("suite") for spec in gym.registry.values()}
    known = {name: suite for name, suite in named.items() if isinstance(suite, str) and suite in SUITES}
    if env_id not in known:
        raise ValueError(f"Unknown id {env_id!r}.{did_you_mean(env_id, known)} Ids: {', '.join(known)}.")
    suite = SUITES[known[env_id]]
    tasks = get_tasks(suite.name)
    return SuiteDescription(
        suite.name, suite.max_steps, tuple(task.name for task in tasks), tuple(task.instruction for task in tasks)
    )
