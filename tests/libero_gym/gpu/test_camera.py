"""Frames drawn by Warp look as those drawn without it, whatever else is drawn beside them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from frames import psnr

from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.draws import fixture_draw
from libero_gym.experts import Expert
from libero_gym.rendering import render
from libero_gym.rendering.models import packed_scene
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import get_tasks, initial_states

wp = pytest.importorskip("warp", reason="needs Warp: pip install warp-lang")

from libero_gym.gpu.camera import BatchCamera, SceneOnDevice  # noqa: E402
from libero_gym.gpu.host_poses import camera_for  # noqa: E402

CAMERAS = ("agentview", "wrist")


def simulated(suite: str, task_id: int, state: int = 3, steps: int = 0) -> Simulator:
    """A simulator after some steps of the expert."""
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[state])
    expert = Expert(simulator) if steps else None
    for _ in range(steps):
        assert expert is not None
        simulator.step(expert.act())
    return simulator


@functools.cache
def scene_of(suite: str, task_id: int, device: str) -> SceneOnDevice:
    return SceneOnDevice(packed_scene(compile_task(get_tasks(suite)[task_id])), device)


def drawn(simulators: list[Simulator], scene: SceneOnDevice, size: int = 64) -> np.ndarray:
    """uint8 (W, cameras, size, size, 3)."""
    camera, poses = camera_for(simulators, scene, CAMERAS, size)
    return camera.draw(poses).numpy().reshape(len(simulators), len(CAMERAS), size, size, 3)


# A stove's mirror; groceries; a rack's coplanar boards and a flame's veil; lines of a kitchen along the samples.
@pytest.mark.parametrize(
    ("suite", "task_id", "least"),
    [("libero_spatial", 0, 50), ("libero_object", 0, 47), ("libero_goal", 3, 44), ("libero_10", 2, 47)],
)
def test_frames_look_as_those_of_the_processor(suite: str, task_id: int, least: float, device: str) -> None:
    simulator = simulated(suite, task_id, steps=20)
    frames = drawn([simulator], scene_of(suite, task_id, device), 96)[0]
    for frame, fast in zip(frames, render(simulator, CAMERAS, 96, renderer="fast"), strict=True):
        assert psnr(frame, fast) > least


def test_worlds_are_drawn_as_each_alone_with_fixtures_of_its_own(device: str) -> None:
    task, scene = get_tasks("libero_spatial")[3], scene_of("libero_spatial", 0, device)  # tasks of one scene
    other = Simulator(compile_task(task), fixture_draw(task, 5))
    other.reset(initial_states(task)[9])
    simulators = [simulated("libero_spatial", 0), other]
    together = drawn(simulators, scene)
    for frames, simulator in zip(together, simulators, strict=True):
        assert np.array_equal(frames, drawn([simulator], scene)[0])
        assert psnr(frames[0], render(simulator, CAMERAS[:1], 64, renderer="fast")[0]) > 47


def test_chosen_worlds_are_drawn_in_their_order(device: str) -> None:
    scene = scene_of("libero_spatial", 0, device)
    simulators = [simulated("libero_spatial", 0, state=state) for state in (1, 2, 3)]
    camera, poses = camera_for(simulators, scene, CAMERAS, 32)
    every = camera.draw(poses).numpy().copy()
    some = camera.draw(poses, [2, 0]).numpy()
    assert np.array_equal(some, np.concatenate([every[4:6], every[:2]]))
    assert len(camera.draw(poses, [])) == 0


def test_a_flame_is_shown_while_its_knob_is_on(device: str) -> None:
    task, simulators = get_tasks("libero_goal")[7], []  # turn on the stove
    for angle in (0.0, 0.9):
        simulator = simulated("libero_goal", 7)
        state = np.array(initial_states(task)[0])
        state[1 + simulator.compiled.physics.joint("flat_stove_1_button").qposadr[0]] = angle
        simulator.reset(state)
        simulators.append(simulator)
    assert [simulator.burners_shown for simulator in simulators] == [(False,), (True,)]
    off, on = drawn(simulators, scene_of("libero_goal", 7, device), 96)[:, 0]
    cold, hot = (render(simulator, CAMERAS[:1], 96, renderer="fast")[0] for simulator in simulators)
    flame = np.abs(hot.astype(int) - cold).max(axis=-1) > 8
    assert flame.any()
    assert psnr(on[flame], hot[flame]) > 35 > psnr(off[flame], hot[flame])


def test_a_size_out_of_range_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="image_size=4 cannot be rendered"):
        BatchCamera(scene_of("libero_spatial", 0, device), 1, [0], 4)
