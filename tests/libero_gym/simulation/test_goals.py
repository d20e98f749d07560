"""Predicates on arrays: worked by hand in a world of five bodies, and many environments at once equal one by one."""

from __future__ import annotations

import math
from typing import get_args

import mujoco
import numpy as np
import pytest
from comparing import random_actions
from scenes import SCENES

from libero_gym.compilation.compile import compile_task
from libero_gym.observations import proprioception
from libero_gym.privileged import SIZE, PrivilegedState
from libero_gym.rewards import TaskProgress, nearness
from libero_gym.simulation import goals
from libero_gym.simulation.arrays import NO_GEOM, StateArrays
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import get_tasks, initial_states

WORLD = mujoco.MjModel.from_xml_string("""
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <site name="region" type="box" size=".1 .2 .05" pos="1 0 .5"/>
    <body name="plate_1_main"><freejoint/><geom name="plate" type="box" size=".1 .1 .01"/></body>
    <body name="left"><joint name="left" type="slide" axis="1 0 0" range="-.2 0"/><geom size=".1"/></body>
    <body name="right"><joint name="right" type="slide" axis="1 0 0" range="0 .4"/><geom size=".1"/></body>
    <body name="bowl_1_main"><freejoint/><geom name="bowl" type="sphere" size=".03"/></body>
  </worldbody>
</mujoco>
""")
ON = goals.OnObject("bowl_1_main", "plate_1_main", ("bowl",), ("plate",))
ON_SITE = goals.OnSite("bowl_1_main", "region", (0.1, 0.2, 0.05), ("bowl",), ("plate",))
ON_TABLE = goals.OnSite("bowl_1_main", "region", (0.1, 0.2, 0.05), ("bowl",), None)
IN_SITE = goals.InSite("bowl_1_main", "region", (0.1, 0.2, 0.05))
ANY_CLOSED = goals.JointThreshold(("left", "right"), 0.1, above=False, inclusive=False, every=False)
ALL_OPEN = goals.JointThreshold(("left", "right"), -0.1, above=True, inclusive=True, every=True)
UP = goals.Up("bowl_1_main")
SITE_UP = goals.SiteUp("bowl_1_main", "region")
TRUE, FALSE = (goals.JointThreshold((), 0.0, above=True, inclusive=True, every=every) for every in (True, False))
KINDS = (ON, ON_SITE, ON_TABLE, IN_SITE, ANY_CLOSED, ALL_OPEN, UP, SITE_UP, TRUE, FALSE)


def worlds(n: int) -> StateArrays:
    """The world at rest with everything at its origin, n times, no contacts; the last geom, the bowl, would be -1."""
    data = mujoco.MjData(WORLD)
    data.qpos[:] = 0
    data.qpos[[3, 12]] = 1  # unit quaternions
    mujoco.mj_kinematics(WORLD, data)
    mujoco.mj_comPos(WORLD, data)
    none = np.full((1, 3, 2), NO_GEOM)
    return StateArrays.concatenate([StateArrays.of(data)._replace(contacts=none)] * n)


def bowls_at(*places: tuple[float, float, float]) -> StateArrays:
    state = worlds(len(places))
    state.xpos[:, WORLD.body("bowl_1_main").id] = places
    return state


def touch(state: StateArrays, row: int, first: str, second: str) -> None:
    state.contacts[row, 1] = WORLD.geom(first).id, WORLD.geom(second).id


def holds(predicate: goals.Predicate, state: StateArrays) -> list[bool]:
    return list(predicate.bind(WORLD)(state))


def test_every_kind_is_visited() -> None:
    assert {type(predicate) for predicate in KINDS} == set(get_args(goals.Predicate))
    assert goals.from_json(goals.to_json(KINDS)) == KINDS


def test_on_object_needs_contact_nearness_and_height() -> None:
    state = bowls_at((0, 0.02, 0.04), (0, 0.02, 0.04), (0, 0.04, 0.04), (0, 0, -0.04), (0, 0, 0.04), (0, 0, 0.04))
    for row in (0, 2, 3):
        touch(state, row, "bowl", "plate")
    touch(state, 4, "plate", "bowl")
    touch(state, 5, "bowl", "floor")
    # Touches; apart; beside; below; the other way round; touches another thing.
    assert holds(ON, state) == [True, False, False, False, True, False]


def test_on_site_needs_a_place_over_the_box_and_contact_if_it_belongs_to_something() -> None:
    state = bowls_at(
        *((1, 0, 0.5 + height) for height in (0.06, 0.14, 0.16, 0.04)),
        *((1 + x, y, 0.56) for x, y in ((0.09, 0.19), (0.11, 0), (0, 0.21))),
    )
    inside = [True, True, False, False, True, False, False]
    assert holds(ON_TABLE, state) == inside
    assert holds(ON_SITE, state) == [False] * 7
    for row in range(7):
        touch(state, row, "plate", "bowl")
    assert holds(ON_SITE, state) == inside


def test_in_site_has_a_centimetre_of_slack_at_the_floor_alone() -> None:
    places = (0, 0, 0), (0.09, -0.19, 0.04), (0, 0, 0.051), (0, 0, -0.059), (0, 0, -0.061), (0.101, 0, 0), (0, 0.201, 0)
    state = bowls_at(*(tuple(np.add(place, (1, 0, 0.5))) for place in places))
    assert holds(IN_SITE, state) == [True, True, False, True, False, False, False]


def test_a_site_that_is_turned_turns_its_box() -> None:
    state = bowls_at((1, 0.15, 0.5), (1.15, 0, 0.5))
    assert holds(IN_SITE, state) == [True, False]
    state.site_xmat[:] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    assert holds(IN_SITE, state) == [False, True]


def test_joints_are_compared_one_or_all_at_the_threshold_or_beyond() -> None:
    state = worlds(4)
    left, right = (WORLD.joint(name).qposadr[0] for name in ("left", "right"))
    state.qpos[:, left], state.qpos[:, right] = [0.1, 0.0, 0.2, -0.1], [0.1, 0.2, 0.2, -0.2]
    assert holds(ANY_CLOSED, state) == [False, True, False, True]
    assert holds(ALL_OPEN, state) == [True, True, True, False]


def test_up_is_a_metre() -> None:
    assert holds(UP, bowls_at((0, 0, 0.99), (0, 0, 1.0))) == [False, True]
    state = worlds(2)  # the region is at half a metre
    state.site_xpos[1, WORLD.site("region").id, 2] = 1.0
    assert holds(SITE_UP, state) == [False, True]


def test_no_joints_are_all_where_they_should_be_and_none_is() -> None:
    """LIBERO's True and False; no motion brings them nearer."""
    state, hand = worlds(3), np.ones((3, 3))
    assert (holds(TRUE, state), holds(FALSE, state)) == ([True] * 3, [False] * 3)
    assert (TRUE.label, FALSE.label) == ("true", "false")
    progress = TaskProgress((TRUE, FALSE, SITE_UP), WORLD)
    shares = progress.shares(state, hand)
    np.testing.assert_allclose(shares[0, :2], [[0.3, 0.5, 0.2], [0, 0, 0]], err_msg="nothing to reach")
    np.testing.assert_allclose(shares[0, 2, 1], 0.5 * nearness(0.5), err_msg="the bowl has to rise by half a metre")
    features = PrivilegedState((TRUE, FALSE), WORLD)(state, np.ones((3, 8)), 1.0)[0, 9:]
    np.testing.assert_array_equal(features.reshape(-1, 14)[:, :3], [[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert features.sum() == 3


def test_a_goal_is_all_of_its_predicates() -> None:
    state = bowls_at((0, 0, 0.04), (1, 0, 0.5), (1, 0, 0.5))
    state.qpos[2, [WORLD.joint(name).qposadr[0] for name in ("left", "right")]] = 0.3
    assert list(goals.bind_goal((IN_SITE, ANY_CLOSED), WORLD)(state)) == [False, True, False]


def test_progress_by_hand() -> None:
    state = bowls_at((0, 0, 0.5), (0.03, 0.04, 0.0))
    touch(state, 1, "bowl", "plate")
    progress = TaskProgress((ON, ALL_OPEN), WORLD)
    joints = [WORLD.joint(name).qposadr[0] for name in ("left", "right")]
    state.qpos[0, joints] = -0.15, 0.0  # lacks a quarter of the left drawer's range of 0.2
    hand = np.array([[0.0, 0.1, 0.5], [0.0, 0.0, 0.0]])
    shares = progress.shares(state, hand)
    far = nearness(math.hypot(0.1, 0.5))
    np.testing.assert_allclose(shares[0], [[0.3 * nearness(0.1), 0.5 * nearness(0.5), 0], [0.3 * far, 0.5 * 0.75, 0]])
    np.testing.assert_allclose(shares[1], [[0.3 * nearness(0.05), 0.5 * nearness(0.05), 0], [0.3, 0.5, 0.2]])
    np.testing.assert_allclose(progress(state, hand), shares.sum(axis=(1, 2)) / 2)
    assert progress.names[:2] == ("on(bowl_1, plate_1)/reach", "on(bowl_1, plate_1)/place")
    terms = progress.terms(shares)
    np.testing.assert_allclose(sum(terms.values()), progress(state, hand))
    np.testing.assert_allclose(terms["above(left, right, -0.1)/hold"], [0.0, 0.1])


def test_padding_is_no_contact() -> None:
    """The bowl is the last geom, which is what -1 would index."""
    assert WORLD.geom("bowl").id == WORLD.ngeom - 1
    state = bowls_at((0, 0, 0.04))
    state.contacts[0, 0] = NO_GEOM, WORLD.geom("plate").id
    assert holds(ON, state) == [False]


@pytest.mark.parametrize(("suite", "task_id"), SCENES)
def test_many_environments_at_once_equal_one_by_one(suite: str, task_id: int) -> None:
    """Predicates, progress and privileged features, to the bit; of the goal, and of all kinds about its objects."""
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    goal, model = simulator.compiled.goal, simulator.model
    checks = [predicate.bind(model) for predicate in (*goal, *_others(goal, model))]
    progress, privileged = TaskProgress(goal, model), PrivilegedState(goal, model)
    singles, robots, fingertips, alone = [], [], [], []
    for number, state in enumerate(_states(simulator)):
        simulator.reset(state)
        for action in random_actions(number % 3, seed=number):
            simulator.step(action)
        robot, eef_pos = proprioception(simulator)[None], simulator.eef_pos()[None].copy()
        view = simulator.arrays
        shares = progress.shares(view, eef_pos)
        results = [
            np.stack([check(view) for check in checks], axis=-1),
            goals.bind_goal(goal, model)(view),
            shares,
            progress(view, eef_pos),
            privileged(view, robot, number / 10),
        ]
        assert bool(results[1][0]) == simulator.success
        assert list(results[0][0, : len(goal)]) == simulator.predicates()
        np.testing.assert_allclose(sum(progress.terms(shares).values()), results[3])
        alone.append(results)
        singles.append(StateArrays.concatenate([view]))  # a copy: the view follows the simulator
        robots.append(robot)
        fingertips.append(eef_pos)
    batch, robot, eef_pos = StateArrays.concatenate(singles), np.concatenate(robots), np.concatenate(fingertips)
    n = len(alone)
    assert batch.contacts.shape == (n, max(single.contacts.shape[1] for single in singles), 2)
    assert (batch.contacts == NO_GEOM).any()
    together = [
        np.stack([check(batch) for check in checks], axis=-1),
        goals.bind_goal(goal, model)(batch),
        progress.shares(batch, eef_pos),
        progress(batch, eef_pos),
        privileged(batch, robot, np.arange(n) / 10),
    ]
    assert together[4].shape == (n, SIZE)
    assert together[4].dtype == np.float32
    for index, values in enumerate(together):
        np.testing.assert_array_equal(values, np.concatenate([results[index] for results in alone]))
    held = together[0].mean(axis=0)
    assert ((held > 0) & (held < 1)).any()


def _states(simulator: Simulator) -> list[np.ndarray]:
    """Official initial states, and the same with what the goal is about planted at its target or threshold."""
    official = initial_states(simulator.compiled.task)[:6]
    rng, planted = np.random.default_rng(0), []
    for state in official:
        simulator.reset(state)
        moved = np.array(state)
        for predicate in simulator.compiled.goal:
            if isinstance(predicate, goals.JointThreshold):
                addresses = [simulator.model.joint(name).qposadr[0] for name in predicate.joints]
                moved[1 + np.array(addresses)] = predicate.threshold + rng.uniform(-0.02, 0.02)
                continue
            relation = predicate.bind_relation(simulator.model)(simulator.arrays)
            body = getattr(predicate, "upper_body", getattr(predicate, "body", ""))
            address = 1 + simulator.model.joint(int(simulator.model.body(body).jntadr[0])).qposadr[0]
            target = relation.points[0, 0] + relation.to_target[0]
            moved[address : address + 3] = target + rng.uniform([-0.01, -0.01, 0], [0.01, 0.01, 0.05])
        planted.append(moved)
    return [*official, *planted]


def _others(goal: tuple[goals.Predicate, ...], model: mujoco.MjModel) -> list[goals.Predicate]:
    """Predicates of the other kinds about the bodies, sites and joints that are there."""
    bodies = [model.body(index).name for index in range(model.nbody) if model.body(index).name.endswith("_main")]
    geoms = tuple(name for index in range(model.ngeom) if (name := model.geom(index).name))
    region = model.site(model.nsite - 1).name
    joint = next(name for index in range(model.njnt) if "robot" in (name := model.joint(index).name))
    return [
        goals.OnObject(bodies[-1], bodies[0], geoms[: len(geoms) // 2], geoms[len(geoms) // 2 :]),
        goals.OnSite(bodies[-1], region, (1.0, 1.0, 0.2), geoms, None),
        goals.InSite(bodies[0], region, (0.5, 0.5, 0.5)),
        goals.JointThreshold((joint,), 0.0, above=True, inclusive=True, every=True),
        goals.Up(bodies[-1]),
        goals.SiteUp(bodies[-1], region),
    ]
