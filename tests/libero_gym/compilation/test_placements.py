"""Initial states from the BDDL's regions look like the official ones, and are none of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from recordings import record_pushes

from libero_gym.common import cache
from libero_gym.compilation import placements
from libero_gym.compilation.compile import compile_task
from libero_gym.compilation.placements import NoPlaceError, sampled_state
from libero_gym.demonstrations import LeRobotReader
from libero_gym.env import LiberoEnv
from libero_gym.stock import generators_kept, import_stock, make_stock_env, stock_env
from libero_gym.tasks import Suite, Task, get_tasks, initial_states, register_suite
from libero_gym.vector import LiberoVectorEnv


def free_positions(task: Task, states: np.ndarray) -> np.ndarray:
    """Positions of all movable objects, (n, objects, 3)."""
    model = compile_task(task).physics
    free = [model.jnt_qposadr[joint] for joint in range(model.njnt) if model.jnt_type[joint] == 0]
    return np.stack([states[:, 1 + adr : 4 + adr] for adr in free], axis=1)


# Objects on the table alone; on the stove; in the cabinet's drawer, beside a fixture.
@pytest.mark.parametrize("task_id", [0, 4, 7])
def test_objects_stand_in_the_regions_of_the_official_states(task_id: int) -> None:
    task = get_tasks("libero_spatial")[task_id]
    states = np.array([sampled_state(task, seed) for seed in range(20)])
    sampled, official = free_positions(task, states), free_positions(task, np.asarray(initial_states(task)))
    margin = 0.02  # official states were drawn each with fixtures of its own
    assert (sampled > official.min(0) - margin).all()
    assert (sampled < official.max(0) + margin).all()
    nearest = np.abs(states[:, None] - np.asarray(initial_states(task))[None]).max(-1).min(1)
    assert nearest.min() > 1e-4
    assert len(np.unique(states[:, 1:], axis=0)) == 20


def test_equal_seeds_give_equal_states_and_global_generators_stay() -> None:
    task = get_tasks("libero_spatial")[0]
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = sampled_state(task, 51).copy()
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    placements._kept.clear()
    np.testing.assert_array_equal(first, sampled_state(task, 51))
    assert not np.array_equal(first, sampled_state(task, 52))


def test_short_resets_give_the_states_of_whole_ones_bit_for_bit() -> None:
    task = get_tasks("libero_spatial")[4]  # a bowl in a drawer, whose place is read from the simulator
    with stock_env(task.bddl_file) as env:
        short = placements.draw_from(env, range(4))
    whole = []
    with stock_env(task.bddl_file) as env:
        domain = env.env
        placements._hold_fixtures(domain)
        unplaced = mujoco.MjModel.from_xml_string(domain.model.get_xml())
        for seed in range(4):
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            domain.sim.model.body_pos[:], domain.sim.model.body_quat[:] = unplaced.body_pos, unplaced.body_quat
            domain.sim.reset()
            domain.sim.forward()
            domain._reset_internal()
            whole.append(domain.sim.get_state().flatten())
    np.testing.assert_array_equal(short, whole)


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_is_an_integer_from_zero(seed: float) -> None:
    with pytest.raises(ValueError, match=r"placement_seed=.*expected a whole number of at least 0"):
        sampled_state(get_tasks("libero_spatial")[0], seed)  # type: ignore[arg-type]


def test_states_are_the_same_without_a_cache_and_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    task = get_tasks("libero_spatial")[0]
    expected = [sampled_state(task, seed).copy() for seed in (49, 101)]
    monkeypatch.setattr(placements, "_kept", {})
    monkeypatch.setattr(cache, "read", lambda key: None)
    monkeypatch.setattr(cache, "write", lambda key, body: None)
    placements.prepare(task, [101, 49])
    for seed, state in zip((49, 101), expected, strict=True):
        np.testing.assert_array_equal(sampled_state(task, seed), state)


def test_resets_draw_placements_as_often_as_official_states() -> None:
    env = LiberoEnv(
        "libero_spatial", task_id=0, cameras=(), settle_steps=0, init_state_ids=[20, 21], placement_seeds=range(6)
    )
    drawn = [env.reset(seed=0)[1]["init_state_id"], *(env.reset()[1]["init_state_id"] for _ in range(199))]
    assert set(drawn) == {-1, 20, 21}
    assert 0.65 < np.mean([index == -1 for index in drawn]) < 0.85
    assert set(LiberoEnv("libero_spatial", init_state_ids=(), placement_seeds=[3]).settings["placement_seeds"]) == {3}
    with pytest.raises(ValueError, match="init_state_ids is empty"):
        LiberoEnv("libero_spatial", init_state_ids=())
    with pytest.raises(ValueError, match=r"placement_seed=-2 is out of range; expected"):
        LiberoEnv("libero_spatial", placement_seeds=[-2])


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Two bowls of LIBERO's task in a region that is just large enough: some seeds find no place for the second."""
    text = get_tasks("libero_spatial")[0].bddl_file.read_text()
    for old, new in {
        "(-0.1 -0.01 -0.05 0.01)": "(-0.125 -0.055 -0.015 0.055)",
        "akita_black_bowl_1 main_table_between_plate_ramekin_region": "akita_black_bowl_1 main_table_table_center",
        "akita_black_bowl_2 main_table_next_to_ramekin_region": "akita_black_bowl_2 main_table_table_center",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path_factory.mktemp("tight") / "tight.bddl"
    path.write_text(text)
    return Task.from_bddl(path)


UNLUCKY = [12, 23]  # of the first 50


def test_a_seed_without_a_place_spoils_no_other_one(tight: Task) -> None:
    for seed in UNLUCKY:
        with pytest.raises(
            NoPlaceError, match=rf"placement_seed={seed}: .* no place .* 'tight' .*; give another seed, or"
        ):
            sampled_state(tight, seed)
    assert [seed for seed in range(50) if not placements.has_place(tight, seed)] == UNLUCKY
    with stock_env(tight.bddl_file) as env:
        alone = placements.draw_from(env, [0, 13, 24, 49])  # none of them behind an unlucky one
    np.testing.assert_array_equal([sampled_state(tight, seed) for seed in (0, 13, 24, 49)], alone)


def test_a_vectors_reset_looks_for_a_place_before_any_environment_begins(tight: Task) -> None:
    env = LiberoVectorEnv(2, suite=Suite("tight", "Tight-v0", 40, (tight,)), cameras=())
    env.reset(seed=0, options={"placement_seed": [1, 2]})
    for _ in range(3):
        env.step(np.zeros((2, 7)))
    before = env.snapshot()
    with pytest.raises(NoPlaceError, match="placement_seed=12"):
        env.reset(seed=7, options={"placement_seed": [1, 12]})
    assert env.snapshot() == before
    env.close()


def test_resets_draw_again_where_a_seed_finds_no_place(tight: Task) -> None:
    def states(seeds: list[int]) -> np.ndarray:
        env = LiberoEnv(Suite("tight", "Tight-v0", 100, [tight]), cameras=(), settle_steps=0, placement_seeds=seeds)
        found = []
        for first in (3, *[None] * 20):
            env.reset(seed=first)
            found.append(np.asarray(env.get_state()))
        env.close()
        return np.array(found)

    several = states([*UNLUCKY, 0, 1])
    assert len(np.unique(several, axis=0)) == 2
    np.testing.assert_array_equal(several, states([*UNLUCKY, 0, 1]))
    with pytest.raises(NoPlaceError, match=r"placement_seed=(12|23): "):
        states(UNLUCKY)


def test_a_vector_environment_names_the_starts_that_there_are(tight: Task) -> None:
    suite, seeds = Suite("tight", "Tight-v0", 100, [tight]), [11, *UNLUCKY, 24]
    envs = LiberoVectorEnv(1, suite=suite, cameras=(), n_workers=1, placement_seeds=seeds)
    assert envs.episode_starts(0) == [{"task_id": 0, "placement_seed": seed} for seed in (11, 24)]
    envs.close()


def test_an_environment_whose_first_draw_finds_no_place_is_constructed_again(tight: Task) -> None:
    import_stock()  # what it draws itself when it is imported
    with generators_kept():
        np.random.seed(12)  # noqa: NPY002 - its construction draws from the global generator
        make_stock_env(tight.bddl_file).close()


def test_a_recording_goes_on_where_a_seed_finds_no_place(tight: Task, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    register_suite("tight", [tight], max_steps=100)
    options: dict[str, Any] = {"init_state_ids": (), "placement_seeds": [11, *UNLUCKY], "cameras": ()}
    with pytest.warns(UserWarning, match=r"Task 0, 'tight': 2 of its episodes failed, because LIBERO finds no place"):
        record_pushes(tmp_path, suite="tight", **options)
    assert [episode.placement_seed for episode in LeRobotReader(tmp_path)] == [11]
