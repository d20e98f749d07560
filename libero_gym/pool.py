"""The processes behind `LiberoVectorEnv` as it sees them: a template and its workers, and what became of each."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from libero_gym import worker as protocol
from libero_gym.shared_arrays import Layout
from libero_gym.uncopyable import Uncopyable

# Seconds for the template to compile a task or to fork, whatever a step may take.
_TEMPLATE_TIMEOUT = 300.0
# Seconds for a hung worker to write where it is.
_STACK_PATIENCE = 2.0


class WorkerError(RuntimeError):
    """A worker process failed, died or did not answer; the message holds its own traceback."""


@dataclass
class _Worker:
    """One worker process, and why it can no longer be used, if so."""

    arguments: tuple[int, int, dict[str, Any]]  # of `WorkerPool.fork`
    pid: int
    connection: Connection
    crash_log: IO[bytes]
    failure: str | None = None

    def trace(self) -> str:
        """What the worker wrote about its end. Reads without moving the offset, which the two processes share."""
        size = os.fstat(self.crash_log.fileno()).st_size
        return os.pread(self.crash_log.fileno(), size, 0).decode(errors="replace")

    def close(self) -> None:
        self.connection.close()
        self.crash_log.close()


class WorkerPool(Uncopyable):
    """A template process and the workers forked from it, by number.

    A worker that died or hangs is ended, remembered in `failures` and passed over by `send` and `gather`, until
    `replace` puts another in its place.

    Args:
        timeout: Seconds after which a worker that does not answer counts as hung.
        layout: Of the arrays shared with the workers.
        memory_fd: File descriptor of those arrays.
    """

    def __init__(self, timeout: float, layout: Layout, memory_fd: int) -> None:
        self.timeout = timeout
        self._layout, self._memory_fd = dict(layout), memory_fd
        self._workers: list[_Worker] = []
        self._closed = False
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "libero_gym.worker", str(theirs.fileno())]
        # One thread each: the workers are as many as the cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._template = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self._control_socket = ours
        self._control = Connection(os.dup(ours.fileno()))

    @property
    def failures(self) -> dict[int, str]:
        """What became of the workers that can no longer be used, by number."""
        return {number: worker.failure for number, worker in enumerate(self._workers) if worker.failure is not None}

    def compile(self, suite: str, task_id: int, renderer: str | None, placement_seeds: Sequence[int] = ()) -> None:
        """Have the template compile a task, its visual model if a renderer is named, and draw these placements."""
        self._ask_template(protocol.COMPILE, suite, task_id, renderer, placement_seeds)

    def fork(self, first: int, last: int, env_kwargs: dict[str, Any]) -> None:
        """Start a worker for the environments ``[first, last)``; its first answer says that it is ready."""
        self._workers.append(self._fork(first, last, env_kwargs))

    def replace(self, number: int) -> None:
        """Start a worker in the place of a failed one, and close what was kept of that; see `fork`."""
        failed = self._workers[number]
        assert failed.failure is not None
        failed.close()
        self._workers[number] = self._fork(*failed.arguments)

    def send(self, number: int, request: str, *args: Any) -> None:
        """Ask a worker for something. One that is gone is noticed by `gather`."""
        worker = self._workers[number]
        if worker.failure is None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                worker.connection.send((request, args))

    def gather(self, numbers: Iterable[int]) -> dict[int, Any]:
        """One answer from each of these workers, by number; `failures` says why others are missing.

        Raises:
            WorkerError: If a worker answers with an exception; after all have answered, so that they can go on.
        """
        chosen = {number: self._workers[number] for number in numbers}
        pending = {worker.connection: number for number, worker in chosen.items() if worker.failure is None}
        answers: dict[int, tuple[str, Any]] = {}
        deadline = time.monotonic() + self.timeout
        while pending:
            ready = wait(list(pending), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                for number in pending.values():
                    self._end_hung(number)
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                number = pending.pop(connection)
                try:
                    answers[number] = connection.recv()
                except (EOFError, OSError):
                    self._end_dead(number)
        errors = [
            f"Worker {number} failed:\n{content}" for number, (kind, content) in answers.items() if kind == "error"
        ]
        if errors:
            raise WorkerError("\n".join(errors))
        return {number: content for number, (_, content) in answers.items()}

    def close(self) -> None:
        """Ask the workers to leave, and end the template; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for number, worker in enumerate(self._workers):
            self.send(number, protocol.CLOSE)
            worker.close()
        self._control.close()
        self._control_socket.close()
        try:
            self._template.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._template.kill()
            self._template.wait()

    def _fork(self, first: int, last: int, env_kwargs: dict[str, Any]) -> _Worker:
        ours, theirs = socket.socketpair()
        crash_log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        with theirs, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_await_template` notices
            self._control.send((protocol.FORK, first, last, env_kwargs, self._layout))
            socket.send_fds(self._control_socket, [b"."], [theirs.fileno(), self._memory_fd, crash_log.fileno()])
        pid = self._await_template()
        return _Worker((first, last, env_kwargs), pid, Connection(ours.detach()), crash_log)

    def _end_dead(self, number: int) -> None:
        """Record the end of a worker that closed its connection."""
        worker = self._workers[number]
        status = self._end(worker)
        how = f" ({signal.Signals(-status).name})" if status is not None and status < 0 else ""
        trace = worker.trace().strip() or "It left no traceback: killed, perhaps."
        worker.failure = f"Worker {number} died{how} without an answer.\n{trace}"

    def _end_hung(self, number: int) -> None:
        """Ask a worker that does not answer where it is, and end it."""
        worker = self._workers[number]
        stack = _stack(worker).strip() or "It did not say where."
        self._end(worker)
        worker.failure = (
            f"Worker {number} hung: no answer within {self.timeout:g} s, so it was ended. "
            f"On a slow machine, pass a larger timeout.\n{stack}"
        )

    def _end(self, worker: _Worker) -> int | None:
        """Kill a worker if it still lives; gives how it ended, as `subprocess.Popen.returncode` does, if known."""
        worker.connection.close()
        try:
            return self._ask_template(protocol.END, worker.pid)
        except WorkerError:
            return None  # the template is gone: what the worker has to say matters more

    def _ask_template(self, *request: Any) -> Any:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(request)
        return self._await_template()

    def _await_template(self) -> Any:
        timeout = max(self.timeout, _TEMPLATE_TIMEOUT)
        if not self._control.poll(timeout):
            raise WorkerError(f"The template process did not answer within {timeout:g} s.")
        try:
            kind, content = self._control.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerError("The template process died; its last words are on standard error.") from None
        if kind == "error":
            raise WorkerError(f"The template process failed:\n{content}")
        return content


def _stack(worker: _Worker) -> str:
    """Where a worker is: its handler writes that even where Python is stuck in a library. Wakes it if stopped."""
    trace = ""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid, protocol.STACK_SIGNAL)
        os.kill(worker.pid, signal.SIGCONT)
        deadline = time.monotonic() + _STACK_PATIENCE
        while time.monotonic() < deadline and not (trace and trace == worker.trace()):
            trace = worker.trace()
            time.sleep(0.05)
    return trace
