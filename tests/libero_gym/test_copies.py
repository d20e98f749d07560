"""Copies of environments, simulators and states: true ones, or a refusal that names what to do instead."""

from __future__ import annotations

import copy
import gc
import io
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import random_actions
from gymnasium.utils.env_checker import data_equivalence

from libero_gym.env import LiberoEnv
from libero_gym.rendering.renderer import _ProcessRenderer
from libero_gym.rendering.scene import Scene
from libero_gym.simulation.simulator import Simulator
from libero_gym.simulation.states import SimState
from libero_gym.vector import vector
from libero_gym.vector.pool import WorkerPool
from libero_gym.vector.shared_arrays import SharedArrays


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    """Task 0 of LIBERO-Spatial, reset."""
    env = LiberoEnv("libero_spatial", task_id=0, cameras=(), privileged=True, reward="progress", settle_steps=2)
    env.reset(seed=0, options={"init_state_id": 3})
    yield env
    env.close()


@pytest.fixture
def state(env: LiberoEnv) -> SimState:
    env.reset(seed=0, options={"init_state_id": 3})
    for action in random_actions(10):
        env.step(action)
    return env.get_state()


def _future(env: LiberoEnv, state: Any) -> np.ndarray:
    env.set_state(state)
    for action in random_actions(15, seed=1):
        env.step(action)
    return np.array(env.get_state())


COPIES: dict[str, Callable[[SimState], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "method": lambda state: state.copy(),
    "slice": lambda state: state[:],
    "ellipsis": lambda state: state[...],
    "array": lambda state: np.array(state, subok=True),
    "np.copy": lambda state: np.copy(state, subok=True),
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "in a dict": lambda state: copy.deepcopy({"state": [state]})["state"][0],
    "copy of a copy": lambda state: copy.copy(state[:].copy()),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copied_state_has_the_same_future(
    env: LiberoEnv, state: SimState, make: Callable[[SimState], SimState]
) -> None:
    right = _future(env, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(_future(env, make(state)), right)


def _moved(state: SimState) -> SimState:
    moved = state.copy()
    moved[1] += 0.01
    return moved


def _saved(state: SimState) -> np.ndarray:
    buffer = io.BytesIO()
    np.save(buffer, state)
    buffer.seek(0)
    return np.load(buffer)


@pytest.mark.parametrize("make", [np.array, _saved, _moved, list], ids=["array", "save and load", "moved", "list"])
def test_a_state_without_its_memory_is_warned_of(
    env: LiberoEnv, state: SimState, make: Callable[[SimState], Any]
) -> None:
    with pytest.warns(UserWarning, match=r"mid-episode \(time 0.6 s\) and has lost.*use snapshot\(\) and restore\(\)"):
        env.set_state(make(state))


def test_what_is_computed_from_a_state_has_no_memory(state: SimState) -> None:
    assert state.memory is not None
    for other in (state[1:], state[::-1], state + 1, 2 * state, np.zeros_like(state)):
        assert other.memory is None


def test_official_states_need_no_memory(env: LiberoEnv) -> None:
    from libero_gym.tasks import initial_states

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.set_state(initial_states(env.tasks[0])[7])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_deep_copy_is_an_environment_of_its_own(wrapped: bool) -> None:
    kwargs: dict[str, Any] = {"cameras": (), "task_id": 0, "privileged": True, "reward": "progress"}
    env = gym.make("LIBERO-Spatial-v0", **kwargs)
    env.reset(seed=0, options={"init_state_id": 3})
    for action in random_actions(5):
        env.step(action)
    before = env.unwrapped.get_state()  # type: ignore[attr-defined]
    twin = copy.deepcopy(env if wrapped else env.unwrapped)
    theirs = [twin.step(action) for action in random_actions(10, seed=1)]
    np.testing.assert_array_equal(env.unwrapped.get_state(), before)  # type: ignore[attr-defined]
    assert env.unwrapped.simulator.data.time == before[0]  # type: ignore[attr-defined]
    ours = [env.step(action) for action in random_actions(10, seed=1)]
    for expected, result in zip(ours, theirs, strict=True):
        assert data_equivalence(expected[0], result[0], exact=True)
        assert expected[1:4] == result[1:4]
    del env
    gc.collect()
    twin.step(np.zeros(7))  # it reads nothing of the first one's
    assert twin.reset()[1]["task_id"] == 0


def test_a_deep_copy_draws_the_same_resets() -> None:
    env = LiberoEnv("libero_spatial", task_id=0, cameras=(), settle_steps=0)
    env.reset(seed=3)
    twin = copy.deepcopy(env)
    assert [env.reset()[1] for _ in range(4)] == [twin.reset()[1] for _ in range(4)]


def test_a_deep_copy_shares_the_reward_model() -> None:
    class Model:
        def score(self, images: np.ndarray, instructions: Any) -> np.ndarray:
            return np.zeros(len(images))

    model = Model()
    env = LiberoEnv("libero_spatial", image_size=16, reward="process", reward_model=model)
    assert copy.deepcopy(env).reward_model is model


@pytest.mark.parametrize("make", [copy.copy, pickle.dumps], ids=["copy", "pickle"])
def test_other_copies_of_an_environment_are_refused(env: LiberoEnv, make: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"A LiberoEnv cannot be copied or pickled: .*snapshot\(\) and restore\(\)"):
        make(env)
    with pytest.raises(TypeError, match=r"A Simulator cannot be copied or pickled: .*get_state\(\) and set_state\(\)"):
        make(env.simulator)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("kind", [vector.LiberoVectorEnv, WorkerPool, SharedArrays, Scene, _ProcessRenderer])
def test_what_holds_processes_or_handles_is_never_copied(kind: type, make: Callable[[Any], Any]) -> None:
    thing = object.__new__(kind)  # the refusal reads nothing of it
    with pytest.raises(TypeError, match=f"A {kind.__name__} cannot be copied or pickled: .*another one"):
        make(thing)


@pytest.mark.parametrize(
    ("index", "value"), [(0, np.nan), (0, np.inf), (1, np.nan), (5, -np.inf), (60, np.nan), (60, 1e11), (91, np.inf)]
)
def test_states_that_mujoco_would_not_take_are_refused_before_it_sees_them(
    env: LiberoEnv, state: SimState, index: int, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = np.array(state)
    bad[index] = value
    for take in (env.set_state, env.simulator.reset):
        with pytest.raises(ValueError, match=rf"The state holds {value} at index {index}; expected finite numbers"):
            take(bad)
    np.testing.assert_array_equal(env.get_state(), state)
    assert list(tmp_path.iterdir()) == []


def test_mujocos_warnings_are_logged_and_not_written_into_the_folder(
    env: LiberoEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    state = np.array(env.simulator.get_state())
    state[0] = 0
    state[-10:] = 1e9  # finite, and more than the solver can follow
    simulator: Simulator = copy.deepcopy(env.simulator)
    with caplog.at_level(logging.WARNING, "libero_gym"):
        simulator.set_state(state)
        for _ in range(3):
            simulator.step(np.zeros(7))
    assert any(record.message.startswith("MuJoCo: ") for record in caplog.records)
    assert list(tmp_path.iterdir()) == []


def test_a_copied_simulator_shows_what_its_original_shows(env: LiberoEnv) -> None:
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(3):
        env.step(rng.uniform(-1, 1, 7))
    twin = copy.deepcopy(env.simulator)
    for name in ("kinematics_qpos", "sampled_qpos", "latest_qpos", "sampled_qvel"):
        np.testing.assert_array_equal(getattr(twin, name), getattr(env.simulator, name))
        assert not np.shares_memory(getattr(twin, name), getattr(env.simulator, name))
    assert np.abs(twin.sampled_qpos - twin.data.qpos).max() > 0  # the sample is of before the last substep
