"""Worlds of a scene are taken, settled once, and become more without a trace in those that are there."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from comparing import random_actions

from libero_gym.compilation.compile import compile_task
from libero_gym.observations import quat_to_axis_angle
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.tasks import get_tasks, initial_states


def test_a_batch_grows_in_the_middle_of_episodes(spatial: list[CompiledTask]) -> None:
    """Rows are as before to the bit, the next step is what it would have been, and the new world can be started."""
    from libero_gym.gpu.worlds import SceneWorlds, Start, sizes_for

    sizes = sizes_for(spatial)
    states = [initial_states(task.task)[0] for task in spatial]
    starts = [Start(row, state, task.fixtures) for row, (task, state) in enumerate(zip(spatial, states, strict=True))]
    actions = random_actions(4).reshape(2, 2, 7)
    ends = []
    for grows in (False, True):
        scene = SceneWorlds(spatial, 2, "cpu", sizes, settle_steps=1)
        worlds = [scene.take(), scene.take()]
        scene.start(dict(zip(worlds, starts, strict=True)))
        scene.batch.step(actions[0][np.argsort(worlds)], np.ones(2, dtype=bool))
        before = {name: scene.batch.read(name)[worlds].copy() for name in scene.batch.columns}
        if grows:
            third = scene.take()
            assert scene.batch.n_worlds == 4
            assert third not in worlds
            for name, values in before.items():
                np.testing.assert_array_equal(scene.batch.read(name)[worlds], values, err_msg=name)
            scene.start({third: starts[0]})
        n = scene.batch.n_worlds
        own, active = np.zeros((n, 7)), np.zeros(n, dtype=bool)
        own[worlds], active[worlds] = actions[1], True
        scene.batch.step(own, active)
        ends.append({name: scene.batch.read(name)[worlds].copy() for name in scene.batch.columns})
    for name in ("time", "qpos", "memory", "kinematics_qpos", "sample", "flags", "phi"):
        np.testing.assert_allclose(ends[1][name], ends[0][name], rtol=0, atol=1e-6, err_msg=name)


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
