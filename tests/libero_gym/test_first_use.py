"""Tasks are compiled before they are used, in processes of their own, and the user is told."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from own_tasks import DEFINITION, write_task

from libero_gym import first_use
from libero_gym.common import cache
from libero_gym.compilation import compile as compile_module
from libero_gym.compilation import records
from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.placements import sampled_state
from libero_gym.first_use import compile_tasks
from libero_gym.rendering.models import is_prepared
from libero_gym.stock import _registered as own_table
from libero_gym.tasks import Suite, Task, get_tasks
from libero_gym.vector import LiberoVectorEnv

TASKS = get_tasks("libero_spatial")[:2]


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_processes_leave_in_the_cache_what_this_one_would_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [compile_task(task) for task in TASKS]
    state = sampled_state(TASKS[1], 3).copy()
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path))
    caplog.clear()  # on a cold cache, compiling the expected tasks was announced
    compile_tasks(TASKS, placement_seeds=[3], max_processes=2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"Compiling 2 tasks in 2 processes: once, some 5 to 10 s each; kept in {tmp_path}" in caplog.text
    for task, compiled in zip(TASKS, expected, strict=True):
        assert is_prepared(task, "exact")
        assert not is_prepared(task, "fast")
        loaded = compile_task.__wrapped__(task)
        assert (loaded.goal, loaded.visual_key) == (compiled.goal, compiled.visual_key)
        blobs = [records.model_to_bytes(each.physics) for each in (loaded, compiled)]
        assert blobs[0] == blobs[1]
        np.testing.assert_array_equal(loaded.fixtures.pos, compiled.fixtures.pos)
    monkeypatch.setattr("libero_gym.compilation.placements._kept", {})
    np.testing.assert_array_equal(sampled_state(TASKS[1], 3), state)


@pytest.mark.usefixtures("no_processes")
def test_what_is_cached_costs_nothing_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for task in TASKS:
        compile_task(task)
        sampled_state(task, 3)
    compile_tasks(TASKS, placement_seeds=[3])
    assert caplog.records == []
    assert cache.contains(records.task_key(TASKS[0]))


def test_fast_frames_are_prepared_once_per_scene() -> None:
    """Tasks of one scene share what is packed: the second one is ready when the first is."""
    compile_tasks(TASKS, progress=False)
    compile_tasks(TASKS[:1], renderer="fast", progress=False)
    assert [is_prepared(task, "fast") for task in TASKS] == [True, True]
    assert compile_task(TASKS[0]).visual_key == compile_task(TASKS[1]).visual_key


@pytest.mark.usefixtures("no_processes")
def test_without_a_cache_tasks_are_left_to_whoever_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "0")
    compile_tasks(TASKS)


def test_processes_that_end_do_not_stop_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(first_use, "_command", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    compile_tasks(TASKS, progress=False, max_processes=2)
    said = [record.getMessage() for record in caplog.records]
    assert sorted(said) == [
        f"A task was not compiled in advance: libero_spatial {task_id}: the process that compiled it ended."
        for task_id in (0, 1)
    ]


def test_an_uncached_task_is_announced_before_it_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(Exception):
        pass

    def stop(bddl_file: object) -> None:
        raise Stop

    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(compile_module, "stock_env", stop)
    with caplog.at_level(logging.WARNING), pytest.raises(Stop):
        compile_task.__wrapped__(TASKS[0])
    assert caplog.messages == ["Compiling task 0 of libero_spatial: once, some 5 to 10 s."]


OWN_CUBE = '''
from pathlib import Path

from libero_gym.stock import as_libero, import_stock, quiet

import_stock()
with quiet(), as_libero():
    from libero.libero.envs.base_object import register_object
    from robosuite.models.objects import MujocoXMLObject

MODEL = """<mujoco model="cube"><worldbody><body>
<body name="object"><geom name="g0" type="box" size="0.02 0.02 0.02" density="400" group="0"/></body>
<site name="bottom_site" pos="0 0 -0.02"/><site name="top_site" pos="0 0 0.02"/>
<site name="horizontal_radius_site" pos="0.02 0.02 0"/>
</body></worldbody></mujoco>
"""


@register_object
class OwnCube(MujocoXMLObject):
    def __init__(self, name="own_cube", obj_name="own_cube", joints=None):
        path = Path(__file__).with_suffix(".xml")
        path.write_text(MODEL)
        super().__init__(str(path), name=name, joints=[{"type": "free"}], obj_type="all")
        self.category_name = "own_cube"
        self.rotation, self.rotation_axis = (0, 0), "z"
        self.object_properties = {"vis_site_names": {}}
'''


def test_objects_that_a_module_registers_with_libero_reach_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cubes_of_mine.py").write_text(OWN_CUBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("cubes_of_mine")
    definition = DEFINITION.replace("plate_1 - plate", "plate_1 - own_cube").replace("plate_1", "own_cube_1")
    task = Task.from_bddl(write_task(tmp_path, definition=definition))
    try:
        env = LiberoVectorEnv(1, suite=Suite("cubes", "Cubes-v0", 40, (task,)), cameras=())
        env.reset(seed=0)
        env.close()
        monkeypatch.setattr(mine.OwnCube, "__module__", "__main__")
        with pytest.raises(ValueError, match="'own_cube': registered by the program itself"):
            LiberoVectorEnv(1, suite=Suite("cubes", "Cubes-v0", 40, (task,)), cameras=())
    finally:
        del own_table()["own_cube"]
