"""LIBERO's own environment and ours, side by side: every key, flag and state is the same to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from comparing import random_actions

from libero_gym.common.mujoco_import import mujoco
from libero_gym.stock import generators_kept, import_stock, quiet
from libero_gym.stock_api.environment import OffScreenRenderEnv, SegmentationRenderEnv
from libero_gym.stock_api.sim import Names
from libero_gym.tasks import Task, get_tasks, initial_states

pytestmark = pytest.mark.opengl
ARGUMENTS: dict[str, Any] = {"camera_heights": 32, "camera_widths": [40, 32], "camera_depths": [True, False]}


class Pair:
    """Both environments of a task; a call is made on each, and both answers come back."""

    def __init__(self, task: Task, ours: type[OffScreenRenderEnv] = OffScreenRenderEnv, **arguments: Any) -> None:
        import_stock()
        from libero.libero import envs

        self.task = task
        with generators_kept(), quiet():
            self.stock = getattr(envs, ours.__name__)(bddl_file_name=str(task.bddl_file), **ARGUMENTS | arguments)
        self.ours = ours(bddl_file_name=str(task.bddl_file), **ARGUMENTS | arguments)

    def call(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        self._draw_stock_next()
        with quiet():
            return getattr(self.stock, name)(*arguments), getattr(self.ours, name)(*arguments)

    def same(self, name: str, *arguments: Any) -> dict[str, Any]:
        """A call that gives an observation. Ours is given back."""
        stock, ours = self.call(name, *arguments)
        assert_same(stock, ours)
        return ours

    def steps(self, actions: list[np.ndarray], seen: bool = True) -> None:
        for action in actions:
            (stock, *stock_rest), (ours, *our_rest) = self.call("step", action)
            assert stock_rest == our_rest
            if seen:
                assert_same(stock, ours)
            np.testing.assert_array_equal(*self.call("get_sim_state"))
            stock_arm, our_arm = (env.robots[0].controller for env in (self.stock, self.ours))
            np.testing.assert_array_equal(stock_arm.ee_ori_mat, our_arm.ee_ori_mat)
            np.testing.assert_array_equal(stock_arm.ee_pos, our_arm.ee_pos)
        assert len(set(self.call("check_success"))) == 1

    def _draw_stock_next(self) -> None:
        context = self.stock.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()  # ours was current


def assert_same(stock: dict[str, Any], ours: dict[str, Any]) -> None:
    assert list(stock) == list(ours)
    for key, value in stock.items():
        np.testing.assert_array_equal(value, ours[key], err_msg=key, strict=True)


@pytest.fixture(scope="module")
def kitchen() -> Iterator[Pair]:
    """A mug and a microwave whose door resets draw; seeded after two resets, as programs do that reset first."""
    pair = Pair(get_tasks("libero_10")[9])
    with generators_kept():
        pair.call("seed", 0)
        for _ in range(2):
            pair.call("reset")
        pair.call("seed", 3)
        yield pair
        pair.call("close")


def test_an_episode_from_where_resets_put_things_is_stocks(kitchen: Pair) -> None:
    reset = kitchen.same("reset")
    assert reset["agentview_image"].shape == (32, 40, 3)
    assert reset["agentview_image"].std() > 10
    assert reset["agentview_depth"].shape == (32, 40, 1)
    kitchen.steps(random_actions(3))
    kitchen.same("reset")
    kitchen.steps(random_actions(2))


def test_an_episode_from_an_initial_state_is_stocks(kitchen: Pair) -> None:
    kitchen.call("reset")
    kitchen.same("set_init_state", initial_states(kitchen.task)[3])
    kitchen.steps(random_actions(30), seen=False)
    kitchen.steps(random_actions(2))
    middle = kitchen.stock.get_sim_state()
    kitchen.steps(random_actions(2, seed=4), seen=False)
    kitchen.same("regenerate_obs_from_state", middle)
    kitchen.steps(random_actions(3, seed=5))
    kitchen.call("set_state", middle)
    kitchen.steps(random_actions(2, seed=6))


def test_goal_poses_may_be_absolute(kitchen: Pair) -> None:
    kitchen.call("reset")
    kitchen.same("set_init_state", initial_states(kitchen.task)[4])
    place = kitchen.stock.robots[0].controller.ee_pos.copy()
    for env in (kitchen.stock, kitchen.ours):
        env.robots[0].controller.use_delta = False
    actions = [np.array([*(place + 0.02 * k), 3.0, 0.1 * k, 0.0, -1.0]) for k in range(5)]
    kitchen.steps(actions)
    kitchen.steps([np.zeros(7)], seen=False)
    for env in (kitchen.stock, kitchen.ours):
        env.robots[0].controller.use_delta = True


def test_further_cameras_names_and_arrays_are_stocks(kitchen: Pair) -> None:
    kitchen.call("reset")
    kitchen.same("set_init_state", initial_states(kitchen.task)[5])
    kitchen.steps(random_actions(3), seen=False)
    assert_same(kitchen.stock.env._get_observations(), kitchen.ours.env._get_observations())
    kitchen._draw_stock_next()
    arguments = {"width": 48, "height": 32, "camera_name": "frontview", "depth": True}
    for one, other in zip(kitchen.stock.sim.render(**arguments), kitchen.ours.sim.render(**arguments), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    for sim in (kitchen.stock.sim, kitchen.ours.sim):
        sim.forward()
    names = [name for name in kitchen.stock.sim.model.body_names if name]
    assert len(names) > 20
    for name in names:
        assert kitchen.stock.sim.model.body_name2id(name) == kitchen.ours.sim.model.body_name2id(name)
        np.testing.assert_array_equal(
            kitchen.stock.sim.data.get_body_xpos(name), kitchen.ours.sim.data.get_body_xpos(name)
        )
    body = kitchen.ours.sim.model.body_name2id(names[-1])
    np.testing.assert_array_equal(kitchen.stock.sim.data.body_xquat[body], kitchen.ours.sim.data.body_xquat[body])
    joint = kitchen.stock.sim.model.joint_names[0]
    assert kitchen.stock.sim.data.get_joint_qpos(joint) == kitchen.ours.sim.data.get_joint_qpos(joint)
    flat = kitchen.stock.sim.get_state().flatten()
    np.testing.assert_array_equal(flat, kitchen.ours.sim.get_state().flatten())
    assert kitchen.ours.language_instruction == kitchen.stock.language_instruction
    assert kitchen.ours.obj_of_interest == kitchen.stock.obj_of_interest
    with pytest.raises(ValueError, match='No "body" with name nobody'):
        kitchen.ours.sim.model.body_name2id("nobody")
    with pytest.raises(AttributeError, match=r"no robots\[0\].recent_qpos"):
        kitchen.ours.robots[0].recent_qpos  # noqa: B018


def test_segmentations_are_stocks() -> None:
    """A stove's flame does not show where something is segmented, burning or not."""
    pair = Pair(get_tasks("libero_goal")[7], SegmentationRenderEnv, camera_segmentations=["instance", "class"])
    with generators_kept():
        pair.call("seed", 0)
        pair.same("reset")
        state = initial_states(pair.task)[0]
        state = state.copy()
        joint = pair.ours.sim.model.get_joint_qpos_addr("flat_stove_1_button")
        state[1 + joint] = 1.0
        pair.same("set_init_state", state)
        pair.steps([np.zeros(7)])
        seen = pair.same("regenerate_obs_from_state", state)["agentview_segmentation_instance"]
        assert len(np.unique(seen)) > 5
        for name in ("segmentation_id_mapping", "instance_to_id", "segmentation_robot_id"):
            assert getattr(pair.stock, name) == getattr(pair.ours, name)
        np.testing.assert_array_equal(*pair.call("get_segmentation_of_interest", seen))
        parts = pair.ours.get_segmentation_instances(seen)  # stock's stops at a robot of another name
        assert len(parts) == 8
        for name, number in pair.stock.instance_to_id.items():
            np.testing.assert_array_equal(parts[name], np.where(seen == number, number, 0))
        assert parts["flat_stove_1"].any()
        pair.call("close")


def test_old_observations_keep_what_they_saw(spatial_task: Task) -> None:
    env = OffScreenRenderEnv(spatial_task.bddl_file, camera_heights=32, camera_widths=32, renderer="fast")
    env.seed(0)
    env.reset()
    first = env.set_init_state(initial_states(spatial_task)[0])
    again = env.regenerate_obs_from_state(initial_states(spatial_task)[0])
    expected = {key: np.array(value) for key, value in again.items()}
    for action in random_actions(8):
        env.step(action)
    for key, value in expected.items():
        np.testing.assert_array_equal(first[key], value, err_msg=key)
    env.close()


def test_the_horizon_ends_an_episode_and_close_ends_all(spatial_task: Task) -> None:
    env = OffScreenRenderEnv(spatial_task.bddl_file, use_camera_obs=False, horizon=2)
    env.reset()
    env.set_init_state(initial_states(spatial_task)[0])
    for _ in range(2):
        _, reward, done, info = env.step([0.0] * 7)
        assert (reward, done, info) == (0.0, False, {})
    with pytest.raises(ValueError, match="executing action in terminated episode"):
        env.step([0.0] * 7)
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(6,\); expected \(7,\)"):
        env.step([0.0] * 6)
    env.reset()
    with pytest.raises(ValueError, match=r"needs .*time, qpos, qvel"):
        env.set_init_state(np.zeros(3))
    assert env.set_init_state(initial_states(spatial_task)[0])["robot0_eef_pos"].shape == (3,)
    with pytest.raises(AttributeError, match=r"has no reset_from_xml_string; LIBERO's own has"):
        env.reset_from_xml_string("")
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="was closed"):
        env.reset()
    with pytest.raises(AttributeError):
        env.env  # noqa: B018


def test_arrays_that_the_stand_in_lacks_are_told() -> None:
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    for names, message in (
        (Names(model, model), "stand-in has no sim.model.body_names; LIBERO's own environment has."),
        (Names(mujoco.MjData(model), model), "stand-in has no sim.data.body_names"),
    ):
        with pytest.raises(AttributeError, match=message):
            names.body_names  # noqa: B018
