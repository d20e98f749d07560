"""The environment that LeRobot's loops play, which needs no LeRobot: its keys, its initial states."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from libero_gym import tasks
from libero_gym.compilation import placements
from libero_gym.compilation.draws import fixture_draw
from libero_gym.compilation.extraction import read_draw
from libero_gym.env import LiberoEnv
from libero_gym.lerobot_env import LeRobotLiberoEnv, environment
from libero_gym.lerobot_env.environment import environment_makers
from libero_gym.simulation.simulator import SETTLE_ACTION
from libero_gym.stock import generators_kept, make_stock_env, stock_reset
from libero_gym.tasks import Suite, get_tasks, initial_states

SMALL: dict[str, Any] = {"renderer": "fast", "image_size": 8}


def test_episodes_begin_from_the_next_initial_states() -> None:
    options: dict[str, Any] = {"renderer": "fast", "image_size": 32}
    env = LeRobotLiberoEnv("libero_goal", 3, first_state=48, stride=3, fixtures="seed", **options)
    plain = LiberoEnv("libero_goal", task_id=3, cameras=("agentview", "wrist"), **options)
    for seed, state in ((5, 48), (6, 1)):  # of 50
        obs, _ = env.reset(seed=seed)
        expected, _ = plain.reset(options={"init_state_id": state, "fixture_seed": seed, "fixture_draw": 1})
        np.testing.assert_array_equal(obs["pixels"]["image"], expected["image"])
        np.testing.assert_array_equal(obs["pixels"]["image2"], expected["wrist_image"])
        np.testing.assert_array_equal(obs["agent_pos"], expected["state"])
    env.close()
    placed = LeRobotLiberoEnv("libero_goal", 3, init_states=False, camera_names={"wrist": "hand"}, **options)
    check_env(placed, skip_render_check=True)
    assert set(placed.reset(seed=0)[0]["pixels"]) == {"hand"}
    placed.close()


def test_episodes_are_those_of_lerobots_order_of_resets_where_joints_are_drawn() -> None:
    task, env = get_tasks("libero_10")[9], LeRobotLiberoEnv("libero_10", 9, **SMALL)
    other = LiberoEnv("libero_10", task_id=9, cameras=(), settle_steps=0)
    with generators_kept():
        stock = make_stock_env(task.bddl_file)
        stock_reset(stock)  # `LiberoEnv._ensure_env` of lerobot/envs/libero.py; its `reset` is what follows
        for state, seed in zip(initial_states(task)[:2], (7, 7), strict=True):
            stock.seed(seed)
            stock_reset(stock)
            fixtures = read_draw(stock)
            stock.set_init_state(state)
            for _ in range(10):
                stock.step(SETTLE_ACTION)
            env.reset(seed=seed)
            other.restore(env._env.snapshot())
            for ours in (env._env, other):
                np.testing.assert_array_equal(ours.simulator.fixtures.pos, fixtures.pos)
                np.testing.assert_array_equal(ours.simulator.fixtures.quat, fixtures.quat)
                np.testing.assert_array_equal(ours.get_state(), stock.get_sim_state())
        stock.close()
    env.close()


@pytest.mark.parametrize("init_states", [True, False])
def test_fixtures_are_drawn_from_each_seed_or_stand_where_they_are_drawn_first(init_states: bool) -> None:
    task = get_tasks("libero_goal")[3]
    env = LeRobotLiberoEnv("libero_goal", 3, init_states=init_states, **SMALL)
    for seed in (5, 6, 5):
        env.reset(seed=seed)
        np.testing.assert_array_equal(env._env.simulator.fixtures.pos, fixture_draw(task, 1, seed).pos)
    env.reset()
    assert env._env.simulator.fixtures is fixture_draw(task)
    env.close()


def test_a_wrong_seed_is_named_and_takes_no_state() -> None:
    env = LeRobotLiberoEnv("libero_goal", 3, **SMALL)
    for seed in (2**32, -1, True, 1.0):
        with pytest.raises(ValueError, match=f"^seed={seed!r}.*expected a whole number from 0 to 4294967295"):
            env.reset(seed=seed)  # type: ignore[arg-type]
    env.reset(seed=5)
    assert env._env.snapshot()["init_state_id"] == 0
    first = LeRobotLiberoEnv("libero_goal", 3, fixtures="first", **SMALL)
    first.reset(seed=2**32)  # it draws nothing by LIBERO's generator
    for each in (env, first):
        each.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.reset(seed=5)
    assert env._next_state == env._resets == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"chunk_size": 4},
            "chunk_size=4; .* takes only image_size, renderer, .* Leave chunk_size out, or make a LiberoEnv",
        ),
        ({"layers": ("depth",)}, "layers=.* leave LeRobot's spaces and steps as they are"),
        ({"privileged": True}, "privileged=True"),
        ({"cameras": ("wrist",)}, "Give camera_names instead"),
        ({"max_episode_steps": 7}, "Give episode_length instead"),
        ({"rendrer": "fast"}, "Did you mean 'renderer'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LeRobotLiberoEnv("libero_goal", 3, **arguments)


def test_arguments_that_fit_are_those_of_libero_env() -> None:
    env = LeRobotLiberoEnv(
        "libero_goal", 3, physics="coarse", reward="progress", settle_steps=1, render_size=9, **SMALL
    )
    assert (env._env.physics, env._env.reward, env._env.settle_steps) == ("coarse", "progress", 1)
    environment._check_passed_on({name: getattr(env._env, name) for name in environment.PASSED_ON})
    env.close()


def test_worker_processes_play_suites_that_they_have_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite("mine", "Mine-v0", 50, get_tasks("libero_goal")[3:5])
    monkeypatch.setitem(tasks._registered, "mine", suite)  # as `register_suite` does
    makers = environment_makers("mine", 1, 2, fixtures="first", **SMALL)
    envs = gym.vector.AsyncVectorEnv(makers, context="forkserver")
    try:
        assert set(envs.get_attr("task")) == {get_tasks("libero_goal")[4].name}
        assert envs.get_attr("_next_state") == (0, 1)
        assert envs.get_attr("_stride") == (2, 2)
    finally:
        envs.close()


def test_a_placement_without_a_place_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    env = LeRobotLiberoEnv("libero_goal", 3, init_states=False, renderer="fast", image_size=32)
    state, tried = placements._state, list[int]()

    def narrow(task: Any, seed: int) -> np.ndarray:
        tried.append(seed)
        return np.full(3, np.nan) if len(tried) <= n_without else state(task, 0)

    monkeypatch.setattr(placements, "_state", narrow)
    n_without = 2
    env.reset(seed=1)
    assert len(set(tried)) == 3
    tried.clear()
    n_without = 10**6
    with pytest.raises(placements.NoPlaceError, match="find no place for all objects"):
        env.reset()
    assert len(set(tried)) == 20
    env.close()


def test_lerobots_table_of_steps_wins_for_suites_that_it_names() -> None:
    def steps(suite: Any, **options: Any) -> int:
        return LeRobotLiberoEnv(suite, 0, renderer="fast", **options)._max_episode_steps

    named = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
    assert [steps(suite) for suite in named] == [280, 280, 300, 520, 400]
    assert steps("libero_spatial", episode_length=7) == 7
    assert steps("libero_spatial_swap") == 220
    mine = Suite("mine", "Mine-v0", 90, get_tasks("libero_spatial")[:1])
    assert steps(mine) == 90
