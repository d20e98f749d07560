"""`LiberoVectorEnv` is `LiberoEnv` times n: same rollouts, Gymnasium's autoreset, and honest failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import random_actions
from gymnasium.vector import AutoresetMode

from libero_gym.env import LiberoEnv
from libero_gym.vector import LiberoVectorEnv, WorkerError


@pytest.fixture(scope="module")
def vector() -> Iterator[LiberoVectorEnv]:
    env = LiberoVectorEnv(3, suite="libero_spatial", task_id=[0, 1], cameras=(), max_episode_steps=6, n_workers=2)
    yield env
    env.close()


def test_make_vec_gives_batched_spaces_and_frames() -> None:
    env = gym.make_vec(
        "LIBERO-Spatial-v0", num_envs=2, vectorization_mode="vector_entry_point", task_id=0, image_size=32
    )
    assert isinstance(env, LiberoVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    obs, infos = env.reset(seed=0, options={"init_state_id": [4, 4]})
    assert env.observation_space.contains(obs)
    np.testing.assert_array_equal(obs["image"][0], obs["image"][1])
    assert obs["image"].std() > 10
    assert infos["init_state_id"].tolist() == [4, 4]
    obs, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
    assert not np.array_equal(obs["image"][0], obs["image"][1])
    assert rewards.shape == terminated.shape == truncated.shape == (2,)
    env.close()


def test_rollout_equals_single_envs(vector: LiberoVectorEnv) -> None:
    obs, _ = vector.reset(seed=7)
    singles = [LiberoEnv("libero_spatial", task_id=[0, 1], cameras=(), max_episode_steps=6) for _ in range(3)]
    for index, env in enumerate(singles):
        single, _ = env.reset(seed=7 + index)
        np.testing.assert_array_equal(obs["state"][index], single["state"])
        assert obs["instruction"][index] == single["instruction"]
    for actions in random_actions(5 * 3).reshape(5, 3, 7):
        obs, _, _, _, infos = vector.step(actions)
        for index, env in enumerate(singles):
            single, _, _, _, info = env.step(actions[index])
            np.testing.assert_array_equal(obs["state"][index], single["state"])
            assert infos["task_id"][index] == info["task_id"]


def test_same_step_autoreset_keeps_the_last_observation(vector: LiberoVectorEnv) -> None:
    vector.reset(seed=1)
    for step in range(6):
        obs, _, terminated, truncated, infos = vector.step(np.zeros((3, 7)))
        assert truncated.all() == (step == 5)
    assert not terminated.any()
    assert infos["_final_obs"].all()
    assert infos["final_info"]["is_success"].tolist() == [False] * 3
    for index in range(3):
        assert not np.array_equal(infos["final_obs"][index]["state"], obs["state"][index])


def test_reset_mask_resets_only_some(vector: LiberoVectorEnv) -> None:
    vector.reset(seed=2)
    before, *_ = vector.step(np.full((3, 7), 0.5))
    after, _ = vector.reset(options={"reset_mask": np.array([True, False, False])})
    assert not np.array_equal(before["state"][0], after["state"][0])
    np.testing.assert_array_equal(before["state"][1:], after["state"][1:])


def test_task_weights_decide_what_is_drawn(vector: LiberoVectorEnv) -> None:
    vector.set_task_weights([0.0, 2.0])
    assert vector.reset(seed=0)[1]["task_id"].tolist() == [1, 1, 1]
    vector.set_task_weights([1.0, 0.0])
    assert vector.reset(seed=0)[1]["task_id"].tolist() == [0, 0, 0]
    vector.set_task_weights([1.0, 1.0])
    for bad in ([1.0], [np.nan, 1.0], [-1.0, 2.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="expected 2 finite weights"):
            vector.set_task_weights(bad)


def test_call_reaches_the_chosen_environments(vector: LiberoVectorEnv) -> None:
    vector.reset(seed=0)
    states = vector.call("get_state", indices=[2, 0])
    assert len(states) == 2
    assert states[0].memory is not None


def test_bad_input_is_named(vector: LiberoVectorEnv) -> None:
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2, 7\); expected \(3, 7\)"):
        vector.step(np.zeros((2, 7)))
    actions = np.zeros((3, 7))
    actions[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"environments \[1\] hold NaN"):
        vector.step(actions)
    with pytest.raises(ValueError, match="num_envs=0"):
        LiberoVectorEnv(0, suite="libero_spatial")
    with pytest.raises(WorkerError, match="task_id=99 is out of range"):
        vector.reset(options={"task_id": 99})
    vector.reset(seed=0)  # and the workers are still there


def test_a_killed_worker_is_reported_at_once() -> None:
    env = LiberoVectorEnv(2, suite="libero_spatial", task_id=0, cameras=(), n_workers=2, timeout=60)
    env.reset(seed=0)
    pid = env.call("process_id")[1]
    os.kill(pid, signal.SIGSEGV)
    with pytest.raises(WorkerError, match=r"(?s)Worker 1 died.*Segmentation fault"):
        env.step(np.zeros((2, 7)))
    env.close()


def test_script_without_main_guard_works_and_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium as gym\n"
        "env = gym.make_vec('LIBERO-Spatial-v0', num_envs=2, task_id=0, cameras=())\n"
        "env.reset(seed=0)\n"
        "print(*env.call('process_id'))\n"  # not closed on purpose
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120)
    assert result.stderr == ""
    for pid in map(int, result.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
