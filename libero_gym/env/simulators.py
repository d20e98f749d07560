"""The simulators that an environment keeps: one per task, and a few with other fixture draws."""

from __future__ import annotations

from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.draws import check_draw, check_resets, check_seed, fixture_draw
from libero_gym.simulation.simulator import Physics, Simulator
from libero_gym.tasks import Task

# Each takes a model of its own (3 MB); an evaluation asks for 50 draws of each task, one after the other.
MAX_DRAWN = 4


class Simulators:
    """Keeps one simulator per task on the protocol's first fixture draw, and the last few used on other draws.

    Args:
        physics: Physics of all simulators; see `Simulator`.
    """

    def __init__(self, physics: Physics) -> None:
        self.physics = physics
        self._first: dict[int, Simulator] = {}
        self._drawn: dict[tuple[int, ...], Simulator] = {}

    def get(self, task: Task, draw: int = 1, seed: int = 0, resets_before: int = 0) -> Simulator:
        """The simulator of a task with the fixtures of a draw; see `compilation.draws.fixture_draw`.

        Raises:
            ValueError: If there is no such draw.
        """
        drawn = check_draw(draw), check_seed(seed), check_resets(resets_before)
        if drawn == (1, 0, 0):
            if task.task_id not in self._first:
                self._first[task.task_id] = Simulator(compile_task(task), physics=self.physics)
            return self._first[task.task_id]
        key = (task.task_id, *drawn)
        simulator = self._drawn.pop(key, None)
        if simulator is None:
            simulator = Simulator(compile_task(task), fixture_draw(task, *drawn), self.physics)
            while len(self._drawn) >= MAX_DRAWN:
                del self._drawn[next(iter(self._drawn))]
        self._drawn[key] = simulator  # the dict's last one is the latest used
        return simulator

    def clear(self) -> None:
        """Let go of all simulators."""
        self._first.clear()
        self._drawn.clear()
