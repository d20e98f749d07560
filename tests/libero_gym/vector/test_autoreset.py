"""The vector environment's three autoreset modes: the same episodes, each shown as Gymnasium says."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import random_actions
from gymnasium.vector import AutoresetMode
from scripted import soup_into_basket
from vector_backends import BACKENDS, asked_for
from workers import worker_pids

from libero_gym.env import LiberoEnv
from libero_gym.vector.vector import LiberoVectorEnv

# One step of an episode: observation, reward, terminated, truncated, elapsed_steps.
Step = tuple[dict[str, Any], float, bool, bool, int]


def make(mode: AutoresetMode | str, max_episode_steps: int = 4, **kwargs: Any) -> LiberoVectorEnv:
    env = gym.make_vec(
        "LIBERO-Spatial-v0",
        num_envs=2,
        autoreset_mode=mode,
        task_id=[0, 1],
        cameras=(),
        max_episode_steps=max_episode_steps,
        **kwargs,
    )
    assert isinstance(env, LiberoVectorEnv)
    return env


@pytest.fixture(scope="module", params=BACKENDS)
def next_step(request: pytest.FixtureRequest) -> Iterator[LiberoVectorEnv]:
    env = make("NextStep", **asked_for(request.param))
    yield env
    env.close()


@pytest.fixture(scope="module", params=BACKENDS)
def disabled(request: pytest.FixtureRequest) -> Iterator[LiberoVectorEnv]:
    env = make(AutoresetMode.DISABLED, **asked_for(request.param))
    yield env
    env.close()


@pytest.fixture(scope="module")
def soup_actions() -> np.ndarray:
    """What solves LIBERO-Object's task 0 from its first state, (n, 7)."""
    single = LiberoEnv("libero_object", task_id=0, cameras=())
    single.reset(seed=0, options={"init_state_id": 0})
    actions = []
    for action in soup_into_basket(single.simulator):
        actions.append(action)
        if single.step(action)[2]:
            break
    single.close()
    return np.array(actions)


def play(mode: AutoresetMode, actions: np.ndarray, limit: int, n_episodes: int) -> list[list[list[Step]]]:
    """The first episodes of each environment, the k-th step of environment i with ``actions[i, k]``."""
    env = LiberoVectorEnv(
        2,
        suite="libero_object",
        task_id=0,
        cameras=(),
        reward="progress",
        max_episode_steps=limit,
        autoreset_mode=mode,
    )
    assert env.metadata["autoreset_mode"] is mode
    obs, infos = env.reset(seed=0, options={"init_state_id": [0, 1]})
    episodes: list[list[list[Step]]] = [[[first(obs, infos, i)]] for i in range(2)]
    done, taken = np.zeros(2, dtype=bool), [0, 0]
    while any(len(own) <= n_episodes for own in episodes):
        if mode is AutoresetMode.DISABLED and done.any():
            obs, infos = env.reset(options={"reset_mask": done})
            for i in np.flatnonzero(done):
                episodes[i].append([first(obs, infos, i)])
            done[:] = False
        begins = done.copy()
        obs, rewards, terminated, truncated, infos = env.step(np.stack([actions[i, taken[i]] for i in range(2)]))
        done = terminated | truncated
        for i in range(2):
            if mode is AutoresetMode.NEXT_STEP and begins[i]:
                assert (rewards[i], done[i]) == (0.0, False)
                episodes[i].append([first(obs, infos, i)])
                continue
            taken[i] += 1
            last, info = {key: values[i] for key, values in obs.items()}, infos
            if mode is AutoresetMode.SAME_STEP and done[i]:
                last, info = infos["final_obs"][i], infos["final_info"]
            flags = bool(terminated[i]), bool(truncated[i])
            episodes[i][-1].append((last, float(rewards[i]), *flags, int(info["elapsed_steps"][i])))
            if mode is AutoresetMode.SAME_STEP and done[i]:
                episodes[i].append([first(obs, infos, i)])
        assert mode is AutoresetMode.SAME_STEP or "final_obs" not in infos
    env.close()
    return [own[:n_episodes] for own in episodes]


def first(obs: dict[str, Any], infos: dict[str, Any], i: int) -> Step:
    return {key: values[i] for key, values in obs.items()}, 0.0, False, False, int(infos["elapsed_steps"][i])


def test_episodes_are_equal_in_all_modes(soup_actions: np.ndarray) -> None:
    """One that ends in success and one at the limit, and those that follow, to the bit."""
    limit = len(soup_actions) + 10
    actions = random_actions(2 * 3 * limit).reshape(2, 3 * limit, 7)
    actions[0, : len(soup_actions)] = soup_actions
    played = {mode: play(mode, actions, limit, n_episodes=2) for mode in AutoresetMode}
    expected = played[AutoresetMode.SAME_STEP]
    assert expected[0][0][-1][2:] == (True, False, len(soup_actions))
    assert expected[0][0][-1][1] > 0.4  # 1 - phi
    assert expected[1][0][-1][2:] == (False, True, limit)
    for episodes in played.values():
        for own, others in zip(expected, episodes, strict=True):
            for one, another in zip(own, others, strict=True):
                assert [step[1:] for step in one] == [step[1:] for step in another]
                np.testing.assert_array_equal([step[0]["state"] for step in one], [s[0]["state"] for s in another])


def test_gymnasiums_own_vector_wrappers_run_with_next_step(next_step: LiberoVectorEnv) -> None:
    wrappers = gym.wrappers.vector
    env = wrappers.RecordEpisodeStatistics(wrappers.FilterObservation(next_step, filter_keys=["state"]))
    env = wrappers.NormalizeReward(wrappers.FlattenObservation(env))
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2, 8)
    ends = []
    for _ in range(11):
        obs, _, _, truncated, infos = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)
        if truncated.any():
            ends.append(infos["episode"]["l"].tolist())
    assert ends == [[4, 4], [4, 4]]  # in steps 4 and 9: the fifth begins the second episode


def test_gymnasiums_own_vector_wrappers_run_without_autoreset(disabled: LiberoVectorEnv) -> None:
    wrappers = gym.wrappers.vector
    env = wrappers.RecordEpisodeStatistics(wrappers.FilterObservation(disabled, filter_keys=["state"]))
    env.reset(seed=0)
    for _ in range(4):
        _, _, _, truncated, infos = env.step(env.action_space.sample())
    assert infos["episode"]["l"].tolist() == [4, 4]
    obs, _ = env.reset(options={"reset_mask": truncated})
    assert list(obs) == ["state"]


def test_gymnasiums_checks_of_next_step_hold(next_step: LiberoVectorEnv) -> None:
    """The step after the end takes no action: whatever it was, the new episode begins, and counts from zero."""
    shown = []
    for last_action in (np.ones((2, 7)), -np.ones((2, 7))):
        next_step.reset(seed=5)
        for _ in range(4):
            ended, _, _, truncated, infos = next_step.step(np.zeros((2, 7)))
        assert truncated.all()
        assert infos["elapsed_steps"].tolist() == [4, 4]
        begun, rewards, terminated, truncated, infos = next_step.step(last_action)
        assert not np.array_equal(begun["state"], ended["state"])
        assert rewards.tolist() == [0.0, 0.0]
        assert not (terminated | truncated).any()
        assert infos["elapsed_steps"].tolist() == [0, 0]
        shown.append(begun["state"])
    np.testing.assert_array_equal(shown[0], shown[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_episodes_may_end_together(backend: str) -> None:
    """Then the step simulates nobody, and has no potential to read."""
    env = make("NextStep", max_episode_steps=1, reward="progress", settle_steps=0, **asked_for(backend))
    env.reset(seed=0)
    ended = []
    for _ in range(4):
        _, rewards, _, truncated, infos = env.step(np.full((2, 7), 0.5))
        ended.append(truncated.tolist())
        assert (rewards != 0).tolist() == truncated.tolist()
        assert (infos["reward_terms"]["progress"] == rewards).all()
    assert ended == [[True, True], [False, False]] * 2
    env.close()


def test_task_weights_set_after_an_end_hold_for_the_next_episode(next_step: LiberoVectorEnv) -> None:
    next_step.reset(seed=1)
    for _ in range(4):
        next_step.step(np.zeros((2, 7)))
    next_step.set_task_weights([0.0, 1.0])
    infos = next_step.step(np.zeros((2, 7)))[4]
    next_step.set_task_weights([1.0, 1.0])
    assert infos["task_id"].tolist() == [1, 1]


def test_disabled_asks_for_a_reset(disabled: LiberoVectorEnv) -> None:
    disabled.reset(seed=0)
    disabled.step(np.zeros((2, 7)))
    disabled.reset(options={"reset_mask": np.array([False, True])})
    for _ in range(3):
        _, _, _, truncated, _ = disabled.step(np.zeros((2, 7)))
    assert truncated.tolist() == [True, False]
    with pytest.raises(gym.error.ResetNeeded, match=r"environments \[0\] have ended.*reset_mask"):
        disabled.step(np.zeros((2, 7)))
    disabled.reset(options={"reset_mask": truncated})
    assert disabled.step(np.zeros((2, 7)))[4]["elapsed_steps"].tolist() == [1, 4]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_a_restored_environment_is_stepped_though_its_episode_had_ended(mode: str, backend: str) -> None:
    env = make(mode, max_episode_steps=2, settle_steps=0, **asked_for(backend))
    env.reset(seed=0)
    env.step(np.zeros((2, 7)))
    (snapshot,) = env.call("snapshot", indices=[0])
    assert env.step(np.zeros((2, 7)))[3].all()
    env.call("restore", snapshot)
    assert env.step(np.zeros((2, 7)))[4]["elapsed_steps"].tolist() == [2, 2]
    env.close()


def test_a_snapshot_remembers_which_episodes_have_ended(next_step: LiberoVectorEnv) -> None:
    next_step.reset(seed=3)
    next_step.step(np.zeros((2, 7)))
    next_step.reset(options={"reset_mask": np.array([False, True])})
    for _ in range(3):
        next_step.step(np.zeros((2, 7)))
    snapshot = json.loads(json.dumps(next_step.snapshot()))
    assert snapshot["ended"] == [True, False]
    expected = [next_step.step(np.full((2, 7), 0.1)) for _ in range(3)]
    next_step.reset(seed=9)
    next_step.restore(snapshot)
    for obs, rewards, _, truncated, infos in expected:
        again = next_step.step(np.full((2, 7), 0.1))
        np.testing.assert_array_equal(again[0]["state"], obs["state"])
        np.testing.assert_array_equal(again[3], truncated)
        np.testing.assert_array_equal(again[4]["elapsed_steps"], infos["elapsed_steps"])
        assert rewards.tolist() == again[1].tolist()


def test_a_restart_with_next_step_shows_the_last_observation_first() -> None:
    next_step = make("NextStep", restart=True, n_workers=2)
    next_step.reset(seed=7)
    before, *_ = next_step.step(np.full((2, 7), 0.5))
    os.kill(worker_pids(next_step)[0], signal.SIGKILL)
    with pytest.warns(UserWarning, match="Worker 0 died"):
        obs, rewards, _, truncated, infos = next_step.step(np.full((2, 7), 0.5))
    assert truncated.tolist() == infos["worker_restarted"].tolist() == [True, False]
    np.testing.assert_array_equal(obs["state"][0], before["state"][0])
    assert not np.array_equal(obs["state"][1], before["state"][1])
    begun, rewards, _, truncated, infos = next_step.step(np.zeros((2, 7)))
    assert not truncated.any()
    assert rewards[0] == 0.0
    assert infos["elapsed_steps"].tolist() == [0, 3]
    assert not np.array_equal(begun["state"][0], before["state"][0])
    next_step.close()


def test_an_environment_at_rest_stays_there_when_its_worker_is_replaced() -> None:
    """It ended once: its worker's end does not end it again, nor change what it shows."""
    env = make(AutoresetMode.SAME_STEP, restart=True, n_workers=1)
    env.set_autoreset(False)
    env.reset(seed=0)
    env.step(np.ones((2, 7)))
    env.reset(options={"reset_mask": np.array([False, True])})
    for _ in range(3):
        last, _, _, truncated, _ = env.step(np.ones((2, 7)))
    assert truncated.tolist() == [True, False]
    os.kill(worker_pids(env)[0], signal.SIGKILL)
    with pytest.warns(UserWarning, match="Worker 0 died"):
        obs, _, _, truncated, _ = env.step(np.ones((2, 7)))
    assert truncated.tolist() == [False, True]
    np.testing.assert_array_equal(obs["state"], last["state"])
    obs, _, _, truncated, infos = env.step(np.ones((2, 7)))
    assert not truncated.any()
    np.testing.assert_array_equal(obs["state"], last["state"])
    assert infos["elapsed_steps"].tolist() == [4, 3]
    env.set_autoreset(True)  # those that rest begin by themselves
    assert env.step(np.ones((2, 7)))[4]["elapsed_steps"].tolist() == [0, 0]
    env.close()
