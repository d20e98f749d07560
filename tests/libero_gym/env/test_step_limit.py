"""max_episode_steps counts control steps, whoever makes the environment and however many a chunk has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from libero_gym.env import LiberoEnv
from libero_gym.tasks import FILES_MAX_STEPS, get_tasks

KWARGS: dict[str, Any] = {"cameras": (), "task_id": 0, "settle_steps": 0}


def _elapsed_at_truncation(env: gym.Env[Any, Any]) -> int:
    env.reset(seed=0, options={"init_state_id": 0})
    truncated = False
    while not truncated:
        *_, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, dtype=np.float32))
        assert not terminated
    return int(info["elapsed_steps"])


def _make_custom(**kwargs: Any) -> gym.Env[Any, Any]:
    task = get_tasks("libero_spatial")[0]
    return gym.make("LIBERO-v0", bddl_file=task.bddl_file, init_states=task.init_states, **kwargs)


class _Wrapped(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(LiberoEnv("libero_spatial", **kwargs))


def _make_by(entry_point: Callable[..., gym.Env[Any, Any]], **kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make(EnvSpec("Own-v0", entry_point=entry_point, max_episode_steps=60), **kwargs)


MAKERS: dict[str, Callable[..., gym.Env[Any, Any]]] = {
    "gym.make": lambda **kwargs: gym.make("LIBERO-Spatial-v0", **kwargs),
    "gym.make of a spec": lambda **kwargs: gym.make(gym.make("LIBERO-Spatial-v0", **kwargs).spec),
    "gym.make of files": _make_custom,
    "gym.make by a function": functools.partial(_make_by, functools.partial(LiberoEnv, "libero_spatial")),
    "gym.make by a wrapper": functools.partial(_make_by, _Wrapped),
    "LiberoEnv": lambda **kwargs: LiberoEnv("libero_spatial", **kwargs),
    "sync": lambda **kwargs: gym.make_vec("LIBERO-Spatial-v0", num_envs=1, vectorization_mode="sync", **kwargs).envs[0],  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("chunk_size", [1, 8])
def test_an_episode_ends_after_the_control_steps_asked_for(make: Callable[..., Any], chunk_size: int) -> None:
    assert _elapsed_at_truncation(make(chunk_size=chunk_size, max_episode_steps=40, **KWARGS)) == 40


def test_a_limit_within_a_chunk_cuts_it_short() -> None:
    assert _elapsed_at_truncation(MAKERS["gym.make"](chunk_size=8, max_episode_steps=13, **KWARGS)) == 13


def test_make_vec_agrees() -> None:
    envs = gym.make_vec("LIBERO-Spatial-v0", num_envs=1, chunk_size=8, max_episode_steps=13, **KWARGS)
    envs.reset(seed=0)
    actions = np.zeros((1, 8, 7), dtype=np.float32)
    assert not envs.step(actions)[3][0]
    *_, truncated, infos = envs.step(actions)
    assert truncated[0]
    assert infos["final_info"]["elapsed_steps"][0] == 13
    envs.close()


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_the_spec_holds_the_limit_as_gymnasium_has_it(chunk_size: int) -> None:
    spec = gym.make("LIBERO-Spatial-v0", chunk_size=chunk_size, max_episode_steps=40, **KWARGS).spec
    assert isinstance(spec, EnvSpec)
    assert spec.max_episode_steps == 40
    assert "max_episode_steps" not in spec.kwargs


def test_the_suites_limit_holds_by_default_and_minus_one_is_gymnasiums_word_for_none() -> None:
    chunked = {"chunk_size": 8, **KWARGS}
    assert gym.make("LIBERO-Goal-v0", **chunked).unwrapped.max_episode_steps == 300  # type: ignore[attr-defined]
    endless = gym.make("LIBERO-Goal-v0", max_episode_steps=-1, **chunked)
    assert endless.unwrapped.max_episode_steps is None  # type: ignore[attr-defined]
    assert not isinstance(endless, gym.wrappers.TimeLimit)


def test_an_environment_that_is_made_again_of_its_spec_has_no_limit_still() -> None:
    endless = gym.make("LIBERO-Goal-v0", max_episode_steps=-1, chunk_size=8, **KWARGS)
    assert gym.make(endless.spec).unwrapped.max_episode_steps is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_files_have_a_limit_that_nobody_asked_for(chunk_size: int) -> None:
    env = _make_custom(chunk_size=chunk_size, privileged=True, **KWARGS)
    env.reset(seed=0)
    time_left = env.step(np.zeros(env.action_space.shape))[0]["privileged"][0]
    assert time_left == pytest.approx(1 - chunk_size / FILES_MAX_STEPS)
    assert isinstance(env, gym.wrappers.TimeLimit)
    assert env._max_episode_steps == FILES_MAX_STEPS
    assert env.unwrapped.max_episode_steps == FILES_MAX_STEPS  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_fresh", [True, False], ids=["in a fresh environment", "in the same one"])
def test_a_restored_episode_is_truncated_where_it_would_have_been(is_fresh: bool) -> None:
    """12 of its 20 steps are left, whatever the ``TimeLimit`` around has seen since the last reset."""
    env: Any = gym.make("LIBERO-Spatial-v0", max_episode_steps=20, **KWARGS)
    env.reset(seed=0)
    for _ in range(8):
        env.step(np.zeros(7, dtype=np.float32))
    snapshot = env.unwrapped.snapshot()
    if is_fresh:
        env = gym.make("LIBERO-Spatial-v0", max_episode_steps=20, **KWARGS)
    env.reset(seed=1)
    for _ in range(3):
        env.step(np.zeros(7, dtype=np.float32))
    env.unwrapped.restore(snapshot)
    results = [env.step(np.zeros(7, dtype=np.float32)) for _ in range(12)]
    assert [truncated for _, _, _, truncated, _ in results] == [False] * 11 + [True]
    assert results[-1][4]["elapsed_steps"] == 20


class _Around(gym.Env[Any, Any]):
    def __init__(self) -> None:
        self.inner = LiberoEnv("libero_spatial", chunk_size=8, **KWARGS)


@pytest.mark.parametrize("entry_point", [_Around, lambda: _Around()], ids=["class", "function"])
def test_a_limit_of_another_environment_around_is_not_taken(entry_point: Callable[..., Any]) -> None:
    spec = EnvSpec("Around-v0", entry_point=entry_point, disable_env_checker=True)
    around = gym.make(spec, max_episode_steps=5)
    assert around.unwrapped.inner.max_episode_steps == 220  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_privileged_time_is_the_share_of_the_limit_asked_for(make: Callable[..., Any]) -> None:
    """The same through gym.make as through make_vec, which hands the limit to the environments."""
    env = make(privileged=True, max_episode_steps=40, **KWARGS)
    env.reset(seed=0)
    for _ in range(10):
        observation = env.step(np.zeros(7, dtype=np.float32))[0]
    assert observation["privileged"][0] == pytest.approx(1 - 10 / 40)
