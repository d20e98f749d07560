"""The scripted expert solves tasks from official initial states, and recovers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from libero_gym.common.mujoco_import import mujoco
from libero_gym.compilation.compile import compile_task
from libero_gym.env import LiberoEnv
from libero_gym.experts.arm import Arm
from libero_gym.experts.carrying import Carrying
from libero_gym.experts.expert import Expert, run_expert
from libero_gym.experts.geometry import box_surface, long_axis, rotation_about_z, rotation_vector, tilted
from libero_gym.experts.grasps import GraspOptions, plan_grasps
from libero_gym.experts.joints import Joints
from libero_gym.simulation import goals
from libero_gym.simulation.simulator import SETTLE_ACTION, Simulator
from libero_gym.tasks import SUITES, get_tasks, initial_states


def settled(suite: str, task_id: int) -> Simulator:
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[0])
    for _ in range(10):
        simulator.step(SETTLE_ACTION)
    return simulator


@pytest.mark.parametrize(
    ("suite", "task_id"),
    [
        ("libero_spatial", 0),  # pick, and place on a plate
        ("libero_object", 0),  # into a basket
        ("libero_goal", 0),  # open a drawer
        ("libero_goal", 3),  # open a drawer over a bowl, and put the bowl in
        ("libero_goal", 5),  # drag a plate
        ("libero_goal", 7),  # turn a knob
        ("libero_10", 9),  # put a mug in a microwave from the side, and close its door
    ],
)
def test_solves_and_leaves_the_goal_at_rest(suite: str, task_id: int) -> None:
    task = get_tasks(suite)[task_id]
    outcome = run_expert(Simulator(compile_task(task)), initial_states(task)[0], SUITES[suite].max_steps)
    assert outcome.success, outcome
    assert outcome.rests, outcome


def test_picks_again_after_the_object_moved_from_between_the_closing_fingers() -> None:
    simulator = settled("libero_object", 0)
    expert = Expert(simulator)
    closings, gripper = 0, -1.0
    for _ in range(280):
        action = expert.act()
        closings += action[6] > gripper
        if closings == 1 and action[6] > gripper:
            # Sideways out of the hand: half a finger is 1 cm wide, the can has a radius of 3.3 cm.
            across = simulator.data.site_xmat[simulator.compiled.robot.eef_site].reshape(3, 3)[:2, 1]
            simulator.data.joint("alphabet_soup_1_joint0").qpos[:2] += 0.08 * across
        gripper = action[6]
        simulator.step(action)
        if simulator.success:
            break
    assert closings == 2
    assert simulator.success


def test_equal_seeds_give_equal_actions() -> None:
    runs = []
    for seed in (0, 0, 1):
        simulator = settled("libero_spatial", 0)
        expert = Expert(simulator, noise=0.1, seed=seed)
        actions = []
        for _ in range(15):
            actions.append(expert.act())
            simulator.step(actions[-1])
        runs.append(np.array(actions))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert np.abs(runs[0]).max() <= 1.0


def test_an_expert_turns_to_the_simulator_that_an_environment_has_taken() -> None:
    env = LiberoEnv("libero_goal", task_id=0, cameras=(), settle_steps=2)
    env.reset(options={"init_state_id": 0})
    expert = Expert(env.simulator)
    expert.act()
    env.reset(options={"init_state_id": 0, "fixture_seed": 7})
    before = expert.simulator
    expert.reset()
    assert expert.simulator is before
    expert.reset(env.simulator)
    other = Expert(env.simulator)
    for _ in range(3):
        action = expert.act()
        np.testing.assert_array_equal(action, other.act())
        env.step(action)
    assert expert.simulator is env.simulator is not before


def test_a_box_too_wide_for_the_hand_is_grasped_across_its_short_side() -> None:
    box = box_surface(np.array([0.05, 0.02, 0.03]), 0.003)
    best = plan_grasps(box, np.zeros((0, 3)), GraspOptions(), hand_yaw=np.pi / 2)[0]
    assert abs(best.yaw - np.pi / 2) < 0.2  # closes along y
    np.testing.assert_allclose(best.pos[:2], 0.0, atol=0.01)


def test_a_grasp_out_of_the_arms_easy_reach_is_taken_only_without_a_nearer_one() -> None:
    bar = box_surface(np.array([0.06, 0.02, 0.03]), 0.003)
    best = plan_grasps(bar, np.zeros((0, 3)), GraspOptions(centering=1.0, base=(-0.7, 0.0)), hand_yaw=np.pi / 2)[0]
    assert best.pos[0] < -0.01  # the middle is 2 cm beyond that reach


def test_the_long_axis_is_that_of_a_turned_book_and_a_square_has_none() -> None:
    book = box_surface(np.array([0.055, 0.014, 0.067]), 0.003) @ rotation_about_z(0.7).T
    axis = long_axis(book)
    assert axis is not None
    assert abs(axis @ [np.cos(0.7), np.sin(0.7)]) == pytest.approx(1.0, abs=1e-3)
    assert long_axis(box_surface(np.array([0.04, 0.04, 0.02]), 0.003)) is None


def test_a_tilted_hand_is_a_rotation_that_points_against_the_pull() -> None:
    hand = tilted(np.array([0.0, 1.0, 0.0]), np.pi / 2, vertical=True)
    np.testing.assert_allclose(hand.T @ hand, np.eye(3), atol=1e-12)
    assert np.linalg.det(hand) == pytest.approx(1.0)
    np.testing.assert_allclose(hand[:, 2], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation_vector(hand @ hand.T), 0.0, atol=1e-7)


def test_of_several_joints_the_first_that_is_not_there_yet_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = settled("libero_goal", 0)
    joints = Joints(Arm(simulator))
    drawers = tuple(f"wooden_cabinet_1_{level}_level" for level in ("top", "middle", "bottom"))
    closed = goals.JointThreshold(drawers, threshold=-0.005, above=True, inclusive=False, every=True)
    asked: list[str] = []
    monkeypatch.setattr(joints, "close_drawer", lambda joint: asked.append(joint) or ())
    for position in (-0.1, 0.0):
        simulator.data.joint(drawers[2]).qpos[:] = position
        simulator.data.joint(drawers[1]).qpos[:] = 0.0
        simulator.data.joint(drawers[0]).qpos[:] = 0.0
        list(joints.achieve(closed))
    assert asked == [drawers[2], drawers[0]]


@pytest.mark.parametrize(("limits", "sign"), [("-0.16 0.01", -1.0), ("0 0.16", 1.0)])
def test_a_drawer_opens_towards_the_far_end_of_its_joint(
    limits: str, sign: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f'<body><joint name="d" type="slide" axis="0 1 0" range="{limits}"/><geom size="0.1" mass="1"/></body>'
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><compiler autolimits="true"/><worldbody>{body}</worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    data.joint("d").qpos[:] = sign * 0.05
    mujoco.mj_forward(model, data)
    joints = Joints(SimpleNamespace(simulator=SimpleNamespace(model=model, data=data)))
    assert joints.opened("d") == 0.05
    np.testing.assert_array_equal(joints.pull("d"), [0, sign, 0])
    asked: list[str] = []
    monkeypatch.setattr(joints, "close_drawer", lambda joint: asked.append("close") or ())
    monkeypatch.setattr(joints, "open_drawer", lambda joint: asked.append("open") or ())
    for threshold, above in ((0.1 * sign, sign > 0), (0.005 * sign, sign < 0)):
        list(joints.achieve(goals.JointThreshold(("d",), threshold, above=above, inclusive=False, every=False)))
    assert asked == ["open", "close"]


def test_objects_of_one_site_are_spread_within_it() -> None:
    carrying = Carrying.__new__(Carrying)
    for n, places in ((1, [0]), (2, [-1, 1]), (3, [-1, 0, 1])):
        goal: list[Any] = [SimpleNamespace(site="region", number=i) for i in range(n)]
        carrying.goal = [SimpleNamespace(site="another"), *goal]  # type: ignore[assignment, list-item]
        assert [carrying._shares_target(predicate) for predicate in goal] == places
