"""Which episodes of a dataset are learned from, and which initial states they began from."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from libero_gym.demonstrations import DamagedEpisodeError, LeRobotReader
from libero_gym.dimensions import GRIPPER_DIM
from libero_gym.tasks import get_tasks
from vla_agent.evaluation.provenance import TrainingStates


def first_of_each_task(reader: LeRobotReader, n_episodes: int) -> list[int]:
    """Indices of the first episodes of each task, by initial state.

    Official initial states come first, in their order, then placements by their seeds, then what began from an unknown
    state, in the dataset's order. Without a task's number, episodes of one instruction are of one task.

    Args:
        reader: The dataset.
        n_episodes: Episodes per task.

    Warns:
        UserWarning: If an episode's row is damaged, which leaves it out, or tasks have fewer episodes.
    """
    tasks: dict[tuple[str, int, str], list[tuple[int, int, int]]] = {}
    for index in range(len(reader)):
        try:
            origin = reader.origin(index)
        except DamagedEpisodeError as error:
            warnings.warn(f"Episode {index} of {reader.root} is left out: {error}", stacklevel=2)
            continue
        known = origin.suite and origin.task_id >= 0
        task = (origin.suite, origin.task_id, "") if known else ("", -1, origin.instruction)
        if origin.init_state_id >= 0:
            place = (0, origin.init_state_id, index)
        elif origin.placement_seed >= 0:
            place = (1, origin.placement_seed, index)
        else:
            place = (2, 0, index)
        tasks.setdefault(task, []).append(place)
    few = sum(len(places) < n_episodes for places in tasks.values())
    if few:
        warnings.warn(
            f"{few} of {len(tasks)} tasks have fewer than {n_episodes} episodes in {reader.root}; all of theirs are "
            "taken.",
            stacklevel=2,
        )
    return sorted(place[2] for places in tasks.values() for place in sorted(places)[:n_episodes])


def of_tasks(reader: LeRobotReader, indices: Sequence[int], suite: str, task_ids: Collection[int]) -> list[int]:
    """Those of some episodes that are of a suite's tasks; damaged ones stay, and are skipped when they are read.

    Args:
        reader: The dataset.
        indices: The episodes.
        suite: LIBERO's name of the suite.
        task_ids: The tasks.

    Raises:
        ValueError: If there is none.
    """
    kept, found = [], set()
    for index in indices:
        try:
            origin = reader.origin(index)
        except DamagedEpisodeError:
            kept.append(index)
            continue
        found.add(f"{origin.suite or 'an unknown suite'}[{origin.task_id}]")
        if origin.suite == suite and origin.task_id in task_ids:
            kept.append(index)
    if not kept:
        raise ValueError(
            f"No episode of {reader.root} is of {suite}'s tasks {', '.join(map(str, sorted(task_ids)))}; it has "
            f"{', '.join(sorted(found)[:12])}. Name other --task-ids or another --suite, or leave --task-ids out."
        )
    return kept


def commonest_grasps(
    root: str | Path, radius: float, fps: int | None, indices: Iterable[int] | None = None
) -> list[int]:
    """Indices of the episodes whose first grasp lies near the median of their instruction's grasps.

    The expert takes a bowl by either side of its rim, depending on small differences. A policy that cannot tell which
    side is meant learns the middle of the two, where there is nothing to grasp.

    Args:
        root: The dataset.
        radius: Largest distance from the median, m.
        fps: Frames per second that the dataset must state; None takes its own.
        indices: Episodes to choose from; None for all.
    """
    reader = LeRobotReader(root, cameras=(), fps=fps)
    grasps: dict[str, dict[int, np.ndarray]] = {}
    for index, episode in reader.enumerate(indices):
        closing = np.flatnonzero(np.diff(np.sign(episode.actions[:, GRIPPER_DIM])) > 0)
        frame = closing[0] if len(closing) else len(episode) - 1
        grasps.setdefault(episode.instruction, {})[index] = episode.state[frame, :3]
    kept = []
    for places in grasps.values():
        median = np.median(list(places.values()), axis=0)
        kept += [index for index, place in places.items() if np.linalg.norm(place - median) < radius]
    return sorted(kept)


def states_of(reader: LeRobotReader, indices: Sequence[int]) -> tuple[TrainingStates, int]:
    """The official initial states that episodes began from, by LIBERO's name of the suite that a task comes from.

    An episode from a placement of its own adds its suite and no state.

    Args:
        reader: The dataset.
        indices: The episodes.

    Returns:
        The states, and the number of episodes of which the dataset does not say where they began.
    """
    states: dict[str, set[int]] = {}
    n_unknown = 0
    for index in indices:
        try:
            origin = reader.origin(index)
        except DamagedEpisodeError:  # it is not read either
            continue
        source = _source(origin.suite, origin.task_id)
        if source is None or (origin.init_state_id < 0 and origin.placement_seed < 0):
            n_unknown += 1
            continue
        states.setdefault(source, set()).update({origin.init_state_id} - {-1})
    return {suite: sorted(ids) for suite, ids in states.items()}, n_unknown


@functools.cache
def _source(suite: str, task_id: int) -> str | None:
    """The suite that a task comes from; None if no such task is registered here."""
    try:
        tasks = get_tasks(suite)
    except ValueError:
        return None
    return tasks[task_id].source if 0 <= task_id < len(tasks) else None
