"""Where episodes start: an official initial state, or a placement of the objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from libero_gym.compilation.placements import NoPlaceError, has_place, sampled_state
from libero_gym.env.state import PLACED, EpisodeState
from libero_gym.tasks import Task, initial_states, placement_seeds_of

_Options = TypeVar("_Options", bound=Mapping[str, Any])


class Choices(NamedTuple):
    """What resets draw from; see `LiberoEnv`.

    Attributes:
        tasks: All tasks of the suite.
        task_ids: Ids of the tasks to draw.
        task_weights: Their probabilities, (n_tasks,).
        init_state_ids: Official initial states; None for all.
        placement_seeds: Placements.
    """

    tasks: Sequence[Task]
    task_ids: Sequence[int]
    task_weights: np.ndarray
    init_state_ids: Sequence[int] | None
    placement_seeds: Sequence[int]


def choose_episode(
    choices: Choices, options: Mapping[str, Any], generator: np.random.Generator
) -> tuple[EpisodeState, np.ndarray]:
    """The episode that a reset begins, and the state (1 + nq + nv,) that it starts from.

    Args:
        choices: What the environment draws from.
        options: Checked options of the reset; what they leave open is drawn.
        generator: The environment's own.
    """
    task_id = options.get("task_id")
    if task_id is None:
        task_id = generator.choice(choices.task_ids, p=choices.task_weights)
    task = choices.tasks[task_id]
    state, init_state_id = choose_start(task, options, choices.init_state_ids, choices.placement_seeds, generator)
    draw, seed = options.get("fixture_draw", 1), options.get("fixture_seed", 0)
    return EpisodeState(task, init_state_id, draw, seed), state


def check_place(options: _Options, task_ids: Sequence[int], tasks: Sequence[Task]) -> _Options:
    """The options of a reset themselves, if the placement that they ask for has a place; see the error.

    Args:
        options: Checked options of the reset.
        task_ids: Ids of the tasks to draw.
        tasks: All tasks of the suite.

    Raises:
        NoPlaceError: If the ``placement_seed`` of the options places no objects of the only task that there can be.
    """
    task_id = options.get("task_id", task_ids[0] if len(task_ids) == 1 else None)
    if task_id is not None and options.get("placement_seed") is not None:
        sampled_state(tasks[task_id], options["placement_seed"])
    return options


def choose_start(
    task: Task,
    options: Mapping[str, Any],
    init_state_ids: Sequence[int] | None,
    placement_seeds: Sequence[int],
    generator: np.random.Generator,
) -> tuple[np.ndarray, int]:
    """The state that a reset starts from: the one that its options ask for, or one that is drawn, each as likely.

    Args:
        task: The task.
        options: Checked options of the reset; ``init_state_id`` and ``placement_seed`` matter here.
        init_state_ids: Official initial states to draw from; None for all.
        placement_seeds: Placements to draw from.
        generator: The environment's own; used if the options ask for neither.

    Returns:
        The state (1 + nq + nv,), and its id among the official ones or `PLACED`.

    Raises:
        NoPlaceError: If the seed that the options ask for places no objects, or none of those to draw from does.
    """
    if "placement_seed" in options or "init_state_id" in options:
        return _start(task, options)
    possible = possible_starts(task, init_state_ids, placement_seeds)
    while True:
        drawn = possible.pop(int(generator.choice(len(possible))))
        try:
            return _start(task, drawn)
        except NoPlaceError:  # drawn again from the others: each start that there is stays as likely
            if not possible:
                raise


def _start(task: Task, chosen: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """The state that is chosen by its ``placement_seed`` or its ``init_state_id``, and its id or `PLACED`."""
    if chosen.get("placement_seed") is not None:
        return sampled_state(task, chosen["placement_seed"]), PLACED
    return initial_states(task)[chosen["init_state_id"]], chosen["init_state_id"]


def possible_starts(
    task: Task, init_state_ids: Sequence[int] | None, placement_seeds: Sequence[int]
) -> list[dict[str, int]]:
    """Options of the starts that a reset draws from, each as likely: official initial states, then placements.

    A seed that finds no place for all objects is among them; a reset that draws it draws again.

    Args:
        task: The task.
        init_state_ids: Official initial states to draw from; None for all.
        placement_seeds: Placements to draw from.
    """
    official = range(len(initial_states(task))) if init_state_ids is None else init_state_ids
    states = [{"init_state_id": int(number)} for number in official]
    return states + [{"placement_seed": int(seed)} for seed in placement_seeds_of(task, placement_seeds)]


def existing_starts(
    task: Task, init_state_ids: Sequence[int] | None, placement_seeds: Sequence[int]
) -> list[dict[str, int]]:
    """The `possible_starts` but for placement seeds with which LIBERO finds no place for all objects."""
    possible = possible_starts(task, init_state_ids, placement_seeds)
    return [start for start in possible if "placement_seed" not in start or has_place(task, start["placement_seed"])]
