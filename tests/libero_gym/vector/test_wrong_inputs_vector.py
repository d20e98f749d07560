"""Whatever wrong a vector environment is given, it answers with one sentence, and goes on as it was."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from workers import worker_pids

from libero_gym.env import LiberoEnv
from libero_gym.vector import arguments as vector_arguments
from libero_gym.vector.processes import shares
from libero_gym.vector.shared_arrays import SharedArrays
from libero_gym.vector.vector import LiberoVectorEnv, WorkerError

Act = Callable[[LiberoVectorEnv], Any]

ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"num_envs": 0}, r"num_envs=0 is out of range; expected a whole number of at least 1"),
    ({"num_envs": -1}, r"num_envs=-1 is out of range"),
    ({"num_envs": True}, r"num_envs=True; expected a whole number"),
    ({"num_envs": 2.5}, r"num_envs=2.5; expected a whole number"),
    ({"num_envs": "2"}, r"num_envs='2'; expected a whole number"),
    ({"num_envs": 10**9}, r"num_envs=1000000000 needs at least .* GiB of memory, and .* fewer environments"),
    ({"num_envs": 10**30}, r"needs at least .* GiB of memory"),
    ({"n_workers": 0}, r"n_workers=0 is out of range"),
    ({"n_workers": "2"}, r"n_workers='2'; expected a whole number of at least 1"),
    ({"n_workers": 1.0}, r"n_workers=1.0; expected a whole number"),
    ({"n_worker": 2}, r"Unknown argument 'n_worker'. Did you mean 'n_workers'"),
    ({"timeout": "5"}, r"timeout='5'; expected a number above 0"),
    ({"timeout": 0}, r"timeout=0 is out of range"),
    ({"timeout": float("nan")}, r"timeout=nan; expected a number"),
    ({"timeout": 1e300}, r"timeout=1e\+300 is out of range"),
    ({"restart": "no"}, r"restart='no'; expected True or False"),
    ({"restart": 1}, r"restart=1; expected True or False"),
    ({"max_episode_steps": 0}, r"max_episode_steps=0 is out of range; expected a whole number of at least 1"),
    ({"max_episode_steps": -3}, r"max_episode_steps=-3 is out of range"),
    ({"max_episode_steps": "9"}, r"max_episode_steps='9'; expected"),
    ({"render_device": "0"}, r"render_device='0'; expected an EGL device index"),
    ({"autoreset_mode": "NEXT"}, r"Unknown autoreset_mode 'NEXT'. .*Choices: 'NextStep', 'SameStep', 'Disabled'"),
    ({"autoreset_mode": None}, r"Unknown autoreset_mode None"),
    ({"task_id": 99}, r"task_id=99 is out of range"),
    ({"reward": "process"}, r"make_vec_env"),
]

RESETS: list[tuple[dict[str, Any], str]] = [
    ({"seed": -1}, r"seed=-1 is out of range"),
    ({"seed": 1.5}, r"seed=1.5; expected a whole number"),
    ({"seed": True}, r"seed=True; expected a whole number"),
    ({"seed": "1"}, r"seed='1'; expected a whole number"),
    ({"seed": [1]}, r"seed has 1 values; expected one, or one for each of 2"),
    ({"seed": [1, 2, 3]}, r"seed has 3 values"),
    ({"seed": [1, -2]}, r"seed=-2 is out of range"),
    ({"options": [1]}, r"options=\[1\]; expected a dict"),
    ({"options": {"init_state_id": 99}}, r"^init_state_id=99 is out of range"),
    ({"options": {"init_state_id": [0, 99]}}, r"^init_state_id=99 is out of range"),
    ({"options": {"init_state_id": [0, 1, 2]}}, r"init_state_id has 3 values; expected one, or one for each of 2"),
    ({"options": {"task_id": 99}}, r"^task_id=99 is out of range"),
    ({"options": {"task_id": 1.7}}, r"task_id=1.7; expected a whole number"),
    ({"options": {"init_state": 3}}, r"^Unknown reset option 'init_state'. Did you mean 'init_state_id'"),
    ({"options": {"init_state_id": 1, "placement_seed": 2}}, r"not both"),
    ({"options": {"reset_mask": [True]}}, r"reset_mask has shape \(1,\) and type bool; expected \(2,\) booleans"),
    ({"options": {"reset_mask": [0, 1]}}, r"reset_mask has shape \(2,\) and type int64"),
    ({"options": {"reset_mask": "yes"}}, r"reset_mask has shape \(\)"),
]

CALLS: list[tuple[Act, type[Exception], str]] = [
    (lambda env: env.step(np.zeros((1, 7))), ValueError, r"actions have shape \(1, 7\); expected \(2, 7\)"),
    (lambda env: env.step(np.full((2, 7), np.nan)), ValueError, r"environments \[0, 1\] hold NaN"),
    (lambda env: env.step([["a"] * 7] * 2), ValueError, r"no array of numbers"),
    (lambda env: env.step([[0.0] * 7, [0.0]]), ValueError, r"no array of numbers"),
    (lambda env: env.step(None), ValueError, r"no array of numbers"),
    (lambda env: env.step_wait(), NoAsyncCallError, r"start one with step_async"),
    (lambda env: env.call("nope"), AttributeError, r"'LiberoEnv' object has no attribute 'nope'"),
    (lambda env: env.call("settings", indices=[2]), ValueError, r"indices=2 is out of range; .* from 0 to 1"),
    (lambda env: env.call("settings", indices=[-1]), ValueError, r"indices=-1 is out of range"),
    (lambda env: env.call("settings", indices=0), ValueError, r"indices=0; expected a sequence"),
    (lambda env: env.call("settings", indices=["a"]), ValueError, r"indices='a'; expected a whole number"),
    (lambda env: env.call("set_state", lambda: 0), TypeError, r"cannot be sent to the worker processes"),
    (lambda env: env.call("simulator"), TypeError, r"cannot be|cannot pickle"),
    (lambda env: env.set_task_weights([1.0]), ValueError, r"task weights \[1.0\]: expected 2"),
    (lambda env: env.set_task_weights("ab"), ValueError, r"task weights 'ab': expected 2"),
    (lambda env: env.set_autoreset("no"), ValueError, r"enabled='no'; expected True or False"),
    (lambda env: env.restore({}), ValueError, r"no snapshot of a LiberoVectorEnv: it lacks environments"),
    (lambda env: env.restore(env.snapshot() | {"seeds": ["x", None]}), ValueError, "snapshot's seeds='x'"),
    (lambda env: env.restore(env.snapshot() | {"restarts": [None, 0]}), ValueError, "snapshot's restarts=None"),
    (lambda env: env.restore(env.snapshot() | {"ended": [True] * 5}), ValueError, "The snapshot is of 5 environments"),
    (lambda env: env.call("set_task_weights", [1.0]), ValueError, r"call LiberoVectorEnv\.set_task_weights itself"),
    (lambda env: env.restore([1]), ValueError, r"no snapshot of a LiberoVectorEnv"),
]

NEEDS_RESET: list[Act] = [
    lambda env: env.step(np.zeros((2, 7))),
    lambda env: env.step_async(np.zeros((2, 7))),
    lambda env: env.snapshot(),
    lambda env: env.call("get_state"),
    lambda env: env.render(),
]

NEEDS_OPEN: list[Act] = [
    lambda env: env.reset(),
    lambda env: env.step(np.zeros((2, 7))),
    lambda env: env.step_async(np.zeros((2, 7))),
    lambda env: env.step_wait(),
    lambda env: env.call("settings"),
    lambda env: env.render(),
    lambda env: env.snapshot(),
    lambda env: env.restore({}),
    lambda env: env.set_task_weights([1.0, 1.0]),
    lambda env: env.set_autoreset(True),
]


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoVectorEnv]:
    env = LiberoVectorEnv(
        2,
        suite="libero_spatial",
        task_id=[0, 1],
        cameras=(),
        n_workers=2,
        image_size=32,
        render_mode="rgb_array",
    )
    for act in NEEDS_RESET:
        with pytest.raises(ResetNeeded, match=r"Call reset\(\) first"):
            act(env)
    env.reset(seed=0)
    yield env
    env.close()
    env.close()
    for act in NEEDS_OPEN:
        with pytest.raises(ClosedEnvironmentError, match="The environments are closed; make others"):
            act(env)


@pytest.mark.parametrize(("arguments", "sentence"), ARGUMENTS, ids=lambda value: str(value)[:40])
def test_wrong_arguments_are_told_before_any_process_starts(
    arguments: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("started a process")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(ValueError, match=sentence):
        LiberoVectorEnv(**{"num_envs": 2, "suite": "libero_spatial", "cameras": (), **arguments})


@pytest.mark.parametrize(("arguments", "sentence"), RESETS, ids=lambda value: str(value)[:60])
def test_a_wrong_reset_is_told_and_changes_nothing(
    env: LiberoVectorEnv, arguments: dict[str, Any], sentence: str
) -> None:
    env.reset(seed=3)
    expected = env.step(np.full((2, 7), 0.2))[0]["state"], env.reset()[1]["init_state_id"]
    env.reset(seed=3)
    with pytest.raises(ValueError, match=sentence) as caught:
        env.reset(**arguments)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(env.step(np.full((2, 7), 0.2))[0]["state"], expected[0])
    np.testing.assert_array_equal(env.reset()[1]["init_state_id"], expected[1])  # the generators, too


@pytest.mark.parametrize(
    "options", [{"init_state_id": 99}, {"task_id": 99}, {"nope": 1}, {"fixture_draw": 0}, {"placement_seed": -1}]
)
def test_one_environment_and_many_answer_alike(env: LiberoVectorEnv, options: dict[str, Any]) -> None:
    single = LiberoEnv("libero_spatial", task_id=[0, 1], cameras=())
    with pytest.raises(ValueError, match=next(iter(options))) as expected:
        single.reset(options=options)
    with pytest.raises(ValueError, match="^" + re.escape(str(expected.value)) + "$"):
        env.reset(options=options)


@pytest.mark.parametrize(("act", "kind", "sentence"), CALLS, ids=lambda value: None)
def test_a_wrong_call_is_told_and_changes_nothing(
    env: LiberoVectorEnv, act: Act, kind: type[Exception], sentence: str
) -> None:
    workers = worker_pids(env)
    env.reset(seed=3)
    expected = env.step(np.full((2, 7), 0.2))[0]["state"]
    env.reset(seed=3)
    with pytest.raises(kind, match=sentence) as caught:
        act(env)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(env.step(np.full((2, 7), 0.2))[0]["state"], expected)
    assert worker_pids(env) == workers


def test_what_a_worker_raised_has_its_traceback_as_the_cause(env: LiberoVectorEnv) -> None:
    with pytest.raises(AttributeError, match="nope") as caught:
        env.call("nope")
    assert isinstance(caught.value.__cause__, WorkerError)
    assert "Worker 0 failed: AttributeError" in str(caught.value.__cause__)
    assert "worker.py" in str(caught.value.__cause__)


def test_a_class_that_workers_cannot_import_is_told(env: LiberoVectorEnv) -> None:
    """As one of the user's script: today's worker would have died of it."""
    module = type(sys)("only_here")
    module.Weights = type("Weights", (), {"__module__": "only_here"})  # type: ignore[attr-defined]
    sys.modules["only_here"] = module
    workers = worker_pids(env)
    with pytest.raises(ModuleNotFoundError, match="only_here"):
        env.call("set_state", module.Weights())
    del sys.modules["only_here"]
    assert worker_pids(env) == workers


def test_two_steps_at_once_are_refused_and_the_first_can_be_collected(env: LiberoVectorEnv) -> None:
    env.reset(seed=3)
    expected = env.step(np.full((2, 7), 0.2))[0]["state"]
    env.reset(seed=3)
    env.step_async(np.full((2, 7), 0.2))
    with pytest.raises(AlreadyPendingCallError, match=r"collect it with step_wait\(\)"):
        env.step_async(np.full((2, 7), -0.2))
    assert len(env.call("settings")) == 2  # a call in between gets its own answer
    np.testing.assert_array_equal(env.step_wait()[0]["state"], expected)


def test_resetting_some_leaves_the_others_without_an_episode() -> None:
    env = LiberoVectorEnv(2, suite="libero_spatial", task_id=0, cameras=(), n_workers=1)
    env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded, match=r"environments \[1\] have no episode"):
        env.step(np.zeros((2, 7)))
    env.reset(options={"reset_mask": np.array([False, True])})
    assert env.step(np.zeros((2, 7)))[4]["elapsed_steps"].tolist() == [1, 1]
    env.close()


def test_make_vec_tells_as_well() -> None:
    with pytest.raises(ValueError, match="max_episode_steps=-3 is out of range"):
        gym.make_vec("LIBERO-Spatial-v0", num_envs=2, cameras=(), max_episode_steps=-3)


def test_memory_that_the_system_refuses_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container with little memory refuses it."""

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = os.listdir("/proc/self/fd")
    sentence = r"needs 1.0 MiB of RAM.*\(No space left on device\); make fewer environments .*--shm-size.*/dev/shm"
    with pytest.raises(OSError, match=sentence) as caught:
        SharedArrays({"image": ((1024, 1024), "uint8")})
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir("/proc/self/fd") == before


def test_there_are_as_many_workers_as_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 6})
    assert shares(5, None, 0) == [(0, 2), (2, 5)]


def test_as_many_as_memory_holds_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    space = LiberoEnv("libero_spatial", task_id=0, image_size=256).observation_space
    monkeypatch.setattr(vector_arguments, "available_memory", lambda: 2**30)
    assert vector_arguments.check_num_envs(500, space) == 500
    with pytest.raises(ValueError, match=r"num_envs=600 needs at least 1.1 GiB of memory, and 1.0 GiB are free"):
        vector_arguments.check_num_envs(600, space)
