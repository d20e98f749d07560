"""Tasks of several suites in one: their order, what they keep of their own suites, each its own limit of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from recordings import record_pushes

import libero_gym
from libero_gym import Suite, Task, get_suite, get_tasks, initial_states, register_suite
from libero_gym.demonstrations import LeRobotReader
from libero_gym.env import LiberoEnv

FOUR = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
JOINED, JOINED_ID = "joined", "Joined-v0"
SEEING_NOTHING: dict[str, Any] = {"cameras": (), "settle_steps": 0}
STILL = np.zeros(7, np.float32)


@pytest.fixture
def joined() -> Iterator[Suite]:
    """A task of LIBERO-Spatial for two control steps, and one of LIBERO-Goal for four."""
    spatial, goal = get_tasks("libero_spatial")[2], get_tasks("libero_goal")[0]
    tasks = [replace(spatial, max_steps=2), replace(goal, max_steps=4)]
    yield register_suite(JOINED, tasks, env_id=JOINED_ID)
    del gym.registry[JOINED_ID]
    del libero_gym.tasks._registered[JOINED]
    get_tasks.cache_clear()


def test_the_forty_are_the_four_suites_one_after_the_other() -> None:
    forty = get_tasks("libero_40")
    parts = [(name, task) for name in FOUR for task in get_tasks(name)]
    for task_id, (task, (name, own)) in enumerate(zip(forty, parts, strict=True)):
        assert (task.suite, task.task_id, task.source, task.max_steps) == ("libero_40", task_id, name, FOUR[name])
        assert (task.name, task.instruction, task.bddl_file) == (own.name, own.instruction, own.bddl_file)
        np.testing.assert_array_equal(initial_states(task), initial_states(own))
    assert len({task.instruction for task in forty}) == 40  # so the words tell them apart


def test_the_forty_go_to_another_process_as_they_are() -> None:
    loaded = get_suite("libero_40").loaded()
    assert loaded.tasks == get_tasks("libero_40")
    assert (loaded.name, loaded.env_id, loaded.max_steps) == ("libero_40", "LIBERO-40-v0", 520)


def test_each_task_of_the_forty_has_its_own_limit() -> None:
    env = LiberoEnv("libero_40", **SEEING_NOTHING)
    assert list(env.step_limits) == list(range(40))
    assert list(env.step_limits.values()) == [limit for limit in FOUR.values() for _ in range(10)]
    for task_id, limit in ((range(10), 220), (30, 520)):  # no wrapper counts these
        assert LiberoEnv("libero_40", task_id=task_id, **SEEING_NOTHING).max_episode_steps == limit
    own = LiberoEnv("libero_spatial", **SEEING_NOTHING)
    assert own.max_episode_steps is None


def lengths(env: gym.Env[Any, Any], at_most: int = 6) -> list[int]:
    """Steps until each task's episode is truncated; 0 if it is not."""
    found = []
    for task_id in (0, 1):
        env.reset(seed=0, options={"task_id": task_id})
        ends = [env.step(np.zeros(env.action_space.shape, np.float32))[3] for _ in range(at_most)]
        found.append(ends.index(True) + 1 if True in ends else 0)
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [2, 4]),
        ({"max_episode_steps": 3}, [3, 3]),
        ({"max_episode_steps": 4}, [4, 4]),  # also the suite's own, but asked for
        ({"max_episode_steps": -1}, [0, 0]),
        ({"chunk_size": 3}, [1, 2]),
    ],
)
def test_gym_make_truncates_each_task_at_its_limit(
    joined: Suite, arguments: dict[str, Any], expected: list[int]
) -> None:
    env = gym.make(JOINED_ID, **SEEING_NOTHING, **arguments)
    assert lengths(env) == expected
    env.close()


def test_an_environment_takes_a_limit_for_each_task(joined: Suite) -> None:
    assert lengths(LiberoEnv(joined, max_episode_steps=[3, 1], **SEEING_NOTHING)) == [3, 1]
    with pytest.raises(ValueError, match=r"max_episode_steps has 3 limits; expected one, or one for each of 2 tasks"):
        LiberoEnv(joined, max_episode_steps=[3, 1, 2], **SEEING_NOTHING)
    with pytest.raises(ValueError, match=r"max_episode_steps=0 is out of range"):
        LiberoEnv(joined, max_episode_steps=[3, 0], **SEEING_NOTHING)
    with pytest.raises(ValueError, match=r"max_episode_steps has two limits for task 1, 5 and 9; give it one"):
        LiberoEnv(joined, task_id=[1, 1], max_episode_steps=[5, 9], **SEEING_NOTHING)
    twice = LiberoEnv(joined, task_id=[1, 0, 1], max_episode_steps=[5, 9, 5], **SEEING_NOTHING)
    assert (twice.max_episode_steps, twice.step_limits) == ((5, 9, 5), {0: 9, 1: 5})


def test_worker_processes_truncate_each_task_at_its_limit(joined: Suite) -> None:
    kwargs = {**SEEING_NOTHING, "vectorization_mode": "vector_entry_point", "n_workers": 1, "privileged": True}
    envs = gym.make_vec(JOINED_ID, num_envs=2, **kwargs)
    obs, _ = envs.reset(seed=0, options={"task_id": [0, 1]})
    time_left = np.argmax(obs["privileged"][0] == 1.0)  # the share of the limit that is left
    truncated = []
    for step in range(4):
        obs, _, _, ended, _ = envs.step(np.zeros((2, 7), np.float32))
        truncated.append(ended.tolist())
        if step == 0:
            np.testing.assert_allclose(obs["privileged"][:, time_left], [0.5, 0.75])
    assert [row[0] for row in truncated][:2] == [False, True]
    assert [row[1] for row in truncated] == [False, False, False, True]
    assert (envs.settings["max_episode_steps"], envs.max_episode_steps) == ([2, 4], (2, 4))
    envs.close()
    envs = gym.make_vec(JOINED_ID, num_envs=1, max_episode_steps=4, **kwargs)
    assert set(envs.call("step_limits")[0].values()) == {4}
    envs.close()


def test_tasks_keep_their_limit_and_source_unless_the_suite_has_another(joined: Suite) -> None:
    assert [(task.source, task.max_steps) for task in joined.tasks] == [("libero_spatial", 2), ("libero_goal", 4)]
    assert [(task.suite, task.task_id) for task in joined.tasks] == [(JOINED, 0), (JOINED, 1)]
    assert joined.max_steps == 4
    assert Suite("longer", "Longer-v0", 50, joined.tasks).tasks[0].max_steps == 50
    stock = [*get_tasks("libero_10")[:1], *get_tasks("libero_goal")[:1]]
    assert [task.max_steps for task in Suite("stock", "Stock-v0", None, stock).tasks] == [520, 300]
    bare = Task.from_bddl(stock[0].bddl_file)
    with pytest.raises(ValueError, match=r"Task 1 of 'bare'.*has no max_steps; give one"):
        register_suite("bare", [stock[0], bare], env_id="Bare-v0")
    assert Suite("bare", "Bare-v0", 9, [bare]).tasks[0].source == "bare"


def test_demonstrations_end_at_the_limit_of_their_task(joined: Suite, tmp_path: Path) -> None:
    options = {"task_ids": None, "init_state_ids": [0], "max_steps": None}
    record_pushes(tmp_path / "data", suite=JOINED, **options)
    assert [len(episode) for episode in LeRobotReader(tmp_path / "data")] == [2, 4]
    record_pushes(tmp_path / "all", suite=JOINED, **{**options, "max_steps": 3})
    assert [len(episode) for episode in LeRobotReader(tmp_path / "all")] == [3, 3]
