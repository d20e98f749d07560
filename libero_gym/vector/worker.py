"""The worker processes of a `LiberoVectorEnv`: a template that compiles tasks and never touches GL, and its forks.

``python -m libero_gym.vector.worker CONTROL_FD`` is the template. It is a fresh interpreter, so it inherits neither
CUDA nor GL contexts nor threads from the trainer, and the trainer's script needs no ``if __name__ == "__main__"``.
Workers are forked from it: they share compiled models and code in memory, and make their own GL context at their first
frame.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from libero_gym.compilation import placements
from libero_gym.compilation.compile import compile_task
from libero_gym.env import LiberoEnv
from libero_gym.rendering import models
from libero_gym.rendering import renderer as rendering
from libero_gym.tasks import Task
from libero_gym.vector import protocol
from libero_gym.vector.messages import serve
from libero_gym.vector.protocol import ENDED, FINAL, INFO_KEYS, NEXT_STEP, RUNNING, SAME_STEP
from libero_gym.vector.shared_arrays import Layout, SharedArrays

# Seconds that workers get to free their GL contexts.
_PATIENCE = 5.0


class Worker:
    """Steps the environments ``[first, last)`` of a vector environment, reading and writing the shared arrays."""

    def __init__(self, first: int, last: int, shared: SharedArrays) -> None:
        self.indices = range(first, last)
        self.shared = shared
        self.envs: dict[int, LiberoEnv] = {}
        self.requests: dict[str, Callable[..., Any]] = {
            protocol.MAKE: self.make,
            protocol.STEP: self.step,
            protocol.RESET: self.reset,
            protocol.RESTORE: self.restore,
            protocol.CALL: self.call,
        }

    def make(self, env_kwargs: dict[str, Any]) -> None:
        """Make the environments."""
        self.envs = {index: LiberoEnv(**env_kwargs) for index in self.indices}

    def step(self) -> None:
        """Step each environment. If its episode ends, or had ended before, follow the autoreset mode."""
        mode = int(self.shared["autoreset"][0])
        for index in self.indices:
            if self.shared["phase"][index] == ENDED:
                self.shared["rewards"][index] = 0.0
                # NEXT_STEP leaves this step's action aside, as Gymnasium defines it (gymnasium/vector/vector_env.py,
                # AutoresetMode). SAME_STEP comes here only if autoreset was off when the episode ended.
                if mode in (SAME_STEP, NEXT_STEP):
                    self._reset(index, None, {})
                continue
            self._show_step(index, *self.envs[index].step(self.shared["actions"][index]))

    def reset(self, requests: protocol.ResetRequests) -> None:
        """Reset some environments, each with its seed and options."""
        for index, (seed, options) in requests.items():
            self._reset(index, seed, options)

    def restore(self, snapshots: dict[int, dict[str, Any]]) -> None:
        """Put environments back to where `LiberoEnv.snapshot` found them."""
        for index, snapshot in snapshots.items():
            self._go_on(index, *self.envs[index].restore(snapshot))

    def call(self, name: str, indices: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Results of a method, or values of an attribute, of some environments; see `Backend.call`."""
        results = []
        for index in indices:
            env = self.envs[index]
            member = getattr(env, name)
            result = member(*args, **kwargs) if callable(member) else member
            results.append(result)
            if name in ("reset", "restore"):
                self._go_on(index, *result)
            elif name == "set_state":  # it gives no infos, which `restore` does
                self._go_on(index, *env.restore(env.snapshot()))
            elif name == "step":
                self._show_step(index, *result)
        return results

    def close(self) -> None:
        """Close the environments and free the process's OpenGL contexts."""
        for env in self.envs.values():
            env.close()
        rendering.release()

    def _reset(self, index: int, seed: int | None, options: dict[str, Any]) -> None:
        env = self.envs[index]
        env.set_task_weights(self.shared["task_weights"])  # they may have changed since the last reset
        self._go_on(index, *env.reset(seed=seed, options=options))

    def _go_on(self, index: int, obs: dict[str, Any], info: dict[str, Any]) -> None:
        """Show where an environment has been put, from which its next step goes on."""
        self._write("", index, obs, info)
        self.shared["phase"][index] = RUNNING

    def _show_step(
        self, index: int, obs: dict[str, Any], reward: Any, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> None:
        """Show a step's results, and begin the next episode if the autoreset mode has it begin in the same step."""
        ended = terminated or truncated
        # Results and flags are written before the reset: if the process dies in there, `Processes` reads from them
        # whether the episode had ended and which observation was its last.
        self._write(FINAL if ended else "", index, obs, info)
        self.shared["rewards"][index] = reward
        self.shared["terminated"][index] = terminated
        self.shared["truncated"][index] = truncated
        if not ended:
            return
        self.shared["phase"][index] = ENDED
        if self.shared["autoreset"][0] == SAME_STEP:
            self._reset(index, None, {})
        else:
            self._write("", index, obs, info)

    def _write(self, prefix: str, index: int, obs: dict[str, Any], info: dict[str, Any]) -> None:
        for key, value in obs.items():
            if key in self.shared:  # texts are not: the trainer knows them by the task
                self.shared[prefix + key][index] = value
        for key in INFO_KEYS:
            self.shared[prefix + key][index] = info[key]
        self.shared[prefix + "reward_terms"][index] = list(info["reward_terms"].values())


def _run_template(control: socket.socket) -> None:
    """Compile what is asked for, and fork and end workers, until the other side closes."""
    connection = Connection(os.dup(control.fileno()))
    children: list[int] = []

    def compile_(task: Task, renderer: str | None, placement_seeds: list[int], modules: list[str]) -> None:
        for name in modules:  # which register objects of the user's own with LIBERO
            importlib.import_module(name)
        compiled = compile_task(task)
        placements.prepare(task, placement_seeds)
        if renderer is not None:
            # The template draws nothing. Its forks find the scene in memory and share the pages that none writes to.
            models.load(compiled, renderer)

    def fork(*args: Any) -> int:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        children.append(_fork_worker((control, connection), descriptors, *args))
        return children[-1]

    def end(pid: int) -> int | None:
        children.remove(pid)
        return _kill(pid)

    serve(connection, {protocol.COMPILE: compile_, protocol.FORK: fork, protocol.END: end})
    _end(children)


def _fork_worker(inherited: tuple[Any, ...], descriptors: list[int], first: int, last: int, layout: Layout) -> int:
    """Fork a worker over (its connection, the shared arrays, its crash log); gives its process id."""
    connection_fd, memory_fd, crash_fd = descriptors
    # Safe here and not in the trainer: the template starts no threads (see `WorkerPool`) and touches neither GL nor
    # CUDA. A child would have the calling thread alone (fork(2)), and could not use its parent's contexts.
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    status = 1
    try:
        for handle in inherited:  # else the template would seem alive to the trainer as long as a worker is
            handle.close()
        # Python's handlers for SIGSEGV and the like write tracebacks into a file that the trainer reads afterwards.
        faulthandler.enable(file=crash_fd)
        faulthandler.register(protocol.STACK_SIGNAL, file=crash_fd)
        worker = Worker(first, last, SharedArrays(layout, memory_fd))
        with Connection(connection_fd) as connection:
            serve(connection, worker.requests)
            worker.close()
        status = 0
    except BaseException:
        os.write(crash_fd, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # without the template's exit handlers, and without its buffers a second time


def _end(children: list[int]) -> None:
    """Wait for workers to leave, as they do when their connection closes, and kill those that do not."""
    deadline = time.monotonic() + _PATIENCE
    for pid in children:
        if _wait(pid, deadline) is None:
            _kill(pid)


def _kill(pid: int) -> int | None:
    """Kill a child unless it has ended already.

    Returns:
        Its exit code, negative for a signal; None if it does not die, as in an uninterruptible system call.
    """
    os.kill(pid, signal.SIGKILL)  # nobody else reaps it, so the id is still its own
    return _wait(pid, time.monotonic() + _PATIENCE)


def _wait(pid: int, deadline: float) -> int | None:
    """The exit code of a child that ends before the deadline; None if it does not."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)


def main() -> None:
    """Entry point of the template process."""
    for signum in protocol.IGNORED_SIGNALS:  # blocked until here, and in case that another library sets a handler
        signal.signal(signum, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _run_template(control)


if __name__ == "__main__":
    main()
