"""Stock LIBERO is the truth: same initial state, same actions, same bits.

The wide sweeps, over every task, are in `benchmarks/fidelity.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from comparing import random_actions
from scenes import SCENES
from scripted import soup_into_basket

from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.draws import fixture_draw
from libero_gym.rendering import renderer as rendering
from libero_gym.simulation.simulator import SETTLE_ACTION, Simulator
from libero_gym.stock import import_stock, stock_env
from libero_gym.tasks import Task, get_tasks, initial_states

FRAME_SIZE, N_FRAMES = 64, 4
CAMERA_KEYS = ("agentview_image", "robot0_eye_in_hand_image")


def test_scenes_are_all_there_are_in_the_four_suites() -> None:
    suites = dict.fromkeys(suite for suite, _ in SCENES)
    every = set().union(*(_scenery(task) for suite in suites for task in get_tasks(suite)))
    assert every == set().union(*(_scenery(get_tasks(suite)[task_id]) for suite, task_id in SCENES))


@pytest.mark.opengl
@pytest.mark.parametrize(("suite", "task_id"), SCENES)
def test_states_flags_and_frames_equal_stock_bit_for_bit(suite: str, task_id: int) -> None:
    task = get_tasks(suite)[task_id]
    state = initial_states(task)[5]
    simulator = Simulator(compile_task(task))
    simulator.reset(state)
    with _stock_with_cameras(task) as stock:
        obs = stock.set_init_state(state)
        _assert_frames_equal(obs, simulator)
        for step, action in enumerate([*random_actions(100), *[SETTLE_ACTION] * 10]):
            obs = _assert_step_equal(stock, simulator, action)
            if step < N_FRAMES - 1:
                _assert_frames_equal(obs, simulator)
            elif step == N_FRAMES - 1:
                for key in CAMERA_KEYS:  # most of stock's time
                    stock.env._observables[key].set_enabled(False)


def test_an_episode_up_to_success_and_beyond_equals_stock_bit_for_bit() -> None:
    task = get_tasks("libero_object")[0]
    state = initial_states(task)[5]
    simulator = Simulator(compile_task(task))
    simulator.reset(state)
    flags = []
    with stock_env(task.bddl_file) as stock:
        stock.set_init_state(state)
        for action in soup_into_basket(simulator):
            _assert_step_equal(stock, simulator, action)
            flags.append(bool(stock.check_success()))
    first = flags.index(True)
    assert 100 < first < len(flags) - 5
    assert all(flags[first:])


@pytest.mark.parametrize(("suite", "task_id"), [("libero_10", 2), ("libero_object", 0)])
def test_reset_after_an_episode_equals_a_fresh_stock_reset(suite: str, task_id: int) -> None:
    """Nothing of the episode before is left: neither ramp, goal, controller memory nor warm start."""
    task = get_tasks(suite)[task_id]
    state = initial_states(task)[7]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[3])
    for action in random_actions(100, seed=1):
        simulator.step(action)
    simulator.reset(state)
    with stock_env(task.bddl_file) as stock:
        stock.set_init_state(state)
        for action in random_actions(50, seed=2):
            _assert_step_equal(stock, simulator, action)


@pytest.mark.parametrize(("suite", "task_id"), [("libero_10", 2), ("libero_object", 0)])
def test_leaving_and_returning_to_a_state_is_exact_to_the_bit(suite: str, task_id: int) -> None:
    """An episode with such round trips equals one without, which equals stock; observations alone would hide 1e-15."""
    task = get_tasks(suite)[task_id]
    straight, branching = Simulator(compile_task(task)), Simulator(compile_task(task))
    for simulator in (straight, branching):
        simulator.reset(initial_states(task)[7])
    for step, action in enumerate(random_actions(50, seed=2)):
        if step in (0, 1, 7, 20, 40):
            saved = branching.get_state()
            branching.reset(initial_states(task)[9])
            for elsewhere in random_actions(8, seed=3):
                branching.step(elsewhere)
            branching.set_state(saved)
        straight.step(action)
        branching.step(action)
        np.testing.assert_array_equal(straight.get_state(), branching.get_state())
        np.testing.assert_array_equal(straight.eef_pos(), branching.eef_pos())
        np.testing.assert_array_equal(straight.eef_quat(), branching.eef_quat())
        np.testing.assert_array_equal(straight.gripper_qpos(), branching.gripper_qpos())
        assert straight.success == branching.success


def _assert_step_equal(stock: Any, simulator: Simulator, action: np.ndarray) -> dict[str, Any]:
    """Step both; state, proprioception and success flag must be equal. Gives stock's observation."""
    obs, _, done, _ = stock.step(action)
    simulator.step(action)
    np.testing.assert_array_equal(stock.get_sim_state(), np.asarray(simulator.get_state()))
    np.testing.assert_array_equal(obs["robot0_eef_pos"], simulator.eef_pos())
    np.testing.assert_array_equal(obs["robot0_eef_quat"], simulator.eef_quat())
    np.testing.assert_array_equal(obs["robot0_gripper_qpos"], simulator.gripper_qpos())
    assert bool(done) == simulator.success
    return obs


def _assert_frames_equal(obs: dict[str, Any], simulator: Simulator) -> None:
    """Both cameras, byte for byte; ours are turned by 180 degrees."""
    for key, frame in zip(CAMERA_KEYS, rendering.render(simulator, ("agentview", "wrist"), FRAME_SIZE), strict=True):
        np.testing.assert_array_equal(obs[key][::-1, ::-1], frame)
        assert frame.std() > 10


@contextlib.contextmanager
def _stock_with_cameras(task: Task) -> Iterator[Any]:
    """Stock LIBERO as its evaluation makes it, reset once under ``seed(0)``; its GL context is current in steps."""
    import_stock()
    from libero.libero.envs import OffScreenRenderEnv

    stock = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=FRAME_SIZE, camera_widths=FRAME_SIZE)
    stock.seed(0)
    stock.env.reset()
    step = stock.step

    def step_in_own_context(action: np.ndarray) -> Any:
        stock.sim._render_context_offscreen.gl_ctx.make_current()  # ours was current
        return step(action)

    stock.step = step_in_own_context
    try:
        yield stock
    finally:
        stock.sim._render_context_offscreen.gl_ctx.make_current()
        stock.close()


def _scenery(task: Task) -> set[tuple[str, ...]]:
    """What a task's BDDL file builds its world of: the scene, and each kind of fixture and object in it."""
    bddl = task.bddl_file.read_text(encoding="utf-8")
    (arena,) = re.findall(r"\(define \(problem (\S+?)\)", bddl)
    (fixtures,) = re.findall(r"\(:fixtures(.*?)\)", bddl, re.DOTALL)
    (objects,) = re.findall(r"\(:objects(.*?)\)", bddl, re.DOTALL)
    fixture_kinds, object_kinds = (tuple(sorted(re.findall(r"- (\S+)", text))) for text in (fixtures, objects))
    scene = re.findall(r"^[A-Z_]+SCENE\d+", task.name)
    return {(arena, *fixture_kinds), *((arena, kind) for kind in object_kinds), *((name,) for name in scene)}


def test_second_fixture_draw_equals_stocks_second_reset() -> None:
    task = get_tasks("libero_spatial")[0]
    state = initial_states(task)[1]
    simulator = Simulator(compile_task(task), fixture_draw(task, 2))
    simulator.reset(state)
    with stock_env(task.bddl_file, resets=2) as stock:
        stock.set_init_state(state)
        for action in random_actions(20):
            stock.step(action)
            simulator.step(action)
        np.testing.assert_array_equal(stock.get_sim_state(), np.asarray(simulator.get_state()))


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
    with stock_env(task.bddl_file) as stock:
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
    with stock_env(task.bddl_file) as stock:
        for dx in (0.0, 0.025, 0.035):
            for dz in np.linspace(-0.02, 0.04, 13):
                state[bowl : bowl + 3] = state[plate : plate + 3] + [dx, 0, dz]
                simulator.reset(state)
                stock.set_init_state(state)
                flags.append(simulator.success)
                assert simulator.success == bool(stock.check_success())
    assert 0 < sum(flags) < len(flags)
