"""The device's predicates and progress are those of `simulation.goals` and `rewards`, on states near every goal."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import mujoco
import numpy as np
import pytest

from libero_gym.compilation.compile import compile_task
from libero_gym.rewards import TaskProgress
from libero_gym.simulation import goals
from libero_gym.simulation.arrays import StateArrays
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.tasks import get_tasks, initial_states

# A task for each kind of predicate that the five suites use, alone and together: on an object, in and on a site, joints
# that open, close and turn on.
TASKS = [
    ("libero_spatial", 0),
    ("libero_object", 0),
    ("libero_goal", 0),
    ("libero_goal", 7),
    ("libero_10", 2),
    ("libero_10", 9),
    ("libero_90", 39),  # a stove is turned off
]
N_STATES = 40


def near_goal(task: CompiledTask, generator: np.random.Generator) -> mujoco.MjData:
    """A state whose objects and joints are near where the goal wants them; some predicates hold there."""
    model, data = task.physics, mujoco.MjData(task.physics)
    data.qpos[:] = initial_states(task.task)[generator.integers(10)][1 : 1 + model.nq]
    mujoco.mj_kinematics(model, data)
    thresholds = [burner.knob for burner in task.burners]
    for predicate in (*thresholds, *task.goal):  # a goal may turn off what burns
        if isinstance(predicate, goals.JointThreshold):
            for name in predicate.joints:
                address = model.jnt_qposadr[model.joint(name).id]
                data.qpos[address] = predicate.threshold + generator.choice([-0.3, -0.01, 0.01, 0.3])
            continue
        body = predicate.upper_body if isinstance(predicate, goals.OnObject) else predicate.body
        if isinstance(predicate, goals.OnObject):
            target = data.xpos[model.body(predicate.lower_body).id]
        elif isinstance(predicate, goals.Up):
            target = np.array([0, 0, 1.0])
        else:
            target = data.site_xpos[model.site(predicate.site).id]
        address = model.jnt_qposadr[model.body_jntadr[model.body(body).id]]
        data.qpos[address : address + 3] = target + generator.choice([1, 5]) * generator.normal(
            scale=[0.02, 0.02, 0.03]
        )
    mujoco.mj_forward(model, data)
    return data


def judged(
    warp: Any, device: str, task: CompiledTask, states: StateArrays, hands: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flags and potentials of these states, each in a world."""
    from libero_gym.gpu import goals as on_device

    n = len(hands)

    def column(values: np.ndarray, dtype: Any) -> Any:
        return warp.array(np.ascontiguousarray(values), dtype=dtype, device=device)

    with warp.ScopedDevice(device):
        table = on_device.goal_table([task], device)
        bodies = on_device.Bodies()
        bodies.qpos = column(states.qpos, float)
        for name in ("xpos", "xipos", "site_xpos"):
            setattr(bodies, name, column(getattr(states, name), warp.vec3))
        bodies.site_xmat = column(states.site_xmat, warp.mat33)
        world, place = np.nonzero(states.contacts[..., 0] >= 0)
        pairs = states.contacts[world, place]
        contacts = column(pairs, warp.vec2i), column(world, int)
        touching, rows = warp.zeros((n, table.kind.shape[1]), dtype=int), warp.zeros(n, dtype=int)
        count = column(np.array([len(pairs)]), int)
        warp.launch(on_device.find_touching, (len(pairs), touching.shape[1]), [count, *contacts, rows, table, touching])
        sample = column(np.pad(hands, ((0, 0), (0, 6))), float)
        flags = warp.zeros((n, 1 + 2 * len(task.burners)), dtype=int)
        phi = warp.zeros((n, 1), dtype=warp.float64)
        warp.launch(on_device.judge, n, [1, table, rows, bodies, touching, sample, flags, phi])
    return flags.numpy(), phi.numpy()[:, 0]


@pytest.mark.parametrize(("suite", "task_id"), TASKS)
def test_success_burners_and_progress_equal_those_on_the_host(warp: Any, device: str, suite: str, task_id: int) -> None:
    task = compile_task(get_tasks(suite)[task_id])
    generator = np.random.default_rng(task_id)
    parts = [StateArrays.of(near_goal(task, generator)) for _ in range(N_STATES)]
    exact = StateArrays.concatenate(parts)
    single = [field.astype(np.float32) for field in exact[:-1]]
    hands = generator.normal(size=(N_STATES, 3)).astype(np.float32) * 0.2 + single[2][:, -1]
    flags, phi = judged(warp, device, task, StateArrays(*single, contacts=exact.contacts), hands)

    states = StateArrays(*(field.astype(np.float64) for field in single), contacts=exact.contacts)
    held = goals.bind_goal(task.goal, task.physics)(states)
    np.testing.assert_array_equal(flags[:, 0] != 0, held)
    each = [predicate.bind(task.physics)(states) for predicate in task.goal]
    assert all(0 < holds.sum() < N_STATES for holds in each), [int(holds.sum()) for holds in each]
    for place, burner in enumerate(task.burners):
        burns = burner.knob.bind(task.physics)(states)
        np.testing.assert_array_equal(flags[:, 1 + place] != 0, burns)
        np.testing.assert_array_equal(flags[:, 1 + len(task.burners) + place] != 0, burns)
    expected = TaskProgress(task.goal, task.physics)(states, hands.astype(np.float64))
    np.testing.assert_allclose(phi, expected, rtol=0, atol=1e-9)


def test_frames_show_the_burners_of_the_control_step_before(warp: Any, device: str) -> None:
    """The judge of a step moves what burnt into what is shown; only an episode's beginning shows it at once."""
    from libero_gym.gpu import goals as on_device

    task = compile_task(get_tasks("libero_goal")[7])  # turn on the stove
    assert len(task.burners) == 1
    with warp.ScopedDevice(device):
        table = on_device.goal_table([task], device)
        bodies = on_device.Bodies()
        data = mujoco.MjData(task.physics)
        knob = task.burners[0].knob
        data.qpos[task.physics.jnt_qposadr[task.physics.joint(knob.joints[0]).id]] = knob.threshold + 0.2
        mujoco.mj_kinematics(task.physics, data)
        bodies.qpos = warp.array(data.qpos[None], dtype=float)
        for name in ("xpos", "xipos", "site_xpos"):
            setattr(bodies, name, warp.array(getattr(data, name)[None], dtype=warp.vec3))
        bodies.site_xmat = warp.array(data.site_xmat.reshape(1, -1, 3, 3), dtype=warp.mat33)
        rows, touching = warp.zeros(1, dtype=int), warp.zeros((1, table.kind.shape[1]), dtype=int)
        sample, phi = warp.zeros((1, 9), dtype=float), warp.zeros((1, 1), dtype=warp.float64)
        flags = warp.zeros((1, 3), dtype=int)
        for expected in ([1, 1, 0], [1, 1, 1]):
            warp.launch(on_device.judge, 1, [0, table, rows, bodies, touching, sample, flags, phi])
            assert flags.numpy()[0].tolist() == expected


def test_true_and_false_are_judged_and_what_worlds_do_not_know_is_refused(warp: Any, device: str) -> None:
    from libero_gym.gpu import goals as on_device

    task = compile_task(get_tasks("libero_goal")[8])  # the bowl on the plate
    states = StateArrays.concatenate([StateArrays.of(near_goal(task, np.random.default_rng(0))) for _ in range(4)])
    single = StateArrays(*(field.astype(np.float32) for field in states[:-1]), contacts=states.contacts)
    hands = np.zeros((4, 3), np.float32)
    for every in (True, False):
        constant = goals.JointThreshold((), 0.0, above=True, inclusive=True, every=every)
        flags, phi = judged(warp, device, dataclasses.replace(task, goal=(constant,)), single, hands)
        assert (flags[:, 0] != 0).tolist() == [every] * 4
        expected = TaskProgress((constant,), task.physics)(states, hands.astype(np.float64))
        np.testing.assert_allclose(phi, expected, rtol=0, atol=1e-9)
    for unknown in (goals.SiteUp("plate_1_main", "anything"), LeftOf()):
        told = rf"The goal {re.escape(unknown.label)} of '{task.task.name}' cannot be judged in worlds on a device"
        with pytest.raises(NotImplementedError, match=rf"{told}, which know InSite, .*; take backend='processes'\."):
            on_device.goal_table([dataclasses.replace(task, goal=(unknown,))], device)


class LeftOf:
    """A predicate of somebody's own."""

    label = "left_of(bowl, plate)"
