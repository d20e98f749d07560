"""Turns a task into a `CompiledTask`, once, and keeps it and the models that cameras see in the cache on disk.

Stock LIBERO is built once per task, without a renderer, reset once under ``seed(0)`` as the evaluation protocol does,
and read out (`extraction`): two MuJoCo models (physics alone, and with everything that a camera sees), the goal as
data, the fixture poses, and what the arm's controller remembers of that reset.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable

from libero_gym.common import cache
from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.recent import kept
from libero_gym.common.warn import warn_once
from libero_gym.compilation import records
from libero_gym.compilation.extraction import extract, full_model
from libero_gym.equivalence import physics, versions
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.stock import stock_env
from libero_gym.tasks import Task

logger = logging.getLogger(__name__)

# Scenes that a process keeps in memory to draw them; each takes 100-600 MB without a GPU.
_scenes = os.environ.get("LIBERO_GYM_MAX_SCENES") or "4"
if not _scenes.isdecimal() or not int(_scenes):
    raise ValueError(f"LIBERO_GYM_MAX_SCENES={_scenes!r}; expected a number of scenes, an integer from 1.")
MAX_SCENES = int(_scenes)
_visual_models: OrderedDict[str, mujoco.MjModel] = OrderedDict()  # by the scene's key


def _once(compiling: Callable[[Task], CompiledTask]) -> functools._Wrapped[[Task], CompiledTask, [Task], CompiledTask]:
    """The function with a memory of the latest tasks, by what their files hold: those can be edited meanwhile."""

    @functools.lru_cache(maxsize=128)
    def remembered(task: Task, content: str) -> CompiledTask:
        return compiling(task)

    @functools.wraps(compiling)
    def look(task: Task) -> CompiledTask:
        return remembered(task, records.task_key(task))

    return look


@_once
def compile_task(task: Task) -> CompiledTask:
    """Compile a task, or fetch it from the cache: in this process, then on disk.

    It takes 4-9 s if nothing is cached, and milliseconds otherwise.

    Raises:
        BenchmarkError: If the benchmark package is missing, or another LIBERO stands in its place.
        NotImplementedError: If the goal is none that `extraction.extract` can read out.
        RuntimeError: If LIBERO's simulator cannot be imported; the message says what is missing.
        UnsupportedMujocoError: If the installed MuJoCo is too old, or cannot be repaired (see `equivalence`).
    """
    warn_unless_exact()
    key = records.task_key(task)
    blob = cache.read(key)
    if blob is None:
        what = f"task {task.task_id} of {task.suite}" if task.suite else f"'{task.bddl_file}'"
        logger.warning("Compiling %s: once, some 5 to 10 s.", what)
        with stock_env(task.bddl_file) as env:
            compiled = extract(task, env)
            own = records.own_digest(task.bddl_file.read_bytes())
            compiled = dataclasses.replace(compiled, visual_key=compiled.visual_key + own)
            visual = records.visual_key(compiled.visual_key)
            if not cache.contains(visual):  # 30-270 MB, the same for all tasks of a scene; kept while stock is there
                cache.write(visual, records.model_to_bytes(full_model(env)))
        blob = records.to_bytes(compiled)
        cache.write(key, blob)
    # The first use takes the way through the bytes, too: it then has the very model that later uses have.
    compiled = records.from_bytes(task, blob)
    physics.repair_physics(compiled.physics)
    return compiled


def visual_model(compiled: CompiledTask) -> mujoco.MjModel:
    """The model that cameras see, 30-270 MB, for this process's renderer, which may move its bodies.

    Args:
        compiled: The task; tasks of one scene share the model.
    """
    return kept(_visual_models, compiled.visual_key, lambda: load_visual_model(compiled), MAX_SCENES)


def prepare_visual_model(compiled: CompiledTask) -> None:
    """Write the model that cameras see to the cache on disk if it is not there, and keep none in memory."""
    if not cache.contains(records.visual_key(compiled.visual_key)):
        load_visual_model(compiled)


def load_visual_model(compiled: CompiledTask) -> mujoco.MjModel:
    """As `visual_model`, but the caller's own: this process keeps none."""
    key = records.visual_key(compiled.visual_key)
    blob = cache.read(key)
    if blob is not None:
        model = records.model_from_bytes(blob)
    else:
        with stock_env(compiled.task.bddl_file) as env:
            model = full_model(env)
        cache.write(key, records.model_to_bytes(model))
    physics.repair_textures(model)
    return model


def cached_scene(task: Task) -> str | None:
    """The ``visual_key`` of a task that the cache has; None if it does not."""
    blob = cache.read(records.task_key(task))
    return None if blob is None else records.scene_of(blob)


def warn_unless_exact() -> None:
    """Warn, once per process, if the installed MuJoCo does not give LIBERO's results to the bit.

    Raises:
        UnsupportedMujocoError: If it is too old.
    """
    advice = versions.advice(mujoco.__version__)
    if advice is not None:
        warn_once(advice)
