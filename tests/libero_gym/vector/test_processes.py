"""Workers end when they should and only then: signals, Ctrl-C at any moment, forks, parents that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from workers import worker_pids

from libero_gym.vector import messages, pool
from libero_gym.vector.pool import WorkerPool
from libero_gym.vector.vector import LiberoVectorEnv, WorkerError

ARGUMENTS: dict[str, Any] = {"suite": "libero_spatial", "task_id": 0, "cameras": ()}
SCRIPT = """
import signal, sys
import numpy as np
from libero_gym.vector.vector import LiberoVectorEnv
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), lambda *_: None)
print("starting", flush=True)
env = LiberoVectorEnv(2, suite="libero_spatial", task_id=0, cameras=(), n_workers=2)
env.reset(seed=0)
print(env.backend.pool._template.pid, *env.backend.process_ids, flush=True)
for line in sys.stdin:
    print(env.step(np.zeros((2, 7)))[4]["elapsed_steps"].tolist(), flush=True)
"""


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoVectorEnv]:
    env = LiberoVectorEnv(2, **ARGUMENTS, n_workers=2, chunk_size=10, restart=True)
    env.reset(seed=3)
    yield env
    pids = (*worker_pids(env), env.backend.pool._template.pid)
    env.step_async(np.zeros((2, 10, 7)))
    env.close()
    assert wait_until(lambda: all(map(is_gone, pids)))  # also in the middle of a step


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def interrupt_once(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, after: bool = False) -> None:
    """Have the next call raise KeyboardInterrupt, before or after its work."""
    original = getattr(where, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(where, name, original)
        if after:
            original(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(where, name, interrupted)


def test_signals_to_the_group_are_the_parents_and_kill_9_of_it_ends_all() -> None:
    """From the first moment of the template on. A worker that hangs is ended as well."""
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    assert parent.stdout.readline() == "starting\n"
    os.set_blocking(parent.stdout.fileno(), False)
    line = ""
    while not line.endswith("\n"):
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.killpg(parent.pid, signum)
        time.sleep(0.05)
        assert parent.poll() is None, parent.stderr and parent.stderr.read()
        line += parent.stdout.readline()
    os.set_blocking(parent.stdout.fileno(), True)
    pids = list(map(int, line.split()))
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.killpg(parent.pid, signum)
    parent.stdin.write("step\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "[1, 1]\n"
    assert not any(map(is_gone, pids))
    os.kill(pids[-1], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: all(map(is_gone, pids)))
    for stream in (parent.stdin, parent.stdout, parent.stderr):
        assert stream is not None
        stream.close()


def test_close_ends_a_hung_worker_without_its_template() -> None:
    env = LiberoVectorEnv(2, **ARGUMENTS, n_workers=2)
    pids = worker_pids(env)
    os.kill(env.backend.pool._template.pid, signal.SIGKILL)
    os.kill(pids[1], signal.SIGSTOP)
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 60  # and not for ever
    assert wait_until(lambda: all(map(is_gone, pids)))


def test_a_step_that_ctrl_c_interrupted_can_be_collected(env: LiberoVectorEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = np.full((2, 10, 7), 0.2)
    env.reset(seed=3)
    expected = env.step(actions)[0]["state"]
    env.reset(seed=3)
    interrupt_once(monkeypatch, pool, "wait")
    with pytest.raises(KeyboardInterrupt):
        env.step(actions)
    assert [snapshot["elapsed_steps"] for snapshot in env.call("snapshot")] == [10, 10]  # no answer of the step's
    obs, _, _, _, infos = env.step_wait()
    np.testing.assert_array_equal(obs["state"], expected)
    assert infos["elapsed_steps"].tolist() == [10, 10]


def test_a_step_that_ctrl_c_interrupted_can_be_abandoned(env: LiberoVectorEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(seed=3)
    expected = env.step(np.full((2, 10, 7), 0.2))[0]["state"]
    env.reset(seed=3)
    interrupt_once(monkeypatch, pool, "wait")
    with pytest.raises(KeyboardInterrupt):
        env.step(-np.ones((2, 10, 7)))
    env.reset(seed=3)
    np.testing.assert_array_equal(env.step(np.full((2, 10, 7), 0.2))[0]["state"], expected)


def test_ctrl_c_within_a_message_ends_that_worker_alone(env: LiberoVectorEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows in its pipe could not be told apart; it is replaced, or named."""
    env.reset(seed=3)
    pids = worker_pids(env)
    interrupt_once(monkeypatch, messages.Channel, "receive", after=True)
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros((2, 10, 7)))
    with pytest.warns(UserWarning, match="cut a message to or from it short"):
        _, _, _, truncated, _ = env.step_wait()
    assert truncated.sum() == 1
    assert sum(map(is_gone, pids)) == 1


def test_ctrl_c_while_tasks_compile_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    templates: list[int] = []
    send = WorkerPool._send_template

    def note(self: WorkerPool, *args: Any) -> int:
        templates.append(self._template.pid)
        return send(self, *args)

    monkeypatch.setattr(WorkerPool, "_send_template", note)
    interrupt_once(monkeypatch, WorkerPool, "_await_template")
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        LiberoVectorEnv(2, **ARGUMENTS)
    assert time.monotonic() - start < 60  # and not for as long as a template may take
    assert all(map(is_gone, templates))
    assert len(templates) == 1


def test_a_forked_child_cannot_use_nor_end_the_environments(env: LiberoVectorEnv) -> None:
    env.reset(seed=3)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pytest.raises(RuntimeError, match="belong to process"):
                env.step(np.zeros((2, 10, 7)))
            weakref.finalize._exitfunc()  # type: ignore[attr-defined]  # as at its end
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert env.step(np.zeros((2, 10, 7)))[4]["elapsed_steps"].tolist() == [10, 10]


def test_an_error_in_one_environments_step_leaves_all_usable(env: LiberoVectorEnv) -> None:
    env.reset(seed=3)
    workers = worker_pids(env)
    env.call("__setattr__", "task", None, indices=[0])
    with pytest.raises(gym.error.ResetNeeded, match=r"Call reset\(\) first") as caught:
        env.step(np.zeros((2, 10, 7)))
    assert isinstance(caught.value.__cause__, WorkerError)
    env.reset(options={"reset_mask": np.array([True, False])})
    assert env.step(np.zeros((2, 10, 7)))[4]["elapsed_steps"].tolist() == [10, 20]
    assert worker_pids(env) == workers


def test_a_second_close_leaves_other_files_alone() -> None:
    env = LiberoVectorEnv(1, **ARGUMENTS, n_workers=1)
    descriptor = env.backend._shared.descriptor  # type: ignore[attr-defined]
    env.backend.close()
    opened = [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < descriptor:
        opened.append(os.open(os.devnull, os.O_RDONLY))
    assert descriptor in opened  # the system gives the number to the next file
    env.backend.close()
    env.close()
    for number in opened:
        os.close(number)  # raises where it is closed already


def test_settings_reach_the_workers_after_the_step_under_way() -> None:
    env = LiberoVectorEnv(2, suite="libero_spatial", task_id=[0, 1], cameras=(), n_workers=1)
    env.reset(seed=3)
    shared = env.backend._shared  # type: ignore[attr-defined]
    before = shared["task_weights"].copy(), shared["autoreset"].copy()
    for end in (env.step_wait, env.reset):
        env.step_async(np.zeros((2, 7)))
        env.set_task_weights([0.0, 1.0])
        env.set_autoreset(False)
        np.testing.assert_array_equal(shared["task_weights"], before[0])
        np.testing.assert_array_equal(shared["autoreset"], before[1])
        result = end()
        assert shared["task_weights"].tolist() == [0, 1]
        assert shared["autoreset"] != before[1]
        assert end == env.step_wait or result[1]["task_id"].tolist() == [1, 1]  # the reset draws by them
        env.set_task_weights([1.0, 1.0])
        env.set_autoreset(True)
    env.close()
