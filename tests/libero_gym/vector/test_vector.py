"""`LiberoVectorEnv` is `LiberoEnv` times n: same rollouts, Gymnasium's autoreset, and honest failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import random_actions
from gymnasium.vector import AutoresetMode
from vector_backends import BACKENDS, asked_for
from workers import worker_pids

from libero_gym.env import LiberoEnv
from libero_gym.tasks import Suite, get_tasks
from libero_gym.vector.backend import Plan
from libero_gym.vector.shared_arrays import SharedArrays
from libero_gym.vector.vector import MAX_REPLACEMENTS, LiberoVectorEnv, WorkerError
from libero_gym.vector.worker import Worker


@pytest.fixture(scope="module", params=BACKENDS)
def vector(request: pytest.FixtureRequest) -> Iterator[LiberoVectorEnv]:
    arguments = asked_for(request.param)
    env = LiberoVectorEnv(3, suite="libero_spatial", task_id=[0, 1], cameras=(), max_episode_steps=6, **arguments)
    yield env
    env.close()


def test_make_vec_gives_batched_spaces_and_frames() -> None:
    kwargs = {"vectorization_mode": "vector_entry_point", "task_id": 0, "image_size": 32, "renderer": "fast"}
    env = gym.make_vec("LIBERO-Spatial-v0", num_envs=2, **kwargs)
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


def test_a_restored_snapshot_goes_on_to_the_bit(vector: LiberoVectorEnv) -> None:
    """Through episodes' ends and the draws of the next, with the task weights; another number is refused."""
    actions = random_actions(3 * 9).reshape(9, 3, 7)
    vector.reset(seed=2)
    vector.set_task_weights([1.0, 3.0])
    vector.step(actions[0])
    snapshot = json.loads(json.dumps(vector.snapshot()))
    expected = [vector.step(action) for action in actions[1:]]
    vector.set_task_weights([1.0, 0.0])
    vector.reset(seed=9)
    vector.restore(snapshot)
    for action, (obs, rewards, terminated, truncated, infos) in zip(actions[1:], expected, strict=True):
        again = vector.step(action)
        np.testing.assert_array_equal(again[0]["state"], obs["state"])
        assert again[0]["instruction"] == obs["instruction"]
        for first, second in zip((rewards, terminated, truncated), again[1:4], strict=True):
            np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(again[4]["init_state_id"], infos["init_state_id"])
    assert sum(step[3].sum() for step in expected) >= 3
    vector.set_task_weights([1.0, 1.0])
    with pytest.raises(ValueError, match="of 2 environments; here are 3"):
        vector.restore({**snapshot, "environments": snapshot["environments"][:2]})


def test_rollout_equals_single_envs(vector: LiberoVectorEnv) -> None:
    """To the bit; in the batched physics by what is drawn alike, and within 1 mm and 5 mrad."""
    far = 5e-3 if vector.settings["physics"] == "batched" else 0.0
    obs, _ = vector.reset(seed=7)
    singles = [LiberoEnv("libero_spatial", task_id=[0, 1], cameras=(), max_episode_steps=6) for _ in range(3)]
    for index, env in enumerate(singles):
        single, _ = env.reset(seed=7 + index)
        np.testing.assert_allclose(obs["state"][index], single["state"], rtol=0, atol=far)
        assert obs["instruction"][index] == single["instruction"]
    for actions in random_actions(5 * 3).reshape(5, 3, 7):
        obs, _, _, _, infos = vector.step(actions)
        for index, env in enumerate(singles):
            single, _, _, _, info = env.step(actions[index])
            np.testing.assert_allclose(obs["state"][index], single["state"], rtol=0, atol=far)
            np.testing.assert_allclose(obs["state"][index][:3], single["state"][:3], rtol=0, atol=far / 5)
            assert infos["task_id"][index] == info["task_id"]
            assert infos["init_state_id"][index] == info["init_state_id"]


def test_same_step_autoreset_keeps_the_last_observation(vector: LiberoVectorEnv) -> None:
    vector.reset(seed=1)
    for step in range(6):
        obs, _, terminated, truncated, infos = vector.step(np.zeros((3, 7)))
        assert truncated.all() == (step == 5)
        assert infos["elapsed_steps"].tolist() == [(step + 1) % 6] * 3
    assert infos["final_info"]["elapsed_steps"].tolist() == [6] * 3
    assert not terminated.any()
    assert infos["_final_obs"].all()
    assert infos["final_info"]["is_success"].tolist() == [False] * 3
    for index in range(3):
        assert not np.array_equal(infos["final_obs"][index]["state"], obs["state"][index])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whose", ["suite's", "files'"])
def test_a_limit_that_is_not_the_environments_own_argument_ends_episodes(backend: str, whose: str) -> None:
    task, arguments = get_tasks("libero_spatial")[0], {"cameras": (), "settle_steps": 0, **asked_for(backend)}
    env: Any
    if whose == "suite's":
        env = LiberoVectorEnv(1, suite=Suite("short", "Short-v0", 2, [replace(task, max_steps=2)]), **arguments)
    else:
        files = {"bddl_file": task.bddl_file, "init_states": task.init_states, "max_episode_steps": 2}
        env = gym.make_vec("LIBERO-v0", 1, vectorization_mode="vector_entry_point", **files, **arguments)
    assert (env.max_episode_steps, env.settings["max_episode_steps"]) == (2, 2)
    env.reset(seed=0)
    assert [bool(env.step(np.zeros((1, 7)))[3][0]) for _ in range(4)] == [False, True, False, True]
    env.close()


def test_reset_mask_resets_only_some(vector: LiberoVectorEnv) -> None:
    vector.reset(seed=2)
    before, *_ = vector.step(np.full((3, 7), 0.5))
    after, _ = vector.reset(options={"reset_mask": np.array([True, False, False])})
    assert not np.array_equal(before["state"][0], after["state"][0])
    np.testing.assert_array_equal(before["state"][1:], after["state"][1:])


def test_without_autoreset_an_ended_environment_rests_until_it_is_reset(vector: LiberoVectorEnv) -> None:
    vector.reset(seed=1, options={"reset_mask": [True, True, False]})
    vector.set_autoreset(False)
    try:
        for _ in range(6):
            vector.reset(options={"reset_mask": np.array([False, False, True])})
            last, _, _, truncated, infos = vector.step(np.ones((3, 7)))
        assert truncated.tolist() == [True, True, False]
        np.testing.assert_array_equal(last["state"][0], infos["final_obs"][0]["state"])
        obs, rewards, _, truncated, infos = vector.step(-np.ones((3, 7)))
        assert not truncated.any()
        assert rewards.tolist() == [0, 0, 0]
        np.testing.assert_array_equal(last["state"][:2], obs["state"][:2])
        assert infos["elapsed_steps"].tolist() == [6, 6, 2]
        vector.reset(options={"reset_mask": np.array([True, False, False])})
        assert vector.step(np.ones((3, 7)))[4]["elapsed_steps"].tolist() == [1, 6, 3]
    finally:
        vector.set_autoreset(True)
        vector.reset(seed=0)


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


def test_an_environment_that_call_has_moved_goes_on_from_there(vector: LiberoVectorEnv) -> None:
    """Those that rest at their episode's end, too: their next step is one of the moment that they were put to."""
    vector.reset(seed=1, options={"task_id": 0})
    vector.set_autoreset(False)
    try:
        seen, *_ = vector.step(np.ones((3, 7)))
        snapshot, state = vector.call("snapshot")[0], vector.call("get_state")[1]
        then, *_ = vector.step(np.ones((3, 7)))
        for _ in range(4):
            last, _, _, truncated, _ = vector.step(np.ones((3, 7)))
        assert truncated.all()
        vector.call("restore", snapshot, indices=[0])
        vector.call("set_state", state, indices=[1])
        shown = vector.backend.arrays["state"]
        np.testing.assert_allclose(shown[:2], seen["state"][:2], rtol=0, atol=1e-5)
        obs, _, _, truncated, infos = vector.step(np.ones((3, 7)))
        np.testing.assert_allclose(obs["state"][:2], then["state"][:2], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(obs["state"][2], last["state"][2])
        assert infos["elapsed_steps"].tolist() == [2, 7, 6]  # a state does not say how old the episode was
        assert truncated.tolist() == [False, True, False]
    finally:
        vector.set_autoreset(True)
        vector.reset(seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_before_a_reset_attributes_are_answered_and_what_needs_an_episode_says_so(backend: str) -> None:
    seeing = {"cameras": (), "renderer": "fast", "render_mode": "rgb_array", "render_size": 16, "settle_steps": 0}
    env, other = (LiberoVectorEnv(2, suite="libero_spatial", task_id=3, **seeing, **asked_for(backend)) for _ in "ab")
    for _ in range(2):  # also once one of them has an episode
        assert env.call("task_ids") == ((3,), (3,))
        for ask in (env.render, lambda: env.call("get_state", indices=[1]), lambda: env.call("snapshot")):
            with pytest.raises(gym.error.ResetNeeded, match=r"Call reset\(\) first"):
                ask()
        env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    other.call("restore", env.call("snapshot", indices=[0])[0])
    obs, _, _, _, infos = other.step(np.zeros((2, 7)))
    np.testing.assert_allclose(obs["state"][0], obs["state"][1], rtol=0, atol=1e-6)
    assert infos["elapsed_steps"].tolist() == [1, 1]
    env.close()
    other.close()


def test_call_resets_and_steps_environments_in_processes() -> None:
    """Their results are shown and counted, as those of the vector environment's own resets and steps are."""
    env = LiberoVectorEnv(2, suite="libero_spatial", cameras=(), max_episode_steps=2, n_workers=1, settle_steps=0)
    env.call("reset", seed=3, options={"task_id": 4})
    assert env.step(np.zeros((2, 7)))[4]["task_id"].tolist() == [4, 4]
    env.set_autoreset(False)
    assert env.call("step", np.zeros(7), indices=[1])[0][3]
    _, _, _, truncated, infos = env.step(np.zeros((2, 7)))
    assert truncated.tolist() == [True, False]
    assert infos["elapsed_steps"].tolist() == [2, 2]
    env.close()


def test_bad_input_is_named(vector: LiberoVectorEnv) -> None:
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2, 7\); expected \(3, 7\)"):
        vector.step(np.zeros((2, 7)))
    actions = np.zeros((3, 7))
    actions[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"environments \[1\] hold NaN"):
        vector.step(actions)


@pytest.fixture(scope="module")
def restarting() -> Iterator[LiberoVectorEnv]:
    """Environments 0 and 1 live in worker 0, environment 2 in worker 1."""
    env = LiberoVectorEnv(3, suite="libero_spatial", task_id=[0, 1], cameras=(), n_workers=2, restart=True)
    yield env
    env.close()


class Abort:
    """Kills the process that unpickles it, with a traceback."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


class Sleep:
    """Hangs the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (1000,)


def kill(env: LiberoVectorEnv, index: int, signum: int = signal.SIGKILL) -> int:
    """Send a signal to the worker of an environment; gives its process id."""
    pid = worker_pids(env)[index]
    os.kill(pid, signum)
    return pid


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that has ended but was not waited for counts, too."""
    return Path(f"/proc/{pid}").exists()


def test_a_killed_worker_is_reported_with_its_traceback() -> None:
    env = LiberoVectorEnv(2, suite="libero_spatial", task_id=0, cameras=(), n_workers=2, timeout=60)
    _, infos = env.reset(seed=0)
    assert "worker_restarted" not in infos
    pid = kill(env, 1, signal.SIGSEGV)
    for _ in range(2):  # and it stays so
        with pytest.raises(WorkerError, match=r"(?s)Worker 1 died \(SIGSEGV\).*Segmentation fault.*in serve"):
            env.step(np.zeros((2, 7)))
    assert not is_alive(pid)
    pid = kill(env, 0)
    with pytest.raises(WorkerError, match=r"Worker 0 died \(SIGKILL\) without an answer.\nIt left no traceback"):
        env.reset()
    env.close()
    assert not is_alive(pid)


def test_a_hung_worker_is_reported_in_time_with_its_stack() -> None:
    env = LiberoVectorEnv(2, suite="libero_spatial", task_id=0, cameras=(), n_workers=2)
    env.reset(seed=0)  # which may take longer on a busy machine
    env.backend.pool.timeout = 5
    pids = worker_pids(env)
    os.kill(pids[0], signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"(?s)Worker 0 hung: no answer within 5 s.*in serve"):
        env.step(np.zeros((2, 7)))
    with pytest.raises(WorkerError, match=r"(?s)Worker 1 hung: .*messages.py.*in serve"):
        env.call("set_state", Sleep(), indices=[1])
    assert time.monotonic() - start < 2 * 5 + 8
    assert not any(map(is_alive, pids))
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 4


def test_a_restart_truncates_its_episodes_and_leaves_the_others_alone(restarting: LiberoVectorEnv) -> None:
    env, actions = restarting, random_actions(5 * 3).reshape(5, 3, 7)
    undisturbed = [env.reset(seed=7)[0]["state"]] + [env.step(action)[0]["state"] for action in actions]
    env.reset(seed=7)
    env.step(actions[0])
    pid = kill(env, 0)
    with pytest.warns(UserWarning, match=r"Worker 0 died \(SIGKILL\).*replaced.*environments \[0, 1\] start new"):
        obs, rewards, terminated, truncated, infos = env.step(actions[1])
    assert not is_alive(pid)
    assert rewards.tolist() == [0.0] * 3
    assert not terminated.any()
    assert truncated.tolist() == infos["worker_restarted"].tolist() == infos["_final_obs"].tolist()
    assert truncated.tolist() == [True, True, False]
    assert infos["_worker_restarted"].all()
    assert infos["final_info"]["worker_restarted"][:2].all()
    assert infos["final_info"]["is_success"].tolist() == [False] * 3
    for index in (0, 1):
        np.testing.assert_array_equal(infos["final_obs"][index]["state"], undisturbed[1][index])
        single = LiberoEnv("libero_spatial", task_id=[0, 1], cameras=())
        seed = int(np.random.SeedSequence([7 + index, 1]).generate_state(1)[0])
        first, info = single.reset(seed=seed)
        np.testing.assert_array_equal(obs["state"][index], first["state"])
        assert infos["init_state_id"][index] == info["init_state_id"]
    np.testing.assert_array_equal(obs["state"][2], undisturbed[2][2])
    for step in (2, 3, 4):
        obs, _, _, truncated, infos = env.step(actions[step])
        np.testing.assert_array_equal(obs["state"][2], undisturbed[step + 1][2])
        assert not truncated.any()
        assert not infos["worker_restarted"].any()
        assert infos["_worker_restarted"].all()


def test_a_worker_killed_in_reset_is_replaced_and_reset_as_asked(restarting: LiberoVectorEnv) -> None:
    expected, _ = restarting.reset(seed=3)
    kill(restarting, 2)
    with pytest.warns(UserWarning, match=r"Worker 1 died.*environments \[2\]"):
        obs, infos = restarting.reset(seed=3)
    np.testing.assert_array_equal(obs["state"], expected["state"])
    assert infos["worker_restarted"].tolist() == [False, False, True]
    kill(restarting, 0)
    options = {"reset_mask": np.array([True, False, False]), "init_state_id": 9}
    with pytest.warns(UserWarning, match=r"environments \[0, 1\]"):
        obs, infos = restarting.reset(options=options)
    assert infos["worker_restarted"].tolist() == [True, True, False]  # 1 was not asked for, but lost its episode
    assert infos["init_state_id"][0] == 9
    np.testing.assert_array_equal(obs["state"][2], expected["state"][2])
    assert not restarting.reset()[1]["worker_restarted"].any()


def test_task_weights_hold_in_a_new_worker(restarting: LiberoVectorEnv) -> None:
    restarting.set_task_weights([0.0, 1.0])
    drawn = []
    for seed in range(4):
        restarting.reset(seed=seed, options={"task_id": 0})
        kill(restarting, 0)
        with pytest.warns(UserWarning, match="Worker 0 died"):
            _, _, _, _, infos = restarting.step(np.zeros((3, 7)))
        assert infos["final_info"]["task_id"][:2].tolist() == [0, 0]
        drawn += infos["task_id"][:2].tolist()
    restarting.set_task_weights([1.0, 1.0])
    assert drawn == [1] * 8


def test_call_cannot_answer_for_a_dead_worker_but_the_next_step_replaces_it(restarting: LiberoVectorEnv) -> None:
    restarting.reset(seed=0)
    with pytest.raises(WorkerError, match=r"(?s)Worker 1 died \(SIGABRT\).*Aborted"):
        restarting.call("set_state", Abort(), indices=[2])
    with pytest.warns(UserWarning, match="Worker 1 died"):
        _, _, _, truncated, _ = restarting.step(np.zeros((3, 7)))
    assert truncated.tolist() == [False, False, True]


def test_an_exception_in_a_worker_is_raised_and_replaces_nothing(restarting: LiberoVectorEnv) -> None:
    restarting.reset(seed=0)
    before = worker_pids(restarting), restarting.n_restarts
    with pytest.raises(ValueError, match="state") as caught:
        restarting.call("set_state", np.zeros(1))
    assert isinstance(caught.value.__cause__, WorkerError)
    assert "in set_state" in str(caught.value.__cause__)
    assert (worker_pids(restarting), restarting.n_restarts) == before


def test_many_restarts_leak_nothing(restarting: LiberoVectorEnv) -> None:
    def held() -> list[int]:
        template = restarting.backend.pool._template.pid
        children = Path(f"/proc/{template}/task/{template}/children").read_text().split()
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", template)] + [len(children)]

    restarting.reset(seed=0)
    before = held()
    assert before[2] == 2  # the workers
    for _ in range(MAX_REPLACEMENTS + 1):  # more than the limit, but each completes a step
        kill(restarting, 0)
        with pytest.warns(UserWarning, match="Worker 0 died"):
            restarting.step(np.zeros((3, 7)))
        restarting.step(np.zeros((3, 7)))
        assert held() == before


def test_a_worker_that_keeps_dying_ends_the_run() -> None:
    env = LiberoVectorEnv(2, suite="libero_spatial", task_id=0, cameras=(), n_workers=2, restart=True)
    env.reset(seed=0)
    with (
        pytest.warns(UserWarning, match="Worker 1 died") as warned,
        pytest.raises(WorkerError, match=r"(?s)Worker 1 was replaced 5 times without completing a step.*Aborted"),
    ):
        env.backend.reset({0: (None, {}), 1: (None, {"init_state_id": Abort()})})
    assert len(warned) == env.n_restarts == MAX_REPLACEMENTS == 5
    env.close()

    env = LiberoVectorEnv(1, suite="libero_spatial", task_id=0, cameras=(), restart=True)
    env.reset(seed=0)
    for _ in range(MAX_REPLACEMENTS):
        kill(env, 0)
        with pytest.warns(UserWarning, match="Worker 0 died"):
            env.step(np.zeros((1, 7)))
    kill(env, 0)
    with pytest.raises(WorkerError, match="replaced 5 times"):
        env.step(np.zeros((1, 7)))
    env.close()


def test_a_hung_worker_is_replaced_in_the_middle_of_a_chunk() -> None:
    chunk = np.tile([0.3, 0.1, -0.3, 0.0, 0.0, 0.0, 1.0], (30, 1))
    single = LiberoEnv("libero_spatial", task_id=0, cameras=(), chunk_size=30, max_episode_steps=30)
    single.reset(seed=5)
    last, *_ = single.step(chunk)
    env = LiberoVectorEnv(
        2,
        suite="libero_spatial",
        task_id=0,
        cameras=(),
        chunk_size=30,
        max_episode_steps=30,
        n_workers=1,
        restart=True,
    )
    first, _ = env.reset(seed=5)
    env.backend.pool.timeout = 5
    pid = worker_pids(env)[0]
    env.step_async(np.stack([chunk, chunk]))
    while not env.backend.arrays["truncated"][0]:
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)  # environment 0 has ended its episode, environment 1 has not
    with pytest.warns(UserWarning, match=r"Worker 0 hung: no answer within 5 s.*environments \[0, 1\]"):
        obs, rewards, _, truncated, infos = env.step_wait()
    assert not is_alive(pid)
    assert truncated.tolist() == [True, True]
    assert rewards.tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(infos["final_obs"][0]["state"], last["state"])
    np.testing.assert_array_equal(infos["final_obs"][1]["state"], first["state"][1])
    assert not np.array_equal(obs["state"][0], last["state"])
    last_obs, _, _, truncated, _ = env.step(np.stack([chunk, chunk]))
    assert truncated.all()
    kill(env, 0)  # right after its episodes have ended, and new ones begun
    with pytest.warns(UserWarning, match="Worker 0 died"):
        _, _, _, truncated, infos = env.step(np.stack([chunk, chunk]))
    assert truncated.all()
    for index in range(2):
        np.testing.assert_array_equal(infos["final_obs"][index]["state"], last_obs["state"][index])
    env.close()


def test_what_ended_an_episode_is_written_before_the_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a worker that dies in the reset leaves the episode's result behind."""
    layout = Plan(3, LiberoEnv("libero_spatial", task_id=[0, 1], cameras=()), {}).layout
    own = {"actions": ((3, 7), "float64"), "task_weights": ((2,), "float64"), "autoreset": ((1,), "int8")}
    shared = SharedArrays({**layout, **own})
    shared["task_weights"][:] = 0.5
    worker = Worker(0, 1, shared)
    worker.make({"suite": "libero_spatial", "task_id": [0, 1], "cameras": (), "max_episode_steps": 1})
    worker.reset({0: (0, {})})
    flags: list[bool] = []
    monkeypatch.setattr(worker, "_reset", lambda *args: flags.append(bool(shared["truncated"][0])))
    worker.step()
    assert flags == [True]
    assert shared["final_state"][0].any()
    assert not np.array_equal(shared["final_state"][0], shared["state"][0])
    worker.close()
    shared.close()


def test_a_lost_template_is_named() -> None:
    env = LiberoVectorEnv(1, suite="libero_spatial", task_id=0, cameras=(), restart=True)
    env.reset(seed=0)
    os.kill(env.backend.pool._template.pid, signal.SIGKILL)
    env.step(np.zeros((1, 7)))  # the worker lives
    kill(env, 0)
    with (
        pytest.warns(UserWarning, match="Worker 0 died"),
        pytest.raises(WorkerError, match="template process died"),
    ):
        env.step(np.zeros((1, 7)))
    env.close()


def test_script_without_main_guard_works_and_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium as gym\n"
        "env = gym.make_vec('LIBERO-Spatial-v0', num_envs=2, task_id=0, cameras=())\n"
        "env.reset(seed=0)\n"
        "print(*env.backend.process_ids)\n"  # not closed on purpose
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120)
    assert result.stderr == ""
    for pid in map(int, result.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
