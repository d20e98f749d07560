"""Fixture draws: stock LIBERO's own to the bit, made once, and few simulators kept of them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libero_gym.compilation import draws
from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.draws import Draw, fixture_draw
from libero_gym.compilation.extraction import read_draw
from libero_gym.env import LiberoEnv
from libero_gym.env.simulators import MAX_DRAWN, Simulators
from libero_gym.simulation.compiled import FixtureDraw
from libero_gym.stock import stock_env
from libero_gym.tasks import Task, get_tasks


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(draws, "_kept", {})
    return tmp_path


# A cabinet, a stove and a rack; objects alone, which start in contact; a drawer and a knob, whose samplers pile up.
@pytest.mark.parametrize(
    ("suite", "task_id", "seed"), [("libero_goal", 0, 7), ("libero_object", 0, 0), ("libero_10", 9, 0)]
)
def test_draws_are_those_of_stock_resets_to_the_bit(suite: str, task_id: int, seed: int) -> None:
    task = get_tasks(suite)[task_id]
    ours = draws._draw(task, 4, seed)
    with stock_env(task.bddl_file, seed=seed) as stock:
        for draw in ours:
            _assert_equal(draw.fixtures, read_draw(stock))
            np.testing.assert_array_equal(draw.state, stock.get_sim_state())
            stock.env.reset()
    assert len({draw.fixtures.warmstart.tobytes() for draw in ours}) == 4
    assert len({draw.fixtures.pos.tobytes() for draw in ours}) == (1 if suite == "libero_object" else 4)


@pytest.mark.parametrize(("suite", "task_id", "matter"), [("libero_10", 9, True), ("libero_goal", 0, False)])
def test_resets_before_seeding_matter_where_joints_are_drawn(
    suite: str, task_id: int, matter: bool, empty_cache: Path
) -> None:
    task = get_tasks(suite)[task_id]
    first = draws.stock_draw(task, 1, 5)
    later = draws.stock_draw(task, 1, 5, resets_before=2)
    with stock_env(task.bddl_file, resets=2) as stock:
        stock.seed(5)
        stock.env.reset()
        _assert_equal(later.fixtures, read_draw(stock))
        np.testing.assert_array_equal(later.state, stock.get_sim_state())
    assert np.array_equal(first.state, later.state) != matter
    draws._kept.clear()
    np.testing.assert_array_equal(draws.stock_draw(task, 1, 5, resets_before=2).state, later.state)


def test_one_stock_environment_draws_as_after_any_number_of_resets() -> None:
    task = get_tasks("libero_10")[9]
    once, thrice, again = (draws._draw(task, 1, 5, resets_before)[0] for resets_before in (1, 3, 1))
    _assert_equal(once.fixtures, again.fixtures)
    np.testing.assert_array_equal(once.state, again.state)
    assert not np.array_equal(once.state, thrice.state)


def test_the_first_draw_under_seed_0_is_the_compiled_tasks(spatial_task: Task) -> None:
    _assert_equal(fixture_draw(spatial_task, 1), compile_task(spatial_task).fixtures)
    draws.prepare(spatial_task, 1)
    _assert_equal(draws._kept[draws._key(spatial_task, 0)][0].fixtures, compile_task(spatial_task).fixtures)
    assert np.abs(fixture_draw(spatial_task, 1, seed=7).pos - fixture_draw(spatial_task, 1).pos).max() > 1e-3


def test_a_block_is_drawn_once_whoever_wants_it(
    spatial_task: Task, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def slow_draw(task: Task, n: int, seed: int, resets_before: int) -> list[Draw]:
        asked.append(n)
        time.sleep(0.2)
        return [_draw_at(i) for i in range(n)]

    monkeypatch.setattr(draws, "_draw", slow_draw)
    found: list[Any] = []
    for draw in (3, 7):  # as two workers that know nothing of each other
        draws._kept.clear()

        def want(draw: int = draw) -> None:
            found.append((draw, fixture_draw(spatial_task, draw).pos[0, 0]))

        threads = [threading.Thread(target=want) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert asked == [50]
    assert found == [(3, 2), (3, 2), (7, 6), (7, 6)]
    assert fixture_draw(spatial_task, 51).pos[0, 0] == 50
    assert asked == [50, 100]
    assert [path.suffix for path in empty_cache.iterdir()] == [".bin"]  # no lock is left


def test_the_first_draw_of_a_seed_is_made_alone(
    spatial_task: Task, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def draw(task: Task, n: int, seed: int, resets_before: int) -> list[Draw]:
        asked.append((n, seed))
        return [_draw_at(i) for i in range(n)]

    monkeypatch.setattr(draws, "_draw", draw)
    for seed, number in ((5, 1), (6, 1), (5, 1), (5, 2), (5, 1)):
        assert fixture_draw(spatial_task, number, seed).pos[0, 0] == number - 1
        draws._kept.clear()  # as in another process
    assert asked == [(1, 5), (1, 6), (50, 5)]


def test_draws_are_made_without_a_cache(spatial_task: Task, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_GYM_CACHE", str(empty_cache / "file" / "cache"))
    (empty_cache / "file").write_text("no folder")
    draw = _draw_at(0)
    monkeypatch.setattr(draws, "_draw", lambda task, n, seed, resets_before: [draw] * n)
    with pytest.warns(UserWarning, match="not cached"):
        assert fixture_draw(spatial_task, 2) is draw.fixtures


def test_few_simulators_are_kept_of_many_draws(spatial_task: Task) -> None:
    simulators = Simulators("exact")
    first = simulators.get(spatial_task)
    made = [simulators.get(spatial_task, draw) for draw in range(2, 12)]
    assert len(simulators._drawn) == MAX_DRAWN
    assert simulators.get(spatial_task) is first
    assert simulators.get(spatial_task, 11) is made[-1]
    assert simulators.get(spatial_task, 2) is not made[0]
    assert made[0].model is not first.model


def test_tasks_without_fixtures_share_one_model() -> None:
    task = get_tasks("libero_object")[0]
    simulators = Simulators("exact")
    assert simulators.get(task, 2).model is simulators.get(task).model
    assert simulators.get(task, 2).fixtures is not simulators.get(task).fixtures


def test_a_snapshot_remembers_whose_draw_its_fixtures_are() -> None:
    env, other = (LiberoEnv("libero_goal", task_id=0, cameras=(), settle_steps=0) for _ in range(2))
    env.reset(options={"init_state_id": 0, "fixture_seed": 7, "fixture_draw": 3})
    expected = fixture_draw(env.tasks[0], 3, seed=7).pos
    np.testing.assert_array_equal(env.simulator.model.body_pos[env.simulator.fixtures.body_ids], expected)
    other.restore(env.snapshot())
    np.testing.assert_array_equal(other.simulator.fixtures.pos, expected)
    env.reset(options={"init_state_id": 0, "fixture_seed": None, "fixture_draw": None})
    assert env.simulator.fixtures is compile_task(env.tasks[0]).fixtures


@pytest.mark.parametrize("draw", [0, -1, 1.0, True, "2", 1001])
def test_what_is_no_draw_is_refused(spatial_task: Task, draw: Any) -> None:
    with pytest.raises(ValueError, match=r"fixture_draw=.*expected a whole number from 1 to 1000"):
        fixture_draw(spatial_task, draw)


@pytest.mark.parametrize("resets_before", [-1, 10**6 + 1, 1.0, True])
def test_what_is_no_number_of_resets_is_refused(spatial_task: Task, resets_before: Any) -> None:
    with pytest.raises(ValueError, match=r"fixture_resets=.*expected a whole number from 0 to 1000000"):
        fixture_draw(spatial_task, 1, 7, resets_before)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.0, None])
def test_what_is_no_seed_is_refused(spatial_task: Task, seed: Any) -> None:
    with pytest.raises(ValueError, match=r"fixture_seed=.*expected a whole number from 0"):
        fixture_draw(spatial_task, 1, seed)


def _draw_at(x: int) -> Draw:
    """A draw whose only fixture is at that place."""
    return Draw(FixtureDraw(np.zeros(1, dtype=np.int64), np.full((1, 3), x), np.ones((1, 4)), np.zeros(2)), np.zeros(5))


def _assert_equal(one: FixtureDraw, two: FixtureDraw) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, getattr(two, name), err_msg=name)


def test_nobody_waits_without_a_cache(spatial_task: Task, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERO_GYM_CACHE_GB", "0")
    with draws._one_process("key"), draws._one_process("key"):
        pass
    assert not any(empty_cache.iterdir())


def test_a_lock_is_held_by_one_also_after_its_file_was_removed(empty_cache: Path) -> None:
    """Who waited gets the lock of a file that is gone, and the next one to come makes another file."""
    inside, most = [0], [0]

    def hold(delay: float) -> None:
        time.sleep(delay)
        with draws._one_process("key"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.3)
            inside[0] -= 1

    threads = [threading.Thread(target=hold, args=(delay,)) for delay in (0.0, 0.1, 0.4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not any(empty_cache.iterdir())
