"""Stock LIBERO is the truth: same initial state, same actions, same bits."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_actions

from libero_gym import rendering
from libero_gym.compile import _import_stock, _stock_env, compile_task, fixture_draw
from libero_gym.simulator import SETTLE_ACTION, Simulator
from libero_gym.tasks import get_tasks, initial_states

# One task of each kind of goal and scene that the quick run can afford.
TASKS = [("libero_spatial", 0), ("libero_object", 0), ("libero_goal", 3), ("libero_10", 2)]


@pytest.mark.parametrize(("suite", "task_id"), TASKS)
def test_states_observations_and_success_equal_stock_bit_for_bit(suite: str, task_id: int) -> None:
    task = get_tasks(suite)[task_id]
    state = initial_states(task)[5]
    simulator = Simulator(compile_task(task))
    simulator.reset(state)
    with _stock_env(task) as stock:
        stock.set_init_state(state)
        for action in [*[SETTLE_ACTION] * 10, *random_actions(100)]:
            obs, _, done, _ = stock.step(action)
            simulator.step(action)
            np.testing.assert_array_equal(stock.get_sim_state(), np.asarray(simulator.get_state()))
            np.testing.assert_array_equal(obs["robot0_eef_pos"], simulator.eef_pos())
            np.testing.assert_array_equal(obs["robot0_eef_quat"], simulator.eef_quat())
            np.testing.assert_array_equal(obs["robot0_gripper_qpos"], simulator.gripper_qpos())
            assert bool(done) == simulator.success


def test_second_fixture_draw_equals_stocks_second_reset() -> None:
    task = get_tasks("libero_spatial")[0]
    state = initial_states(task)[1]
    simulator = Simulator(compile_task(task), fixture_draw(task, 2))
    simulator.reset(state)
    with _stock_env(task, resets=2) as stock:
        stock.set_init_state(state)
        for action in random_actions(20):
            stock.step(action)
            simulator.step(action)
        np.testing.assert_array_equal(stock.get_sim_state(), np.asarray(simulator.get_state()))


@pytest.mark.parametrize(("suite", "task_id"), [("libero_spatial", 0), ("libero_10", 2)])
def test_frames_equal_stock_byte_for_byte(suite: str, task_id: int) -> None:
    _import_stock()
    from libero.libero.envs import OffScreenRenderEnv

    task, size = get_tasks(suite)[task_id], 96
    state = initial_states(task)[2]
    simulator = Simulator(compile_task(task))
    simulator.reset(state)
    stock = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=size, camera_widths=size)
    try:
        stock.seed(0)
        stock.env.reset()
        obs = stock.set_init_state(state)
        for action in [None, *random_actions(4)]:
            if action is not None:
                stock.sim._render_context_offscreen.gl_ctx.make_current()  # ours was current
                obs, *_ = stock.step(action)
                simulator.step(action)
            agentview, wrist = rendering.render(simulator, ("agentview", "wrist"), size)
            np.testing.assert_array_equal(obs["agentview_image"][::-1, ::-1], agentview)
            np.testing.assert_array_equal(obs["robot0_eye_in_hand_image"][::-1, ::-1], wrist)
    finally:
        stock.sim._render_context_offscreen.gl_ctx.make_current()
        stock.close()


@pytest.mark.parametrize(
    ("suite", "task_id", "joint", "positions"),
    [
        ("libero_goal", 0, "wooden_cabinet_1_middle_level", np.linspace(-0.16, 0.0, 17)),
        ("libero_goal", 7, "flat_stove_1_button", np.linspace(-0.1, 1.0, 12)),
    ],
)
def test_joint_goals_flip_where_stocks_do(suite: str, task_id: int, joint: str, positions: np.ndarray) -> None:
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    state = np.array(initial_states(task)[0])
    address = simulator.model.joint(joint).qposadr[0] + 1
    flags = []
    with _stock_env(task) as stock:
        for position in positions:
            state[address] = position
            simulator.reset(state)
            stock.set_init_state(state)
            flags.append(simulator.success)
            assert simulator.success == bool(stock.check_success())
    assert 0 < sum(flags) < len(flags)


def test_placing_goals_agree_with_stock_around_the_target() -> None:
    """Bowl over and beside the plate, at all heights: the flags agree, and both values occur."""
    task = get_tasks("libero_spatial")[0]
    simulator = Simulator(compile_task(task))
    state = np.array(initial_states(task)[0])
    bowl = simulator.model.joint("akita_black_bowl_1_joint0").qposadr[0] + 1
    plate = simulator.model.joint("plate_1_joint0").qposadr[0] + 1
    flags = []
    with _stock_env(task) as stock:
        for dx in (0.0, 0.025, 0.035):
            for dz in np.linspace(-0.02, 0.04, 13):
                state[bowl : bowl + 3] = state[plate : plate + 3] + [dx, 0, dz]
                simulator.reset(state)
                stock.set_init_state(state)
                flags.append(simulator.success)
                assert simulator.success == bool(stock.check_success())
    assert 0 < sum(flags) < len(flags)
