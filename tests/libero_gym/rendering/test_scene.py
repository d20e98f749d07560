"""The fast renderer's layers: what stands still is drawn once, and frames depend on the state alone."""

from __future__ import annotations

import numpy as np
import pytest

from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.draws import fixture_draw
from libero_gym.rendering import renderer as rendering
from libero_gym.rendering import scene as scene_module
from libero_gym.rendering.scene import LayeredScene, _Background, _composite
from libero_gym.simulation.simulator import Simulator
from libero_gym.tasks import get_tasks, initial_states


def fast_frame(simulator: Simulator) -> np.ndarray:
    return rendering.render(simulator, ("agentview",), 64, renderer="fast")[0]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_what_moves_covers_or_hides_by_depth_and_blends_at_its_edges() -> None:
    background = _Background(np.full((1, 4, 3), 100, dtype=np.float32), np.full((1, 4), 0.5, dtype=np.float32))
    # In front; behind; an edge that covers a quarter of its pixel beside the thing in front; nothing, far from all.
    alpha = np.array([[255, 64, 0, 255]], dtype=np.uint8)
    color = np.where(alpha > 0, alpha * (200 / 255), 0).astype(np.uint8)
    pixels = np.stack([color, color, color, alpha], axis=-1)
    depth = np.array([[0.4, 1.0, 1.0, 0.6]], dtype=np.float32)
    frame = _composite(background, pixels, depth)[0, :, 0]
    np.testing.assert_array_equal(frame, [200, 125, 100, 100])


def test_a_fast_frame_depends_on_the_state_alone() -> None:
    simulator = Simulator(compile_task(get_tasks("libero_spatial")[0]))
    state = initial_states(simulator.compiled.task)[0]
    simulator.reset(state)
    first = fast_frame(simulator)
    for _ in range(8):
        simulator.step(np.array([0.5, 0.5, -0.5, 0.0, 0.0, 0.5, 1.0]))
    assert (fast_frame(simulator) != first).any()
    simulator.reset(state)
    np.testing.assert_array_equal(fast_frame(simulator), first)


def test_the_stored_background_follows_fixtures_and_burners() -> None:
    """Another draw moves the cabinet, and a lit burner shows its flame: both agree with the exact renderer."""
    task = get_tasks("libero_goal")[7]  # turn on the stove
    state = np.array(initial_states(task)[0])
    frames = []
    for draw, angle in ((1, 0.0), (2, 0.0), (1, 0.9)):
        simulator = Simulator(compile_task(task), fixture_draw(task, draw))
        state[1 + simulator.model.joint("flat_stove_1_button").qposadr[0]] = angle
        simulator.reset(state)
        frames.append(fast_frame(simulator))
        assert psnr(frames[-1], rendering.render(simulator, ("agentview",), 64)[0]) > 26
    assert (frames[0] != frames[1]).any(axis=-1).mean() > 0.01
    assert (frames[0] != frames[2]).any()


def test_stored_backgrounds_are_bounded_and_those_in_use_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_module, "_MAX_BACKGROUND_BYTES", 2 * 16 * 64 * 64)
    task = get_tasks("libero_goal")[7]
    rendering.release()  # no backgrounds of other tests
    for draw in (1, 2, 1, 3):
        simulator = Simulator(compile_task(task), fixture_draw(task, draw))
        simulator.reset(initial_states(task)[0])
        fast_frame(simulator)
    with rendering._drawing(None) as process_renderer:
        scene = process_renderer.scene(compile_task(task), 64, "fast")
    kept = [key[0][0] for key in scene._backgrounds]  # type: ignore[attr-defined]
    assert kept == [fixture_draw(task, draw).pos.tobytes() for draw in (1, 3)]


@pytest.mark.parametrize(("suite", "task_id"), [("libero_spatial", 0), ("libero_object", 0), ("libero_10", 5)])
def test_fast_frames_are_close_to_exact_ones(suite: str, task_id: int) -> None:
    task = get_tasks(suite)[task_id]
    simulator = Simulator(compile_task(task))
    simulator.reset(initial_states(task)[3])
    cameras = ("agentview", "wrist")
    exact, fast = (rendering.render(simulator, cameras, 128, renderer=name) for name in ("exact", "fast"))
    assert min(psnr(a, b) for a, b in zip(exact, fast, strict=True)) > 28


def test_without_coverage_in_the_frame_buffer_whole_frames_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = Simulator(compile_task(get_tasks("libero_spatial")[0]))
    simulator.reset(initial_states(simulator.compiled.task)[0])
    layered = fast_frame(simulator)
    monkeypatch.setattr(LayeredScene, "_has_alpha", lambda self: False)
    whole = fast_frame(simulator)
    assert psnr(layered, whole) > 28
    assert (layered != whole).any()
