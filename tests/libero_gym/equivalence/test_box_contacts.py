"""Face contacts of boxes have half their depth in marked models, in any process, and nowhere else."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from libero_gym.common.mujoco_import import mujoco
from libero_gym.compilation import records
from libero_gym.equivalence import box_contacts
from libero_gym.equivalence.versions import UnsupportedMujocoError, parse, traits

_WHOLE = traits(mujoco.__version__).whole_depths
_REWRITTEN = parse(mujoco.__version__) >= (3, 12)
needs_newer = pytest.mark.skipif(not _WHOLE, reason=f"MuJoCo {mujoco.__version__} halves depths by itself")

# A box lies 10 mm deep on another; beside them, two cross, edge on edge.
_BOXES = """
<mujoco>
  <worldbody>
    <geom name="table" type="box" size="0.3 0.3 0.1"/>
    <body pos="0 0 0.14"><freejoint/><geom name="block" type="box" size="0.05 0.05 0.05"/></body>
    <geom name="ridge" type="box" size="0.3 0.05 0.05" pos="5 0 0" euler="45 0 0"/>
    <body pos="5 0 0.135" euler="0 0 90"><freejoint/>
      <geom name="roof" type="box" size="0.3 0.05 0.05" euler="45 0 0"/></body>
  </worldbody>
</mujoco>
"""

# A finger opens the drawer of `libero_goal[3]`: two of its edges cross one of the handle, 1.3e-6 rad from flat.
_HANDLE = """
<mujoco>
  <worldbody>
    <geom type="box" size="0.0077 0.00817 0.04445"/>
    <body pos="-0.0043799 0.01245099 -0.00291154" quat="0.030487067 0.708923666 0.030701222 -0.703956824">
      <freejoint/><geom type="box" size="0.008 0.004 0.008"/>
    </body>
  </worldbody>
</mujoco>
"""


def depths(model: mujoco.MjModel) -> dict[str, list[float]]:
    """Depths of contacts in mm, by the upper geom."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    found: dict[str, list[float]] = {"block": [], "roof": []}
    for contact in data.contact:
        name = next(model.geom(geom).name for geom in contact.geom if model.geom(geom).name in found)
        found[name].append(round(-1e3 * contact.dist, 6))
    return found


def boxes(marked: bool) -> mujoco.MjModel:
    model = mujoco.MjModel.from_xml_string(_BOXES)
    if marked:
        box_contacts.mark(model)
    return model


@pytest.fixture(autouse=True)
def table_as_before() -> Iterator[None]:
    installed = box_contacts.is_installed()
    yield
    if installed:
        box_contacts.install()
    else:
        box_contacts.uninstall()


@needs_newer
def test_face_contacts_are_halved_and_whole_again() -> None:
    box_contacts.uninstall()
    before = depths(boxes(marked=True))
    assert before["block"] == [10.0] * 4
    box_contacts.install()
    box_contacts.install()
    halved = depths(boxes(marked=True))
    assert halved["block"] == [5.0] * 4
    assert len(halved["roof"]) == 1
    assert halved["roof"] == before["roof"]  # an edge's contact was whole in all versions
    assert depths(boxes(marked=False)) == before  # other models of this process
    box_contacts.uninstall()
    assert not box_contacts.is_installed()
    assert depths(boxes(marked=True)) == before


@pytest.mark.skipif(_REWRITTEN, reason=f"MuJoCo {mujoco.__version__} takes these edges for a face")
def test_edges_that_cross_almost_flat_are_edges() -> None:
    """The numbers are those of 3.3.2, which has whole depths at edges as all versions do."""
    model = mujoco.MjModel.from_xml_string(_HANDLE)
    if _WHOLE:
        box_contacts.mark(model)
        box_contacts.install()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(sorted(data.contact.dist), [-2.20809361e-05, -2.20595413e-05], atol=1e-10)


@pytest.mark.parametrize(("tilt", "is_axis"), [(0.0, True), (1e-13, True), (1e-8, False), (1e-6, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_normal_is_an_axis_within_rounding(tilt: float, is_axis: bool, sign: int) -> None:
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, np.array([0.5, -0.1, 0.7, np.sqrt(0.25)]))
    axes = np.concatenate([np.eye(3).ravel(), turn])
    columns = turn.reshape(3, 3).T
    for axis in range(3):
        normal = sign * (np.cos(tilt) * columns[axis] + np.sin(tilt) * columns[axis - 1])
        assert bool(box_contacts._is_axis(*normal, axes, 1)) is is_axis
        assert not box_contacts._is_axis(*normal, axes, 0)


@needs_newer
def test_copies_and_files_of_a_marked_model_are_marked() -> None:
    box_contacts.install()
    model = boxes(marked=True)
    for twin in (copy.copy(model), records.model_from_bytes(records.model_to_bytes(model))):
        assert box_contacts.is_marked(twin)
        assert depths(twin)["block"] == [5.0] * 4
    assert not box_contacts.is_marked(boxes(marked=False))


def _in_worker(install: bool, answers: object) -> None:
    if install:
        box_contacts.install()
    answers.put(depths(boxes(marked=True))["block"])  # type: ignore[attr-defined]


@needs_newer
@pytest.mark.parametrize(("method", "install"), [("fork", False), ("spawn", True)])
def test_workers_halve_too(method: str, install: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # a spawned worker imports this file as `tests...`
    box_contacts.install()
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    worker = context.Process(target=_in_worker, args=(install, answers))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    assert answers.get() == [5.0] * 4


@needs_newer
def test_a_stranger_in_the_table_is_left_alone() -> None:
    box_contacts.install()
    box_contacts.uninstall()
    table = box_contacts._table()
    own = table[box_contacts._ENTRY]
    stranger = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    table[box_contacts._ENTRY] = ctypes.cast(stranger, ctypes.c_void_p).value or 0
    try:
        with pytest.raises(UnsupportedMujocoError, match="Another library has put its own collision"):
            box_contacts.install()
    finally:
        table[box_contacts._ENTRY] = own


@pytest.mark.skipif(_WHOLE, reason=f"MuJoCo {mujoco.__version__} gives whole depths")
def test_a_version_that_halves_by_itself_is_refused_and_left_as_it_was() -> None:
    with pytest.raises(UnsupportedMujocoError, match=r"cannot be repaired.*contacts of \[-5"):
        box_contacts.install()
    assert not box_contacts.is_installed()
    assert depths(boxes(marked=True))["block"] == [5.0] * 4


def test_the_mechanism_works_in_the_exact_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that continuous integration, which has this version, runs the compiled function."""
    monkeypatch.setattr(box_contacts, "_problem", lambda: None)
    box_contacts.uninstall()
    before = depths(boxes(marked=True))
    box_contacts.install()
    assert depths(boxes(marked=True))["block"] == [depth / 2 for depth in before["block"]]
    assert depths(boxes(marked=True))["roof"] == before["roof"]
    np.testing.assert_array_equal(depths(boxes(marked=False))["block"], before["block"])
    box_contacts.uninstall()
    assert depths(boxes(marked=True)) == before
