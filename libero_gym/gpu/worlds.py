"""The worlds of one scene as environments use them: taken and given back, and started from settled initial states."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.gpu.film import Film
from libero_gym.gpu.scene_batch import SceneBatch, Sizes
from libero_gym.gpu.states import Row, StateTable, initial_row
from libero_gym.privileged import SIZE, PrivilegedState
from libero_gym.simulation.compiled import CompiledTask, FixtureDraw
from libero_gym.simulation.simulator import SETTLE_ACTION
from libero_gym.tasks import initial_states

# Settled states that a scene keeps, of 1 kB each; when there are more, it begins anew.
MAX_SETTLED = 50_000
# Buffers come in multiples of these, so that few sizes are in use: some of MuJoCo Warp's kernels are made for theirs.
_CONTACTS, _CONSTRAINTS = 128, 448
# MuJoCo Warp's most contacts and constraints are at most this many times those of MuJoCo while objects fall.
_RESERVE = 1.5
# How many of a scene's tasks are measured: their objects are the same.
_MEASURED = 2
# Substeps of 2 ms in which objects fall from up to 10 cm, and come to rest.
_FALLING = 150


class Start(NamedTuple):
    """Where an episode starts.

    Attributes:
        task: The task's row in the scene.
        state: Initial state ``[time, qpos, qvel]``, (1 + nq + nv,).
        fixtures: Poses of the fixtures.
    """

    task: int
    state: np.ndarray
    fixtures: FixtureDraw

    @property
    def key(self) -> bytes:
        """Equal for equal starts."""
        digest = hashlib.blake2b(np.asarray(self.task).tobytes(), digest_size=16)
        for values in (self.state, self.fixtures.pos, self.fixtures.quat, self.fixtures.warmstart):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.digest()


class Settled:
    """Settled states of a scene, by the keys of their starts; all of its batches share them.

    Args:
        table: An empty table of the scene's rows.

    Attributes:
        table: The states.
        rows: Their rows in the table.
        features: Privileged features in these states, if somebody asked for them.
    """

    def __init__(self, table: StateTable) -> None:
        self.table = table
        self.rows: dict[bytes, int] = {}
        self.features: dict[bytes, np.ndarray] = {}

    def begin_anew(self, table: StateTable) -> None:
        """Forget all."""
        self.table, self.rows, self.features = table, {}, {}


class SceneWorlds:
    """A `SceneBatch` whose worlds are taken one by one, and which remembers settled states.

    Objects settle once for each initial state and draw of fixtures; later episodes copy what came of it. Settling
    moves the worlds of one call together.

    Args:
        tasks: The scene's compiled tasks.
        n_worlds: Number of worlds.
        device: Warp's name of the device.
        sizes: Sizes of the buffers.
        settle_steps: Control steps with an open gripper before an episode begins.
        privileged: Whether to compute privileged features.
        deterministic: See `scene_batch.SceneBatch`.

    Attributes:
        batch: The worlds.
    """

    def __init__(
        self,
        tasks: Sequence[CompiledTask],
        n_worlds: int,
        device: str,
        sizes: Sizes,
        settle_steps: int,
        privileged: bool = False,
        deterministic: bool = False,
    ) -> None:
        self.batch = SceneBatch(tasks, n_worlds, device, sizes, deterministic=deterministic)
        self._film = Film(tasks[0], device)
        self._settle_steps = settle_steps
        self._free = list(range(n_worlds))[::-1]
        self._settled = Settled(self.batch.new_table())
        self._is_filled = False
        self._features = [PrivilegedState(task.goal, task.physics) for task in tasks] if privileged else None

    def another(self, n_worlds: int) -> SceneWorlds:
        """Further worlds of the scene, which share its settled states, and what draws it."""
        other = copy.copy(self)
        batch = self.batch
        other.batch = SceneBatch(
            self.tasks, n_worlds, str(batch.device), batch.sizes, deterministic=batch.deterministic
        )
        other._free, other._is_filled = list(range(n_worlds))[::-1], False
        return other

    @property
    def tasks(self) -> tuple[CompiledTask, ...]:
        """The scene's tasks."""
        return self.batch.tasks

    @property
    def n_free(self) -> int:
        """Number of worlds that nobody has."""
        return len(self._free)

    def take(self) -> int:
        """The number of a world that nobody has, for the caller; there must be one."""
        return self._free.pop()

    def give_back(self, world: int) -> None:
        """Let others take a world."""
        self._free.append(world)

    def start(self, starts: Mapping[int, Start]) -> dict[int, np.ndarray]:
        """Start worlds from settled initial states; the others stay as they are.

        Returns:
            The privileged features of each world, (`privileged.SIZE`,); empty if nobody asked for them.
        """
        keys = {world: start.key for world, start in starts.items()}
        settled = self._settled
        new = {key: world for world, key in keys.items() if key not in settled.rows}
        if len(settled.rows) + len(new) > MAX_SETTLED:
            settled.begin_anew(self.batch.new_table())
            new = {key: world for world, key in keys.items()}
        if new:
            self._settle({world: (key, starts[world]) for key, world in new.items()})
        places = {world: settled.rows[key] for world, key in keys.items()}
        self._fill(settled.table, next(iter(places.values())))
        self._load(settled.table, places)
        return {world: settled.features[key] for world, key in keys.items() if key in settled.features}

    def restore(self, rows: Mapping[int, Row]) -> None:
        """Put worlds into states that `states.row_of` made; the others stay as they are."""
        table = self.batch.new_table(len(rows))
        numbers = table.reserve(len(rows))
        table.write(0, rows.values())
        self._fill(table, numbers.start)
        self._load(table, dict(zip(rows, numbers, strict=True)))

    def features(self, worlds: Sequence[int], robot_states: np.ndarray, time_left: np.ndarray) -> np.ndarray:
        """Privileged features of worlds that the last call has stepped, float32 (k, `privileged.SIZE`).

        Args:
            worlds: Numbers of the worlds.
            robot_states: Their robots' states as observed, (k, 8).
            time_left: Share of their episodes that is left, (k,).
        """
        assert self._features is not None
        arrays, chosen = self.batch.arrays(), np.asarray(worlds)
        tasks, found = self.batch.read("task")[chosen, 0], np.zeros((len(chosen), SIZE), dtype=np.float32)
        for task in np.unique(tasks):
            rows = np.flatnonzero(tasks == task)
            own = type(arrays)(*(values[chosen[rows]] for values in arrays))
            found[rows] = self._features[task](own, robot_states[rows], time_left[rows])
        return found

    def frames(self, worlds: Sequence[int], cameras: tuple[str, ...], size: int) -> np.ndarray:
        """Frames of worlds as `film.Film` draws them, uint8 (k, number of cameras, size, size, 3)."""
        return self._film.draw(self.batch, worlds, cameras, size)

    def frames_on_device(self, worlds: Sequence[int], cameras: tuple[str, ...], size: int) -> Any:
        """The same on the device, uint8 (k * number of cameras, size, size, 3), until the next ones."""
        return self._film.draw_on_device(self.batch, worlds, cameras, size)

    def _settle(self, new: Mapping[int, tuple[bytes, Start]]) -> None:
        settled = self._settled
        numbers = settled.table.reserve(len(new))
        rows = [
            initial_row(self.tasks[start.task], start.task, start.state, start.fixtures) for _, start in new.values()
        ]
        settled.table.write(numbers.start, rows)
        self._fill(settled.table, numbers.start)
        places = dict(zip(new, numbers, strict=True))
        active = self._load(settled.table, places)
        self.batch.begin(active)
        actions = np.tile(SETTLE_ACTION, (self.batch.n_worlds, 1))
        for _ in range(self._settle_steps):
            self.batch.step(actions, active)
        self.batch.save(active, settled.table, _spread(places, self.batch.n_worlds))
        settled.rows |= {key: places[world] for world, (key, _) in new.items()}
        if self._features is not None:
            states = robot_states(self.batch.read("sample")[list(new)])
            found = self.features(list(new), states, np.ones(len(new)))
            settled.features |= {key: row for (key, _), row in zip(new.values(), found, strict=True)}

    def _fill(self, table: StateTable, row: int) -> None:
        """Load a row everywhere, once: worlds that nobody has are simulated along, and need a state of a scene."""
        if not self._is_filled:
            self._load(table, dict.fromkeys(range(self.batch.n_worlds), row))
            self._is_filled = True

    def _load(self, table: StateTable, places: Mapping[int, int]) -> np.ndarray:
        """Load rows by the number of the world; gives the mask of these worlds."""
        active = np.zeros(self.batch.n_worlds, dtype=bool)
        active[list(places)] = True
        self.batch.load(active, table, _spread(places, self.batch.n_worlds))
        return active


def robot_states(samples: np.ndarray) -> np.ndarray:
    """Robots' states as observations have them, float32 (n, 8): see `observations.proprioception`.

    Args:
        samples: What control steps sampled: end effector in m, hand quaternion (wxyz), fingers in m, (n, 9).
    """
    values = samples.astype(np.float64)
    w = np.clip(values[:, 3:4], -1.0, 1.0)
    norm = np.sqrt(1.0 - w * w)
    turned = norm[:, 0] > 0
    axis_angle = np.zeros((len(values), 3))
    axis_angle[turned] = values[turned, 4:7] * 2.0 * np.arccos(w[turned]) / norm[turned]
    return np.concatenate([values[:, :3], axis_angle, values[:, 7:9]], axis=1).astype(np.float32)


def sizes_for(tasks: Sequence[CompiledTask], nconmax: int | None = None, njmax: int | None = None) -> Sizes:
    """Buffers that hold what a scene's objects need while they fall from an initial state, with a reserve.

    Args:
        tasks: The scene's tasks.
        nconmax, njmax: Sizes that are given; None for those found.
    """
    most = np.max([_most_while_falling(task) for task in tasks[:_MEASURED]], axis=0)
    steps = int(np.ceil(_RESERVE * most / [_CONTACTS, _CONSTRAINTS]).max(initial=1))
    return Sizes(nconmax or steps * _CONTACTS, njmax or steps * _CONSTRAINTS)


def _most_while_falling(task: CompiledTask) -> tuple[int, int]:
    """Most contacts and constraints of MuJoCo itself, which gravity does not move the arm in."""
    model, robot, states = task.physics, task.robot, initial_states(task.task)
    data = mujoco.MjData(copy.copy(model))
    if len(states):
        data.qpos[:] = states[0][1 : 1 + model.nq]
    most = np.zeros(2, dtype=int)
    for _ in range(_FALLING):
        mujoco.mj_step1(model, data)
        data.ctrl[robot.actuators] = data.qfrc_bias[robot.dof]
        most = np.maximum(most, [data.ncon, data.nefc])
        mujoco.mj_step2(model, data)
    return int(most[0]), int(most[1])


def _spread(places: Mapping[int, int], n: int) -> np.ndarray:
    """Rows by world, (n,), from rows of some worlds; 0 for the others."""
    rows = np.zeros(n, dtype=np.int32)
    rows[list(places)] = list(places.values())
    return rows
