"""Where stock LIBERO puts fixtures and objects at its n-th reset after ``seed(s)``.

LIBERO draws the poses of cabinets, stoves and racks at every reset, from one generator that is seeded once. Draw n
therefore takes n resets, so all draws but the first are made, and kept, in blocks. A compiled task has the fixtures of
draw 1 of seed 0.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common import cache
from libero_gym.common.checks import whole_number
from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.extraction import read_draw
from libero_gym.compilation.records import task_key
from libero_gym.simulation.compiled import FixtureDraw
from libero_gym.stock import generators_kept, make_stock_env, reset_without_visuals, stock_reset
from libero_gym.tasks import Task

BLOCK = 50  # the evaluation protocol has so many trials per task
MAX_DRAW = 1000
MAX_SEED = 2**32 - 1  # of NumPy's global generator
MAX_RESETS = 10**6  # before seeding; each makes the next one slower

logger = logging.getLogger(__name__)


class Draw(NamedTuple):
    """What one stock reset leaves.

    Attributes:
        fixtures: Where fixtures stand.
        state: Where everything else is, ``[time, qpos, qvel]``, float64 (1 + nq + nv,).
    """

    fixtures: FixtureDraw
    state: np.ndarray


_kept: dict[str, list[Draw]] = {}


def fixture_draw(task: Task, draw: int = 1, seed: int = 0, resets_before: int = 0) -> FixtureDraw:
    """The fixtures that stock LIBERO's ``draw``-th reset after ``seed(seed)`` leaves, counted from 1.

    The evaluation protocol seeds once per task and resets before every trial, so trial k runs on draw k.

    Args:
        task: The task.
        draw: Counted from 1.
        seed: Seed of LIBERO's generator.
        resets_before: As for `stock_draw`.

    Raises:
        ValueError: If ``draw`` is no whole number from 1 to 1000, ``seed`` none from 0 to 2**32 - 1, or
            ``resets_before`` none from 0 to 10**6.
    """
    draw, seed, resets_before = check_draw(draw), check_seed(seed), check_resets(resets_before)
    if (draw, seed, resets_before) == (1, 0, 0):
        return compile_task(task).fixtures
    return stock_draw(task, draw, seed, resets_before).fixtures


def stock_draw(task: Task, draw: int = 1, seed: int = 0, resets_before: int = 0) -> Draw:
    """What stock LIBERO's ``draw``-th reset after ``seed(seed)`` leaves.

    Args:
        task: The task.
        draw: Counted from 1.
        seed: Seed of LIBERO's generator.
        resets_before: Resets between the environment's making and its seeding. They matter where
            `bddl.Problem.draws_joints`.

    Raises:
        ValueError: As `fixture_draw`.
    """
    draw, seed, resets_before = check_draw(draw), check_seed(seed), check_resets(resets_before)
    prepare(task, draw, seed, resets_before)
    return _kept[_key(task, seed, resets_before)][draw - 1]


def check_draw(draw: int) -> int:
    """The number of a draw as an int.

    Raises:
        ValueError: If it is no whole number from 1 to `MAX_DRAW`.
    """
    return whole_number("fixture_draw", draw, 1, MAX_DRAW)


def check_seed(seed: int) -> int:
    """The seed as an int.

    Raises:
        ValueError: If it is no whole number from 0 to `MAX_SEED`.
    """
    return whole_number("fixture_seed", seed, 0, MAX_SEED)


def check_resets(resets_before: int) -> int:
    """The number of resets before seeding as an int.

    Raises:
        ValueError: If it is no whole number from 0 to `MAX_RESETS`.
    """
    return whole_number("fixture_resets", resets_before, 0, MAX_RESETS)


def prepare(task: Task, draws: int, seed: int = 0, resets_before: int = 0) -> None:
    """Make the first ``draws`` draws of a seed now, or read them from the cache, and keep them for `stock_draw`.

    If nothing is cached, a block of 50 draws takes 3-8 s. A task's first block takes seconds more, whatever its size.
    """
    block = 1 if draws == 1 else BLOCK  # many ask for draw 1 alone, of seed after seed
    key = _key(task, seed, resets_before)
    if len(_kept.get(key, [])) >= draws:
        return
    with _one_process(key):
        found = _read(key)
        if len(found) < draws:
            found = _draw(task, -(-draws // block) * block, seed, resets_before)
            cache.write(key, _to_bytes(found))
    _kept[key] = found


class _Drawer:
    """A stock environment that draws for one task.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        self.key = task_key(task)
        self._env = make_stock_env(task.bddl_file)
        self._joint_samplers = list(self._env.env.object_property_initializers)
        reset_without_visuals(self._env)

    def draw(self, draws: int, seed: int, resets_before: int) -> list[Draw]:
        """The first draws of a seed: samplers use more of the generator at each reset, so nothing can be skipped."""
        # All that earlier resets leave: each adds the samplers of drawers and knobs to the list once more.
        self._env.env.object_property_initializers = self._joint_samplers * (1 + resets_before)
        self._env.seed(seed)
        found = []
        for _ in range(draws):
            stock_reset(self._env)
            found.append(Draw(read_draw(self._env), self._env.get_sim_state()))
        return found


_drawer: _Drawer | None = None  # the latest; making one takes seconds


def _draw(task: Task, draws: int, seed: int, resets_before: int = 0) -> list[Draw]:
    """The first draws of a seed; see `stock_draw`."""
    global _drawer
    logger.info("Drawing fixtures of %s, %d times after seed %d", task.name, draws, seed)
    with generators_kept():
        if _drawer is None or _drawer.key != task_key(task):
            _drawer = _Drawer(task)
        return _drawer.draw(draws, seed, resets_before)


def _key(task: Task, seed: int, resets_before: int = 0) -> str:
    after = f"-after{resets_before}" if resets_before else ""
    return f"{task_key(task)}-draws-with-states-seed{seed}{after}"


def _to_bytes(draws: list[Draw]) -> bytes:
    """The arrays of `FixtureDraw`, and the states, each stacked over draws."""
    buffer = io.BytesIO()
    names = vars(draws[0].fixtures)
    stacked: dict[str, Any] = {name: np.stack([getattr(draw.fixtures, name) for draw in draws]) for name in names}
    np.savez(buffer, states=np.stack([draw.state for draw in draws]), **stacked)
    return buffer.getvalue()


def _read(key: str) -> list[Draw]:
    """The draws of a seed that the cache has; an empty list if it has none."""
    blob = cache.read(key)
    if blob is None:
        return []
    with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
        stacked = dict(archive)
    states = stacked.pop("states")
    fixtures = [FixtureDraw(**{name: values[i] for name, values in stacked.items()}) for i in range(len(states))]
    return [Draw(*parts) for parts in zip(fixtures, states, strict=True)]


@contextlib.contextmanager
def _one_process(key: str) -> Iterator[None]:
    """Let one process at a time draw this; the others wait, and find it in the cache. Without a cache nobody waits."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError):
            while cache.cache_limit_bytes():
                path = cache.cache_dir() / f".{key}.lock"
                path.parent.mkdir(parents=True, exist_ok=True)
                stream = stack.enter_context(path.open("w"))
                fcntl.flock(stream, fcntl.LOCK_EX)
                if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    stack.callback(path.unlink, missing_ok=True)
                    break  # else its holder removed it while this process waited, and another may have made a new one
        yield
