"""Worlds of a scene are taken, settle once, and get further ones beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np
import pytest

from libero_gym.compilation.compile import compile_task
from libero_gym.observations import quat_to_axis_angle
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.tasks import get_tasks, initial_states

if TYPE_CHECKING:
    from libero_gym.gpu.worlds import Start


def starts_of(spatial: list[CompiledTask], n: int) -> list[Start]:
    """One from each of the first initial states, of one task after the other."""
    from libero_gym.gpu.worlds import Start

    rows = [number % len(spatial) for number in range(n)]
    states = [initial_states(spatial[row].task)[number] for number, row in enumerate(rows)]
    return [Start(row, state, spatial[row].fixtures) for row, state in zip(rows, states, strict=True)]


def test_further_worlds_copy_what_has_settled_and_leave_the_others_alone(
    spatial: list[CompiledTask], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from libero_gym.gpu.scene_batch import SceneBatch
    from libero_gym.gpu.worlds import SceneWorlds, sizes_for

    starts = starts_of(spatial, 2)
    group = SceneWorlds(spatial, 2, device, sizes_for(spatial), settle_steps=1)
    worlds = [group.take(), group.take()]
    assert group.n_free == 0
    group.start(dict(zip(worlds, starts, strict=True)))
    before = {name: group.batch.read(name).copy() for name in group.batch.columns}
    monkeypatch.setattr(SceneBatch, "begin", None)  # nothing settles again
    other = group.another(1)
    world = other.take()
    other.start({world: starts[1]})
    for name, values in before.items():
        np.testing.assert_array_equal(other.batch.read(name)[world], values[worlds[1]], err_msg=name)
        np.testing.assert_array_equal(group.batch.read(name), values, err_msg=name)
    other.batch.step(np.ones((1, 7)), np.ones(1, dtype=bool))
    assert other.batch.read("time")[world, 0] > before["time"][worlds[1], 0]
    np.testing.assert_array_equal(group.batch.read("qpos"), before["qpos"])


def test_a_table_that_is_full_forgets_and_settles_again(
    spatial: list[CompiledTask], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from libero_gym.gpu import worlds as module

    monkeypatch.setattr(module, "MAX_SETTLED", 2)
    first, second, third = starts_of(spatial, 3)
    group = module.SceneWorlds(spatial, 2, device, module.sizes_for(spatial), settle_steps=1)
    group.start({0: first, 1: second})
    before = group.batch.read("qpos").copy()
    group.start({0: third, 1: second})  # the second is known, and the third has no room
    np.testing.assert_allclose(group.batch.read("qpos")[1], before[1], rtol=0, atol=1e-6 if device == "cpu" else 1e-4)
    assert np.abs(group.batch.read("qpos")[0] - before[0]).max() > 1e-3


def test_robot_states_are_those_of_the_exact_environment() -> None:
    """Also of a hand that is not turned at all, where the axis is undefined."""
    pytest.importorskip(
        "mujoco_warp", reason="needs MuJoCo Warp, which the extra [gpu] brings: pip install mujoco-warp"
    )
    from libero_gym.gpu.worlds import robot_states

    samples = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    samples[:, 3:7] /= np.linalg.norm(samples[:, 3:7], axis=1, keepdims=True)
    samples[0, 3:7] = [1, 0, 0, 0]
    for sample, state in zip(samples, robot_states(samples), strict=True):
        axis_angle = quat_to_axis_angle(sample[[4, 5, 6, 3]].astype(np.float64))
        expected = np.concatenate([sample[:3], axis_angle, sample[7:9]])
        np.testing.assert_allclose(state, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("suite", "task_id"), [("libero_spatial", 0), ("libero_object", 0)])
def test_buffers_hold_more_than_falling_objects_need(suite: str, task_id: int) -> None:
    """They are multiples of a few sizes, and those that are given are taken."""
    pytest.importorskip(
        "mujoco_warp", reason="needs MuJoCo Warp, which the extra [gpu] brings: pip install mujoco-warp"
    )
    from libero_gym.gpu.worlds import sizes_for

    task = compile_task(get_tasks(suite)[task_id])
    sizes = sizes_for([task])
    data = mujoco.MjData(task.physics)
    data.qpos[:] = initial_states(task.task)[1][1 : 1 + task.physics.nq]
    most = np.zeros(2)
    for _ in range(100):
        mujoco.mj_step(task.physics, data)
        most = np.maximum(most, [data.ncon, data.nefc])
    assert sizes.nconmax > 1.2 * most[0]
    assert sizes.njmax > 1.2 * most[1]
    assert (sizes.nconmax % 128, sizes.njmax % 448) == (0, 0)
    assert sizes_for([task], nconmax=7).nconmax == 7
