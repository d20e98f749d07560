"""Where stock LIBERO puts fixtures at its n-th reset after ``seed(s)``; a compiled task has draw 1 of seed 0.

LIBERO draws the poses of cabinets, stoves and racks at every reset, from one generator that is seeded once. Draw n
therefore takes n resets, so they are drawn, and kept, in blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from libero_gym.common import cache
from libero_gym.common.checks import whole_number
from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.extraction import read_draw
from libero_gym.compilation.records import task_key
from libero_gym.simulation.compiled import FixtureDraw
from libero_gym.stock import reset_without_visuals, stock_env, stock_reset
from libero_gym.tasks import Task

BLOCK = 50  # the evaluation protocol has so many trials per task
MAX_DRAW = 1000
MAX_SEED = 2**32 - 1  # of NumPy's global generator

logger = logging.getLogger(__name__)

_kept: dict[str, list[FixtureDraw]] = {}


def fixture_draw(task: Task, draw: int = 1, seed: int = 0) -> FixtureDraw:
    """The fixtures that stock LIBERO's ``draw``-th reset after ``seed(seed)`` leaves, counted from 1.

    The evaluation protocol seeds once per task and resets before every trial, so trial k runs on draw k.

    Raises:
        ValueError: If ``draw`` is no whole number from 1 to 1000, or ``seed`` none from 0 to 2**32 - 1.
    """
    draw, seed = check_draw(draw), check_seed(seed)
    if (draw, seed) == (1, 0):
        return compile_task(task).fixtures
    prepare(task, draw, seed)
    return _kept[_key(task, seed)][draw - 1]


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


def prepare(task: Task, draws: int, seed: int = 0) -> None:
    """Make the first ``draws`` draws of a seed now, or read them from the cache, and keep them for `fixture_draw`.

    A block of 50 draws takes 3-8 s if nothing is cached.
    """
    key = _key(task, seed)
    if len(_kept.get(key, [])) >= draws:
        return
    with _one_process(key):
        found = _read(key)
        if len(found) < draws:
            found = _draw(task, -(-draws // BLOCK) * BLOCK, seed)
            cache.write(key, _to_bytes(found))
    _kept[key] = found


def _draw(task: Task, draws: int, seed: int) -> list[FixtureDraw]:
    """The first draws of a seed, from one stock environment: its samplers use more of the generator at each reset."""
    logger.info("Drawing fixtures of %s, %d times after seed %d", task.name, draws, seed)
    with stock_env(task.bddl_file, seed=seed) as env:
        found = [read_draw(env)]
        reset_without_visuals(env)
        for _ in range(draws - 1):
            stock_reset(env)
            found.append(read_draw(env))
    return found


def _key(task: Task, seed: int) -> str:
    return f"{task_key(task)}-draws-seed{seed}"


def _to_bytes(draws: list[FixtureDraw]) -> bytes:
    """The arrays of `FixtureDraw`, each stacked over draws."""
    buffer = io.BytesIO()
    stacked: dict[str, Any] = {name: np.stack([getattr(draw, name) for draw in draws]) for name in vars(draws[0])}
    np.savez(buffer, **stacked)
    return buffer.getvalue()


def _read(key: str) -> list[FixtureDraw]:
    """The draws of a seed that the cache has; an empty list if it has none."""
    blob = cache.read(key)
    if blob is None:
        return []
    with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
        stacked = dict(archive)
    return [FixtureDraw(**{name: values[i] for name, values in stacked.items()}) for i in range(len(stacked["pos"]))]


@contextlib.contextmanager
def _one_process(key: str) -> Iterator[None]:
    """Let one process at a time draw this; the others wait, and find it in the cache. Without a cache nobody waits."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError):
            path = cache.cache_dir() / f".{key}.lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(path.open("w"))
            fcntl.flock(stream, fcntl.LOCK_EX)
            stack.callback(path.unlink, missing_ok=True)
        yield
