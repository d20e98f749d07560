"""Which episodes an evaluation runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from libero_gym.common.checks import sequence, whole_number
from vla_agent.envs.episodes import EpisodeStart
from vla_agent.envs.suites import SuiteDescription, describe_suite


class Trial(NamedTuple):
    """One episode to run.

    Attributes:
        task_id: The task.
        init_state_id: An official initial state, or -1 - s for the one that placement seed s draws.
    """

    task_id: int
    init_state_id: int

    @property
    def start(self) -> EpisodeStart:
        """Start of the trial, without the fixtures that the protocol adds."""
        if self.init_state_id >= 0:
            return EpisodeStart(self.task_id, self.init_state_id)
        return EpisodeStart(self.task_id, placement_seed=-1 - self.init_state_id)


def plan_trials(
    env_id: str,
    task_ids: Sequence[int] | None,
    init_state_ids: Iterable[int] | Mapping[int, Iterable[int]],
    placement_seeds: Iterable[int] = (),
) -> list[Trial]:
    """Every pair of a task and an initial state, official or drawn, in order, once.

    Args:
        env_id: Id of the environments.
        task_ids: The tasks; None for all.
        init_state_ids: Official initial states of every task, or of each by its id.
        placement_seeds: Seeds of drawn initial states of every task.

    Raises:
        ValueError: If a task or a state does not exist, is asked for twice, or there is none.
        TypeError: If ``env_id`` is no text.
    """
    if not isinstance(env_id, str):
        raise TypeError(f"env_id={env_id!r}; expected a registered id, such as 'LIBERO-Spatial-v0'.")
    suite = describe_suite(env_id)
    tasks = list(range(len(suite.task_names))) if task_ids is None else _ids("task_ids", task_ids)
    for task_id in tasks:
        if task_id not in range(len(suite.task_names)):
            raise ValueError(f"task_ids has {task_id!r}; {suite.name} has tasks 0 to {len(suite.task_names) - 1}.")
    placements = _ids("placement_seeds", placement_seeds)
    if isinstance(init_state_ids, Mapping):
        by_task = {task_id: _ids("init_state_ids", init_state_ids.get(task_id, ())) for task_id in tasks}
        if without := [task_id for task_id, states in by_task.items() if not states + placements]:
            raise ValueError(f"init_state_ids has no state for tasks {without} of {suite.name}; give at least one.")
    else:
        by_task = dict.fromkeys(tasks, _ids("init_state_ids", init_state_ids))
    states = next(iter(by_task.values()), [])
    for name, ids in (("task_ids", tasks), ("init_state_ids", states + placements)):
        if not ids:
            raise ValueError(f"{name} is empty; give at least one.")
    for name, ids in (("task_ids", tasks), ("init_state_ids", states), ("placement_seeds", placements)):
        if len(set(ids)) < len(ids):
            raise ValueError(f"{name} names one twice: {ids}; every episode is run once.")
    for task_id, own in by_task.items():
        _check_states(suite, task_id, own)
    if any(seed < 0 for seed in placements):
        raise ValueError(f"placement_seeds has {min(placements)}; expected integers from 0.")
    drawn = [-1 - seed for seed in placements]
    return [Trial(task_id, state) for task_id in tasks for state in by_task[task_id] + drawn]


def _check_states(suite: SuiteDescription, task_id: int, states: Sequence[int]) -> None:
    """Raise a ValueError unless the task has these official initial states."""
    n_states = suite.n_initial_states(task_id)
    if states and not n_states:
        raise ValueError(
            f"Task {task_id} of {suite.name} has no official initial states; give init_state_ids=() and "
            "placement_seeds."
        )
    for state in states:
        if state not in range(n_states):
            raise ValueError(
                f"init_state_ids has {state!r}; task {task_id} of {suite.name} has official initial states 0 to "
                f"{n_states - 1}."
            )


def _ids(name: str, values: Any) -> list[int]:
    return [whole_number(f"an id of {name}", value) for value in sequence(name, values)]
