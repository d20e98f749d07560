"""Several threads draw one frame: the same to the byte however many, also in a forked process."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from frames import SmallScene, scene_xml

from libero_gym.compilation.compile import compile_task
from libero_gym.env import LiberoEnv
from libero_gym.rendering.models import packed_scene
from libero_gym.rendering.software_scene import SoftwareScene
from libero_gym.rendering.threads import Cuts, run_together
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import get_tasks, initial_states
from libero_gym.vector.vector import LiberoVectorEnv

# What moves, before a mirror, behind glass, and out of the view.
BODIES = """
<geom type="plane" size="1 1 0.1" rgba="0.6 0.5 0.4 1"/>
<geom type="box" size=".5 .5 .02" pos="0 0 .02" material="mirror"/>
<geom type="box" size=".2 .02 .15" pos="0 -.3 .2" rgba=".2 .3 .8 .5"/>
<geom type="sphere" size=".15" pos=".3 -.3 .2" rgba=".2 .8 .2 .3"/>
<body pos="0 0 .3"><freejoint/><geom type="cylinder" size=".1 .15" rgba=".9 .3 .1 1"/></body>
"""
MIRROR = '<material name="mirror" reflectance=".5" rgba=".5 .5 .5 1"/>'


def check_frames(scene: SoftwareScene, sizes: tuple[int, ...]) -> None:
    """A scene's frames are equal by any number of threads, and stay so while cuts move."""
    for size in sizes:
        for camera in ("agentview", "wrist"):
            for stored in (True, False):
                one = [array.copy() for array in scene.draw(camera, size, size, stored=stored)]
                for n_threads in (2, 3, 2):
                    several = scene.draw(camera, size, size, stored=stored, n_threads=n_threads)
                    for a, b in zip(one, several, strict=True):
                        np.testing.assert_array_equal(a, b)


def test_frames_with_a_mirror_and_glass_are_equal_by_any_number_of_threads() -> None:
    small = SmallScene(scene_xml(BODIES, MIRROR))
    for height in (0.3, 0.15):
        small.data.qpos[2] = height
        small.scene.pose(small.state)
        check_frames(small.scene, (64, 128, 224))
    ids = np.unique(small.scene.draw("agentview", 128, 128).ids >> 20)
    assert len(ids[ids >= 0]) == 5, "all geoms are seen"


@pytest.mark.parametrize(("suite", "task_id"), [("libero_goal", 7), ("libero_goal", 3)])  # a stove; a glass door, too
def test_a_tasks_frames_are_equal_by_any_number_of_threads(suite: str, task_id: int) -> None:
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    scene = SoftwareScene(simulator.compiled, packed_scene(simulator.compiled))
    simulator.reset(initial_states(task)[0])
    for _ in range(2):
        for action in np.random.default_rng(0).uniform(-1, 1, (10, 7)):
            simulator.step(action)
        scene.pose(simulator)
        check_frames(scene, (64, 128, 224))


def test_more_threads_than_rows_draw_the_frame() -> None:
    small = SmallScene(scene_xml(BODIES, MIRROR))
    small.scene.pose(small.state)
    one = small.scene.draw("agentview", 8, 8).image
    np.testing.assert_array_equal(small.scene.draw("agentview", 8, 8, n_threads=12).image, one)


def test_one_thread_starts_none_and_several_are_kept() -> None:
    def names() -> set[str]:
        return {thread.name for thread in threading.enumerate()}

    small, before = SmallScene(scene_xml(BODIES, MIRROR)), names()
    small.scene.pose(small.state)
    small.scene.draw("wrist", 64, 64)
    assert names() == before
    seen = []
    for _ in range(3):
        small.scene.draw("wrist", 64, 64, n_threads=2)
        seen.append(names())
    assert seen[0] == seen[1] == seen[2]


def in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether a check holds in a forked child, which has 30 s."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    killer = threading.Timer(30, os.kill, (child, 9))
    killer.start()
    try:
        return os.waitpid(child, 0)[1] == 0
    finally:
        killer.cancel()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    small = SmallScene(scene_xml(BODIES, MIRROR))
    small.scene.pose(small.state)
    expected = small.scene.draw("wrist", 64, 64, n_threads=2).image

    def is_equal() -> bool:
        return np.array_equal(small.scene.draw("wrist", 64, 64, n_threads=2).image, expected)

    assert in_a_fork(is_equal)
    assert is_equal()


def test_cuts_move_to_where_bands_take_equally_long() -> None:
    """Ten rows cost 3 each and 90 cost 1: half of 120 is spent after the ten and 30 more, so the cut is at row 40."""
    cost = np.where(np.arange(100) < 10, 3.0, 1.0)
    cuts = Cuts(100, 2)
    for _ in range(12):
        cuts.learn([float(cost[first:last].sum()) for first, last in cuts.rows])
    assert abs(cuts.rows[0][1] - 40) <= 1
    assert cuts.rows[0][0] == 0
    assert cuts.rows[1] == (cuts.rows[0][1], 100)


def test_times_of_nothing_leave_the_cuts() -> None:
    cuts = Cuts(30, 3)
    cuts.learn([0.0, 0.0, 0.0])
    assert cuts.rows == [(0, 10), (10, 20), (20, 30)]


def test_tasks_run_at_the_same_time_and_all_end_before_an_error_is_raised() -> None:
    met = threading.Barrier(2, timeout=30)
    run_together([met.wait, met.wait])  # type: ignore[list-item]
    ended = threading.Event()

    def fail() -> None:
        raise ValueError("this one")

    def end() -> None:
        met.wait()
        ended.set()

    def fail_after_meeting() -> None:
        met.wait()
        fail()

    with pytest.raises(ValueError, match="this one"):
        run_together([fail_after_meeting, end])
    assert ended.is_set()
    with pytest.raises(ValueError, match="this one"):
        run_together([end, fail_after_meeting])


@pytest.mark.parametrize("layers", [(), ("depth", "segmentation")], ids=["frames", "layers"])
def test_an_environment_draws_with_its_threads(layers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = {"renderer": "fast", "image_size": 48, "layers": layers, "settle_steps": 0}
    draw, asked, seen = SoftwareScene.draw, [], []

    def spied(scene: SoftwareScene, *args: Any, n_threads: int = 1, **kwargs: Any) -> Any:
        asked.append(n_threads)
        return draw(scene, *args, n_threads=n_threads, **kwargs)

    monkeypatch.setattr(SoftwareScene, "draw", spied)
    for n in (1, 2):
        env = LiberoEnv("libero_goal", task_id=7, n_render_threads=n, **drawing)  # type: ignore[arg-type]
        seen.append(env.reset(seed=0, options={"init_state_id": 0})[0])
        env.close()
    assert asked == [1, 2]
    for key in set(seen[0]) - {"instruction"}:
        np.testing.assert_array_equal(seen[0][key], seen[1][key])


def test_an_environments_frames_do_not_depend_on_its_threads() -> None:
    frames, drawing = [], {"renderer": "fast", "image_size": 48, "cameras": ("agentview", "wrist")}
    for n in (1, 2):
        env = LiberoEnv("libero_goal", task_id=7, n_render_threads=n, render_mode="rgb_array", **drawing)  # type: ignore[arg-type]
        obs, _ = env.reset(seed=0, options={"init_state_id": 0})
        frames.append((obs["image"], obs["wrist_image"], env.render()))
        env.close()
    for one, two in zip(*frames, strict=True):
        np.testing.assert_array_equal(one, two)
    arguments = {"suite": "libero_goal", "task_id": 7, "n_workers": 1, "n_render_threads": 2}
    envs = LiberoVectorEnv(1, **arguments, **drawing)  # type: ignore[arg-type]
    obs, _ = envs.reset(seed=0, options={"init_state_id": 0})
    envs.close()
    np.testing.assert_array_equal(obs["image"][0], frames[0][0])
