"""Worlds of a `SceneBatch` started from official initial states, and read out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from libero_gym.tasks import initial_states

if TYPE_CHECKING:
    from libero_gym.gpu.scene_batch import SceneBatch


def start(batch: SceneBatch, places: list[tuple[int, int]], begin: bool = True) -> None:
    """Start each world from an official initial state of one of the batch's tasks, not settled.

    Args:
        batch: The worlds.
        places: For each world its task's row and the number of the state.
        begin: Whether to take the first look at the states, as a reset does.
    """
    from libero_gym.gpu.states import initial_row

    table = batch.new_table()
    rows = table.reserve(len(places))
    tasks = [batch.tasks[row] for row, _ in places]
    states = [initial_states(task.task)[number] for task, (_, number) in zip(tasks, places, strict=True)]
    each = zip(tasks, places, states, strict=True)
    table.write(0, [initial_row(task, row, state, task.fixtures) for task, (row, _), state in each])
    everywhere = np.ones(batch.n_worlds, dtype=bool)
    batch.load(everywhere, table, np.array(rows))
    if begin:
        batch.begin(everywhere)


def all_rows(batch: SceneBatch) -> dict[str, np.ndarray]:
    """Copies of all columns."""
    return {name: batch.read(name).copy() for name in batch.columns}


def assert_as(found: Any, expected: Any, device: str, name: str = "", atol: float = 1e-5) -> None:
    """The same numbers: to the bit on the CPU, and on a GPU, whose sums have no order, to so much."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if device == "cpu" else atol, err_msg=name)
