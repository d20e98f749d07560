"""Ours, stock LIBERO's and Gymnasium's cameras draw in turn in one process, from any thread, each as if alone."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from libero_gym.compilation.compile import compile_task
from libero_gym.rendering import devices, egl, osmesa
from libero_gym.rendering import renderer as rendering
from libero_gym.rendering.renderer import RenderingError
from libero_gym.rendering.scene import Scene
from libero_gym.simulation.simulator import Simulator
from libero_gym.stock import import_stock
from libero_gym.tasks import get_tasks, initial_states

pytestmark = pytest.mark.opengl


class Library:
    """libEGL, loaded when it is first asked for a function, so that this file can be read where it is missing."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(ctypes.CDLL("libEGL.so.1"), name)
        if name == "eglGetCurrentContext":
            function.restype = ctypes.c_void_p
        setattr(self, name, function)
        return function


LIBRARY: Any = Library()


@functools.cache
def simulator(task_id: int = 0) -> Simulator:
    task = get_tasks("libero_spatial")[task_id]
    standing = Simulator(compile_task(task))
    standing.reset(initial_states(task)[0])
    return standing


def draw(task_id: int = 0, device: int | None = None) -> np.ndarray:
    return rendering.render(simulator(task_id), ("agentview",), 64, device)[0]


@pytest.fixture(scope="module")
def alone() -> list[np.ndarray]:
    """Frames of two tasks, as a process without other GL draws them."""
    return [draw(0), draw(1)]


@pytest.fixture
def with_egl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYOPENGL_PLATFORM", egl.DEVICE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "egl")


@pytest.fixture
def another(with_egl: None) -> Iterator[int]:
    """The address of a context of another library, current in this thread."""
    from mujoco.egl import GLContext

    context = GLContext(8, 8)
    context.make_current()
    yield LIBRARY.eglGetCurrentContext()
    context.free()


def test_gymnasiums_viewer_and_ours_draw_in_turn(with_egl: None, alone: list[np.ndarray]) -> None:
    other = gym.make("InvertedPendulum-v5", render_mode="rgb_array", width=64, height=64)
    other.reset(seed=0)
    expected: Any = other.render()
    assert expected.std() > 5
    for _ in range(2):
        np.testing.assert_array_equal(draw(), alone[0])
        np.testing.assert_array_equal(other.render(), expected)
    rendering.release()
    np.testing.assert_array_equal(other.render(), expected)
    np.testing.assert_array_equal(draw(), alone[0])
    np.testing.assert_array_equal(other.render(), expected)
    other.close()
    np.testing.assert_array_equal(draw(), alone[0])


def test_stock_environments_and_ours_draw_in_turn(with_egl: None, alone: list[np.ndarray]) -> None:
    import_stock()
    from libero.libero.envs import OffScreenRenderEnv

    task = get_tasks("libero_spatial")[0]
    stock = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=64, camera_widths=64)
    stock.seed(0)
    stock.env.reset()
    expected = stock.set_init_state(initial_states(task)[0])["agentview_image"]
    for _ in range(2):
        (exact,) = rendering.render(simulator(), ("agentview",), 64)
        np.testing.assert_array_equal(exact[::-1, ::-1], expected)
        np.testing.assert_array_equal(stock.sim.render(camera_name="agentview", width=64, height=64), expected)
    stock.close()
    del stock
    gc.collect()
    np.testing.assert_array_equal(draw(), alone[0])


def test_any_thread_draws_and_the_first_may_end(alone: list[np.ndarray]) -> None:
    rendering.release()
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for pool in (first, second, first):
            np.testing.assert_array_equal(pool.submit(draw).result(), alone[0])
        np.testing.assert_array_equal(draw(), alone[0])
    np.testing.assert_array_equal(draw(), alone[0])


def test_two_environments_draw_in_a_thread_each(alone: list[np.ndarray]) -> None:
    start = threading.Barrier(2)

    def draw_often(task_id: int) -> list[np.ndarray]:
        start.wait()
        return [draw(task_id) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(draw_often, (0, 1)))
    for frames, expected in zip(results, alone, strict=True):
        for frame in frames:
            np.testing.assert_array_equal(frame, expected)


def test_an_environment_resets_in_another_thread() -> None:
    env = gym.make("LIBERO-Spatial-v0", image_size=64, task_id=0)
    here = env.reset(seed=0)[0]["image"]
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(env.reset, seed=0).result()[0]["image"]
    env.close()
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("use", [draw, rendering.release, rendering.gl_renderer])
@pytest.mark.parametrize("fresh", [True, False])
def test_the_context_that_was_current_stays_so(another: int, use: Callable[[], object], fresh: bool) -> None:
    if fresh:
        rendering.release()
    else:
        draw()
    use()
    assert LIBRARY.eglGetCurrentContext() == another


def test_nothing_is_current_after_a_frame_where_nothing_was() -> None:
    LIBRARY.eglReleaseThread()
    for _ in range(2):
        draw()
        assert LIBRARY.eglGetCurrentContext() is None
        rendering.release()
        assert LIBRARY.eglGetCurrentContext() is None


def test_an_error_while_drawing_leaves_all_as_it_was(
    another: int, alone: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> np.ndarray:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(Scene, "draw", fail)
        with pytest.raises(ZeroDivisionError):
            draw()
    assert LIBRARY.eglGetCurrentContext() == another
    assert gc.isenabled()
    with ThreadPoolExecutor(1) as pool:  # neither the lock nor the context was left behind
        np.testing.assert_array_equal(pool.submit(draw).result(timeout=60), alone[0])


def test_an_error_while_a_scene_is_uploaded_leaves_all_as_it_was(
    another: int, alone: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise mujoco.FatalError("out of memory")

    rendering.release()
    with monkeypatch.context() as broken:
        broken.setattr(mujoco, "MjrContext", fail)
        with pytest.raises(mujoco.FatalError):
            draw()
    assert LIBRARY.eglGetCurrentContext() == another
    np.testing.assert_array_equal(draw(), alone[0])


def test_other_libraries_finalisers_do_not_run_in_our_context() -> None:
    """MuJoCo's free GL's names in whatever context is current, and would delete our textures."""
    seen = []

    class Viewer:
        def __init__(self) -> None:
            self.itself = self  # only garbage collection finds it

        def __del__(self) -> None:
            seen.append(LIBRARY.eglGetCurrentContext())

    LIBRARY.eglReleaseThread()
    rendering.release()
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        Viewer()
        draw()
        Viewer()
        draw()
        gc.collect()
    finally:
        gc.set_threshold(*threshold)
    assert seen == [None, None]


def test_frames_go_on_after_another_library_has_ended_the_display(alone: list[np.ndarray]) -> None:
    draw()
    display = rendering._process_renderer(None).context.display
    assert LIBRARY.eglTerminate(ctypes.c_void_p(display))
    np.testing.assert_array_equal(draw(), alone[0])
    assert LIBRARY.eglTerminate(ctypes.c_void_p(display))
    rendering.release()
    np.testing.assert_array_equal(draw(), alone[0])


def outcome_in_fork(act: Callable[[], object]) -> str:
    """How a forked child fares: ``"drew"``, the RenderingError's text, or ``"hung"``."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(30)
            act()
            os.write(writing, b"drew")
        except RenderingError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer or "hung"


@pytest.mark.parametrize("released", [True, False])
def test_a_fork_of_a_process_that_drew_says_so_and_does_not_hang(released: bool) -> None:
    draw()
    if released:
        rendering.release()
    assert "forked from one that had already used OpenGL" in outcome_in_fork(draw)
    assert "'spawn' or 'forkserver'" in outcome_in_fork(rendering.gl_renderer)


def test_a_fork_of_a_process_in_which_another_library_drew_says_so(
    another: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering.release()
    monkeypatch.setattr(rendering, "_gl_process", None)  # as if we had never drawn
    assert "forked from one that had already used OpenGL" in outcome_in_fork(draw)


def test_a_fork_while_a_thread_draws_can_release() -> None:
    draw()
    with rendering._lock, ThreadPoolExecutor(1) as pool:
        assert pool.submit(outcome_in_fork, rendering.release).result(timeout=60) == "drew"


@pytest.mark.parametrize("value", ["7", "", "abc", "-1"])
def test_a_device_variable_that_names_nothing_is_told_with_the_devices(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering.release()
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", value)
    with pytest.raises(RenderingError) as caught:
        draw()
    listed = ", ".join(f"{each.index} ({'software' if each.software else 'GPU'})" for each in devices.egl_devices())
    assert str(caught.value) == (
        f"MUJOCO_EGL_DEVICE_ID={value!r} names no EGL device; EGL lists {listed}. "
        "Name one of these, or unset MUJOCO_EGL_DEVICE_ID to let EGL choose."
    )


def test_a_device_that_is_not_there_is_told_even_after_frames_on_another() -> None:
    draw()
    with pytest.raises(RenderingError, match=r"render_device=63 names no EGL device; EGL lists 0 .* or pass None"):
        draw(device=63)


def test_a_device_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering.release()
    monkeypatch.setattr(egl.load(), "open", lambda device: None)
    with pytest.raises(RenderingError, match=r"render_device=0 names an EGL device that this process cannot open"):
        draw(device=0)


def test_one_device_has_one_context_and_choosing_it_changes_no_environment_variable(
    with_egl: None, alone: list[np.ndarray]
) -> None:
    rendering.release()
    before = dict(os.environ)
    usable = next(device.index for device in devices.egl_devices() if device.usable)
    for device in (usable, None, usable):
        np.testing.assert_array_equal(draw(device=device), alone[0])
    assert os.environ == before
    assert len(set(rendering._renderers.values())) == 1


def test_a_back_end_that_is_not_installed_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering.release()
    monkeypatch.setattr(osmesa, "_LIBRARIES", ("libNone.so",))
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    osmesa.load.cache_clear()
    with pytest.raises(RenderingError) as caught:
        draw()
    assert str(caught.value) == (
        "No OpenGL back end can draw exact frames here (osmesa: OSMesa is not installed). MUJOCO_GL=osmesa rules out "
        "the other back end; unset it to try both. On Debian or Ubuntu: apt-get install libosmesa6. "
        'renderer="fast" (--renderer fast) and cameras=() need no OpenGL.'
    )


def test_without_any_back_end_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering.release()
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_LIBRARIES", {})
    with pytest.raises(RenderingError, match=r"neither EGL nor OSMesa is installed.*apt-get install libegl1 "):
        draw()


def test_what_draws_is_named() -> None:
    assert rendering.gl_renderer() == rendering.gl_renderer() != ""
