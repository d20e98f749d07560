"""Which world each environment has, in which group of which scene; and their rows, in the environments' order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from libero_gym.gpu.states import row_of, state_of
from libero_gym.gpu.worlds import SceneWorlds
from libero_gym.simulation.compiled import FixtureDraw
from libero_gym.simulation.states import SimState
from libero_gym.tasks import Task

# Further groups that nobody is in are given up before there are more worlds than so many times those of the beginning.
MAX_GROWTH = 4


class Place(NamedTuple):
    """An environment's world.

    Attributes:
        scene: Number of the scene.
        group: Worlds of the scene that are a batch.
        world: Number of the world in it.
    """

    scene: int
    group: SceneWorlds
    world: int


class Places:
    """Environments' worlds. An environment has one, in the scene of the task that it was last moved to.

    A scene whose groups are full gets a further one, of as many worlds as it has: those that are there stay as they
    are. Environments take worlds of the first groups first, so that others empty, and rest.

    Args:
        scenes: A group of worlds of each scene.
        num_envs: Number of environments.
    """

    def __init__(self, scenes: Sequence[SceneWorlds], num_envs: int) -> None:
        self._groups = [[group] for group in scenes]
        self._places: list[Place | None] = [None] * num_envs
        self._most = MAX_GROWTH * self.n_worlds
        self._rows = {
            compiled.task.task_id: (number, row)
            for number, group in enumerate(scenes)
            for row, compiled in enumerate(group.tasks)
        }

    @property
    def n_worlds(self) -> int:
        """Number of worlds that there are, whether environments have them or not."""
        return sum(group.batch.n_worlds for groups in self._groups for group in groups)

    def move(self, tasks: Mapping[int, Task]) -> dict[int, int]:
        """Give environments worlds of their tasks' scenes, where they have none there.

        Args:
            tasks: The task of each environment that is to move.

        Returns:
            Each task's row in its scene.
        """
        rows = {index: self._rows[task.task_id] for index, task in tasks.items()}
        moving = {}
        for index, (scene, _) in rows.items():  # all leave before one arrives
            place = self._places[index]
            if place is None or place.scene != scene:
                moving[index] = scene
                self._leave(index)
        for index, scene in moving.items():
            group = self._with_room(scene)
            self._places[index] = Place(scene, group, group.take())
        return {index: row for index, (_, row) in rows.items()}

    def clear(self) -> None:
        """Free all worlds; no environment has one then."""
        self._groups.clear()
        self._places = [None] * len(self._places)

    def put(self, index: int, task: Task, state: SimState, fixtures: FixtureDraw, phi: float) -> None:
        """Put an environment into a state of a task.

        Raises:
            ValueError: If the state is of another task.
        """
        scene, row = self._rows[task.task_id]
        compiled = self._groups[scene][0].tasks[row]
        size = 1 + compiled.physics.nq + compiled.physics.nv
        if state.shape != (size,):
            raise ValueError(
                f"The state has shape {state.shape}; {task.name!r} needs ({size},): it is of another task."
            )
        given = row_of(compiled, row, state, fixtures, phi)
        self.move({index: task})
        ((group, _),) = self.by_group([index])
        group.restore({self.worlds([index])[0]: given})

    def by_group(self, indices: Iterable[int]) -> list[tuple[SceneWorlds, list[int]]]:
        """The groups of some environments, each with those that are there."""
        found: dict[int, tuple[SceneWorlds, list[int]]] = {}
        for index in map(int, indices):
            place = self._places[index]
            assert place is not None
            found.setdefault(id(place.group), (place.group, []))[1].append(index)
        return list(found.values())

    def worlds(self, indices: Iterable[int]) -> list[int]:
        """The worlds of some environments, each in its group."""
        places = [self._places[index] for index in indices]
        return [place.world for place in places if place is not None]

    def read(self, name: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """A column of some environments' rows, (k, width of the widest)."""
        order = {int(index): place for place, index in enumerate(indices)}
        found = self.by_group(order) or [(self._groups[0][0], [])]
        parts = [(own, group.batch.read(name)[self.worlds(own)]) for group, own in found]
        width = max(values.shape[1] for _, values in parts)
        result = np.zeros((len(order), width), dtype=parts[0][1].dtype)
        for own, values in parts:
            result[[order[index] for index in own], : values.shape[1]] = values
        return result

    def states(self, indices: Iterable[int]) -> list[SimState]:
        """States of some environments, in their order."""
        wanted, found = list(indices), {}
        for group, own in self.by_group(wanted):
            columns = {name: group.batch.read(name) for name in group.batch.columns}
            for index, world in zip(own, self.worlds(own), strict=True):
                found[index] = state_of({name: values[world] for name, values in columns.items()})
        return [found[index] for index in wanted]

    def _leave(self, index: int) -> None:
        place = self._places[index]
        if place is not None:
            place.group.give_back(place.world)
            self._places[index] = None

    def _with_room(self, scene: int) -> SceneWorlds:
        """A group of a scene with a world that nobody has."""
        groups = self._groups[scene]
        for group in groups:
            if group.n_free:
                return group
        n_worlds = sum(group.batch.n_worlds for group in groups)
        if self.n_worlds + n_worlds > self._most:
            self._give_up_idle()
        groups.append(groups[0].another(n_worlds))
        return groups[-1]

    def _give_up_idle(self) -> None:
        """Free the further groups that nobody is in."""
        for groups in self._groups:
            groups[1:] = [group for group in groups[1:] if group.n_free < group.batch.n_worlds]
