"""Repaired models rest and look as LIBERO's do, whatever the installed MuJoCo."""

from __future__ import annotations

import numpy as np
import pytest

from libero_gym.common.mujoco_import import mujoco
from libero_gym.compilation.compile import compile_task, load_visual_model
from libero_gym.equivalence import box_contacts
from libero_gym.equivalence.versions import traits
from libero_gym.simulation import controller
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import Task, get_tasks, initial_states

_TRAITS = traits(mujoco.__version__)


def test_the_bowl_rests_on_the_ramekin() -> None:
    """LIBERO-Spatial task 5; MuJoCo from 3.4.0 on, as it is, lets it slide off (3.7 cm and more)."""
    task = get_tasks("libero_spatial")[5]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[0])
    simulator.settle(30)
    bowl, ramekin = (
        simulator.data.body(f"{name}_main").xpos for name in ("akita_black_bowl_1", "glazed_rim_porcelain_ramekin_1")
    )
    offset = 100 * np.linalg.norm((bowl - ramekin)[:2])
    assert 1.0 < offset < 1.6


def test_only_what_the_version_needs_is_repaired() -> None:
    compiled = compile_task(get_tasks("libero_spatial")[0])
    assert box_contacts.is_marked(compiled.physics) == box_contacts.is_installed() == _TRAITS.whole_depths
    flags = getattr(mujoco.mjtDisableBit, "mjDSBL_MULTICCD", None)
    assert flags is None or bool(compiled.physics.opt.disableflags & int(flags)) == _TRAITS.multiccd
    assert (compiled.physics.opt.tolerance < 1e-12) == _TRAITS.early_exits
    flags = getattr(mujoco.mjtDisableBit, "mjDSBL_ISLAND", None)
    assert flags is not None or not _TRAITS.islands
    if flags is not None:
        off = bool(compiled.physics.opt.disableflags & int(flags))
        assert off == (_TRAITS.islands and not _TRAITS.early_exits)
    spaces = getattr(load_visual_model(compiled), "tex_colorspace", None)
    if _TRAITS.colour_spaces:
        assert spaces is not None
        assert set(spaces.tolist()) == {int(mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR)}


def test_each_solve_starts_where_the_one_before_ended() -> None:
    """From 3.3.6 on MuJoCo moves the start at a step's end alone, so a reset and the loop move it themselves."""
    task = get_tasks("libero_goal")[3]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[0])
    data = simulator.data
    assert np.abs(data.qacc).max() > 1.0
    np.testing.assert_array_equal(data.qacc_warmstart, data.qacc)
    data.qacc_warmstart[:] = 0.0
    controller._solve(simulator.model._address, data._address, data.qacc, data.qacc_warmstart)
    assert np.abs(data.qacc).max() > 1.0
    np.testing.assert_array_equal(data.qacc_warmstart, data.qacc)


@pytest.mark.skipif(not _TRAITS.whole_depths, reason="this MuJoCo halves by itself")
def test_a_reset_takes_up_the_repair_that_somebody_took_out(spatial_task: Task) -> None:
    """Its results go by the repaired version's name."""
    simulator = Simulator(compile_task(spatial_task))
    box_contacts.uninstall()
    simulator.reset(initial_states(spatial_task)[0])
    assert box_contacts.is_installed()
