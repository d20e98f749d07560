"""The trainer's side of the worker processes: starts them, talks to them, and finds out how they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from libero_gym.bddl import read_text
from libero_gym.common.interpreters import module_command, module_environment
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.stock import own_modules
from libero_gym.tasks import Task
from libero_gym.vector import messages, protocol
from libero_gym.vector.shared_arrays import Layout, anonymous_file

# Seconds for the template to compile a task or to fork, whatever a step may take.
_TEMPLATE_TIMEOUT = 300.0
# Seconds for a hung worker to write where it is.
_STACK_PATIENCE = 2.0
# Seconds for workers to leave, and for the template once they have.
_CLOSE_PATIENCE, _TEMPLATE_PATIENCE = 5.0, 10.0


class WorkerError(RuntimeError):
    """A worker process failed, died or did not answer; the message holds its own traceback."""


@dataclass
class _Worker:
    """One worker process; ``failure`` says why it can no longer be used, None if it can."""

    arguments: tuple[int, int]  # of `WorkerPool.fork`
    pid: int
    channel: messages.Channel
    crash_log: int
    failure: str | None = None
    answers: dict[int, tuple[str, Any]] = field(default_factory=dict)  # that came before they were waited for

    def trace(self) -> str:
        """What the worker wrote about its end. Reads without moving the file's offset, which both processes share."""
        return os.pread(self.crash_log, os.fstat(self.crash_log).st_size, 0).decode(errors="replace")

    def close(self) -> None:
        self.channel.connection.close()
        os.close(self.crash_log)


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
        self._owner = os.getpid()
        self._template_is_busy = False
        ours, theirs = socket.socketpair()
        command = module_command("libero_gym.vector.worker", str(theirs.fileno()))
        # One thread each: the workers are as many as the cores.
        environment = module_environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        with theirs, _blocked(protocol.IGNORED_SIGNALS):  # the template inherits that: no signal comes too early for it
            self._template = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._control_socket = ours
        self._control = messages.Channel(Connection(os.dup(ours.fileno())))

    @property
    def failures(self) -> dict[int, str]:
        """Why workers can no longer be used, by number."""
        return {number: worker.failure for number, worker in enumerate(self._workers) if worker.failure is not None}

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers, by number."""
        return [worker.pid for worker in self._workers]

    def compile(self, task: Task, renderer: str | None, placement_seeds: Sequence[int] = ()) -> None:
        """Have the template compile a task, its visual model if a renderer is named, and draw these placements."""
        modules = own_modules(read_text(task.bddl_file))
        self._ask_template(protocol.COMPILE, task, renderer, placement_seeds, modules)

    def fork(self, first: int, last: int) -> None:
        """Start a worker for the environments ``[first, last)``."""
        self._workers.append(self._fork(first, last))

    def replace(self, number: int) -> None:
        """Start a worker in the place of a failed one, as `fork` does, and close the connection and log of that."""
        failed = self._workers[number]
        assert failed.failure is not None
        successor = self._fork(*failed.arguments)
        failed.close()
        self._workers[number] = successor

    def send(self, request: str, arguments: Mapping[int, tuple[Any, ...]]) -> dict[int, int]:
        """Send a request to workers. If a worker is gone, `gather` notices.

        Args:
            request: The request, such as `protocol.STEP`.
            arguments: Arguments of the request by worker.

        Returns:
            The request's number by worker, for `gather`.

        Raises:
            TypeError: If some arguments cannot be pickled; nothing has been sent then.
        """
        contents = {number: messages.pickled(request, args) for number, args in arguments.items()}
        for number, content in contents.items():
            worker = self._workers[number]
            if worker.failure is None:
                with self._whole_messages(number), contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    worker.channel.send(content)
        return {number: self._workers[number].channel.asked for number in contents}

    def gather(self, requests: Mapping[int, int]) -> dict[int, Any]:
        """Wait for one answer from each of these workers; `failures` says why some are missing.

        Answers to requests that nobody gathered are kept, so an interrupted `gather` can be repeated.

        Args:
            requests: Number of the request by worker, as `send` gave it.

        Returns:
            Answers by worker.

        Raises:
            Exception: As an environment raised it, from a `WorkerError` with the traceback there; after all have
                answered, so that they can go on.
            WorkerError: In place of an exception that cannot be sent.
        """
        workers = {number: self._workers[number] for number in requests}
        pending = {
            worker.channel.connection: number
            for number, worker in workers.items()
            if worker.failure is None and requests[number] not in worker.answers
        }
        deadline = time.monotonic() + self.timeout
        while pending:
            ready = wait(list(pending), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                for number in pending.values():
                    self._end_hung(number)
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                number = pending[connection]
                self._receive(number)
                if workers[number].failure is not None or requests[number] in workers[number].answers:
                    del pending[connection]
        answers = {
            number: worker.answers.pop(requests[number])
            for number, worker in workers.items()
            if requests[number] in worker.answers
        }
        _raise({f"Worker {number}": content for number, (kind, content) in answers.items() if kind == messages.FAILED})
        return {number: content for number, (_, content) in answers.items()}

    def close(self) -> None:
        """Ask the workers to leave, kill those that do not, and end the template. May be called twice.

        In a process forked from the one that made the pool, only what that process holds is closed.
        """
        if self._closed:
            return
        self._closed = True
        is_ours = os.getpid() == self._owner
        if is_ours:
            self._dismiss()
        for worker in self._workers:
            worker.close()
        self._control.connection.close()
        self._control_socket.close()
        if is_ours:
            self._end_template()

    def _end_template(self) -> None:
        if self._template_is_busy:  # interrupted: it would finish its task first
            self._template.kill()
        try:
            self._template.wait(timeout=_TEMPLATE_PATIENCE)
        except subprocess.TimeoutExpired:
            self._template.kill()
            self._template.wait()

    def _dismiss(self) -> None:
        """Wait for the workers to free their GL contexts and leave, and kill those that do not."""
        leaving: dict[Connection, _Worker] = {}
        for worker in self._workers:
            if worker.failure is None:
                with contextlib.suppress(OSError):
                    messages.close(worker.channel.connection)
                    leaving[worker.channel.connection] = worker
        deadline = time.monotonic() + _CLOSE_PATIENCE
        while leaving and (ready := wait(list(leaving), timeout=max(deadline - time.monotonic(), 0.0))):
            for connection in ready:
                assert isinstance(connection, Connection)
                try:
                    connection.recv_bytes()  # an answer that nobody waited for
                except (EOFError, OSError):
                    del leaving[connection]
        for worker in leaving.values():
            _kill(worker)

    def _fork(self, first: int, last: int) -> _Worker:
        ours, theirs = socket.socketpair()
        crash_log = anonymous_file()
        try:
            with theirs:
                request = self._send_template(protocol.FORK, first, last, self._layout)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_await_template` notices
                    descriptors = [theirs.fileno(), self._memory_fd, crash_log]
                    socket.send_fds(self._control_socket, [b"."], descriptors)
            pid = self._await_template(request)
        except BaseException:
            ours.close()
            os.close(crash_log)
            raise
        return _Worker((first, last), pid, messages.Channel(Connection(ours.detach())), crash_log)

    def _receive(self, number: int) -> None:
        """Take one answer of a worker, or record its end."""
        worker = self._workers[number]
        try:
            with self._whole_messages(number):
                request, kind, content = worker.channel.receive()
                worker.answers[request] = kind, content
        except (EOFError, OSError):
            self._end_dead(number)

    @contextlib.contextmanager
    def _whole_messages(self, number: int) -> Iterator[None]:
        """End the worker if Ctrl-C cuts a message to or from it short: the next message would begin in its middle."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            worker = self._workers[number]
            worker.failure = f"Worker {number} was ended: an exception here cut a message to or from it short."
            _kill(worker)
            self._end(worker)
            raise

    def _end_dead(self, number: int) -> None:
        """Record the end of a worker that closed its connection."""
        worker = self._workers[number]
        status = self._end(worker)
        how = f" ({signal.Signals(-status).name})" if status is not None and status < 0 else ""
        trace = worker.trace().strip() or "It left no traceback: killed, perhaps."
        worker.failure = f"Worker {number} died{how} without an answer.\n{trace}"

    def _end_hung(self, number: int) -> None:
        """Record where a worker that does not answer hangs, and end it."""
        worker = self._workers[number]
        stack = _stack(worker).strip() or "It did not say where."
        _kill(worker)
        self._end(worker)
        worker.failure = (
            f"Worker {number} hung: no answer within {self.timeout:g} s, so it was ended. "
            f"On a slow machine, pass a larger timeout.\n{stack}"
        )

    def _end(self, worker: _Worker) -> int | None:
        """Have the template end and reap a worker.

        Returns:
            How it ended, as `Popen.returncode` says it; None if nobody knows.
        """
        worker.channel.connection.close()
        try:
            return self._ask_template(protocol.END, worker.pid)
        except WorkerError:
            return None  # the template is gone: what the worker has to say matters more

    def _ask_template(self, request: str, *args: Any) -> Any:
        return self._await_template(self._send_template(request, *args))

    def _send_template(self, request: str, *args: Any) -> int:
        self._template_is_busy = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(messages.pickled(request, args))
        return self._control.asked

    def _await_template(self, request: int) -> Any:
        timeout = max(self.timeout, _TEMPLATE_TIMEOUT)
        deadline = time.monotonic() + timeout
        answered, kind, content = 0, messages.DONE, cast(Any, None)
        while answered != request:
            if not self._control.connection.poll(max(deadline - time.monotonic(), 0.0)):
                raise WorkerError(f"The template process did not answer within {timeout:g} s.")
            try:
                answered, kind, content = self._control.receive()
            except (EOFError, ConnectionResetError):
                raise WorkerError("The template process died; its last words are on standard error.") from None
        self._template_is_busy = False
        if kind == messages.FAILED:
            _raise({"The template process": content})
        return content


def _raise(failures: Mapping[str, messages.Failure]) -> None:
    """Raise the first exception of other processes, from a `WorkerError` that has the tracebacks of all.

    Raises:
        WorkerError: If none of the exceptions could be sent.
    """
    if not failures:
        return
    cause = WorkerError(
        "\n".join(f"{name} failed: {failure.summary}\n{failure.traceback}" for name, failure in failures.items())
    )
    for failure in failures.values():
        if failure.error is not None:
            raise failure.error from cause
    raise cause


@contextlib.contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Block these signals; a process that is started meanwhile inherits that, until it unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(worker: _Worker) -> None:
    """Kill a worker whose connection is open. Nobody has reaped it, so its process id still names it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGKILL)


def _stack(worker: _Worker) -> str:
    """The stacks of a worker's threads. Its signal handler writes them even while Python is stuck in a library."""
    trace = ""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid, protocol.STACK_SIGNAL)
        os.kill(worker.pid, signal.SIGCONT)
        deadline = time.monotonic() + _STACK_PATIENCE
        while time.monotonic() < deadline and not (trace and trace == worker.trace()):
            trace = worker.trace()
            time.sleep(0.05)
    return trace
