"""Which world each environment has, in which scene's batch; and their rows, gathered in the environments' order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from libero_gym.gpu.states import row_of, state_of
from libero_gym.gpu.worlds import SceneWorlds
from libero_gym.simulation.compiled import FixtureDraw
from libero_gym.simulation.states import SimState
from libero_gym.tasks import Task


class Places:
    """Environments' worlds. An environment has one, in the scene of the task that it was last moved to.

    Args:
        scenes: The scenes.
        num_envs: Number of environments.
    """

    def __init__(self, scenes: Sequence[SceneWorlds], num_envs: int) -> None:
        self._scenes = scenes
        self._places: list[tuple[int, int] | None] = [None] * num_envs
        self._rows = {
            compiled.task.task_id: (number, row)
            for number, scene in enumerate(scenes)
            for row, compiled in enumerate(scene.tasks)
        }

    def move(self, index: int, task: Task) -> int:
        """Give an environment a world of a task's scene, if it has none there; gives the task's row in the scene."""
        scene, row = self._rows[task.task_id]
        place = self._places[index]
        if place is None or place[0] != scene:
            if place is not None:
                self._scenes[place[0]].give_back(place[1])
            self._places[index] = scene, self._scenes[scene].take()
        return row

    def put(self, index: int, task: Task, state: SimState, fixtures: FixtureDraw, phi: float) -> None:
        """Put an environment into a state of a task.

        Raises:
            ValueError: If the state is of another task.
        """
        scene, row = self._rows[task.task_id]
        compiled = self._scenes[scene].tasks[row]
        size = 1 + compiled.physics.nq + compiled.physics.nv
        if state.shape != (size,):
            raise ValueError(
                f"The state has shape {state.shape}; {task.name!r} needs ({size},): it is of another task."
            )
        given = row_of(compiled, row, state, fixtures, phi)
        self.move(index, task)
        self._scenes[scene].restore({self.worlds([index])[0]: given})

    def by_scene(self, indices: Iterable[int]) -> list[tuple[SceneWorlds, list[int]]]:
        """The scenes of some environments, each with those that are there."""
        found: dict[int, list[int]] = {}
        for index in map(int, indices):
            place = self._places[index]
            assert place is not None
            found.setdefault(place[0], []).append(index)
        return [(self._scenes[scene], own) for scene, own in found.items()]

    def worlds(self, indices: Iterable[int]) -> list[int]:
        """The worlds of some environments, each in its scene."""
        places = [self._places[index] for index in indices]
        return [place[1] for place in places if place is not None]

    def read(self, name: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """A column of some environments' rows, which are not none, (k, width of the widest)."""
        order = {int(index): place for place, index in enumerate(indices)}
        parts = [(own, scene.batch.read(name)[self.worlds(own)]) for scene, own in self.by_scene(order)]
        width = max(values.shape[1] for _, values in parts)
        result = np.zeros((len(order), width), dtype=parts[0][1].dtype)
        for own, values in parts:
            result[[order[index] for index in own], : values.shape[1]] = values
        return result

    def states(self, indices: Iterable[int]) -> list[SimState]:
        """States of some environments, in their order."""
        wanted, found = list(indices), {}
        for scene, own in self.by_scene(wanted):
            columns = {name: scene.batch.read(name) for name in scene.batch.columns}
            for index, world in zip(own, self.worlds(own), strict=True):
                found[index] = state_of({name: values[world] for name, values in columns.items()})
        return [found[index] for index in wanted]
