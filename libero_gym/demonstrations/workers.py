"""Processes that record the episodes of a plan; one that dies is replaced."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from libero_gym.demonstrations.plan import EpisodeKey
from libero_gym.demonstrations.recorder import Recorder, RecordingJob
from libero_gym.rendering import renderer as rendering

# An episode is lost with the worker that dies while it records it; the episode is tried this often.
_ATTEMPTS = 2
# If this many workers die in a row, the cause is not one that another worker would cure.
_MAX_DEATHS = 5
_PATIENCE = 5.0  # s, for a worker to end


def record_episodes(job: RecordingJob, keys: list[EpisodeKey], n_workers: int) -> Iterator[bool]:
    """Record episodes; each is filed as it ends.

    Args:
        job: What every episode has in common.
        keys: The episodes.
        n_workers: Number of worker processes; 0 records in this process.

    Yields:
        Whether an episode succeeded, in the order in which they end.

    Raises:
        RuntimeError: If a policy raises in a worker, or workers keep dying.
        OSError: If the disk is full.
    """
    if not keys:
        return
    if n_workers == 0:
        with contextlib.closing(Recorder(job)) as recorder:
            yield from map(recorder.record, keys)
        return
    with contextlib.closing(_Workers(job, keys, min(n_workers, len(keys)))) as workers:
        yield from workers.results()


class _Workers:
    """Worker processes, each of which is given one episode at a time.

    Args:
        job: What every episode has in common.
        keys: The episodes.
        n_workers: Number of processes.
    """

    def __init__(self, job: RecordingJob, keys: list[EpisodeKey], n_workers: int) -> None:
        # Spawned, not forked: the fork of a process that has a GL or CUDA context can hang.
        self._context = multiprocessing.get_context("spawn")
        self._job = job
        self._queue = deque((key, 1) for key in keys)
        self._busy: dict[Connection, tuple[EpisodeKey, int]] = {}
        self._processes: dict[Connection, Any] = {}
        self._deaths_in_a_row = 0
        try:
            for _ in range(n_workers):
                self._start()
        except BaseException:
            self.close()
            raise

    def results(self) -> Iterator[bool]:
        """Whether each episode succeeded, in the order in which they end."""
        while self._busy:
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                key, attempt = self._busy.pop(connection)
                try:
                    kind, result = connection.recv()
                except (EOFError, OSError):
                    self._replace(connection, key, attempt)
                    continue
                if kind == "full":
                    raise OSError(result.errno, f"{result.strerror}; complete episodes are kept", result.filename)
                if kind == "error":
                    raise RuntimeError(f"Recording {key} failed; complete episodes are kept.\n{result}")
                self._deaths_in_a_row = 0
                self._assign(connection)
                yield result

    def close(self) -> None:
        """End the processes; unfinished episodes leave nothing behind."""
        for connection, process in self._processes.items():
            connection.close()  # which ends a worker that has nothing to record, so that it frees what it holds
            if connection in self._busy:
                process.terminate()
        for process in self._processes.values():
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes.clear()
        self._busy.clear()

    def _start(self) -> None:
        connection, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._job), daemon=True)
        process.start()
        theirs.close()  # else the worker's death would not end `recv`
        self._processes[connection] = process
        self._assign(connection)

    def _assign(self, connection: Connection) -> None:
        if not self._queue:
            return
        key, attempt = self._queue.popleft()
        self._busy[connection] = (key, attempt)
        with contextlib.suppress(OSError):  # `results` will find out that the worker is dead
            connection.send(key)

    def _replace(self, connection: Connection, key: EpisodeKey, attempt: int) -> None:
        """Start another worker for one that died, and try its episode again, or leave it out."""
        process = self._processes.pop(connection)
        process.join(_PATIENCE)
        connection.close()
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > _MAX_DEATHS:
            raise RuntimeError(
                f"{self._deaths_in_a_row} workers in a row ended (exit code {process.exitcode}), the last with {key}. "
                'A script that records needs `if __name__ == "__main__":`; n_workers=0 shows other reasons.'
            )
        again = attempt < _ATTEMPTS
        warnings.warn(
            f"A worker ended (exit code {process.exitcode}) while it recorded {key}; the episode is "
            + ("tried again." if again else "left out. Another run tries it once more."),
            stacklevel=2,
        )
        if again:
            self._queue.append((key, attempt + 1))
        if self._queue:
            self._start()


def _serve(connection: Connection, job: RecordingJob) -> None:
    """Record what is asked for, in a worker, until the other side closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes; the parent handles it
    recorder = None
    while True:
        try:
            key = connection.recv()
        except (EOFError, OSError):
            break
        answer: tuple[str, Any]
        try:
            recorder = recorder or Recorder(job)
            answer = ("done", recorder.record(key))
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            answer = ("full", error) if full else ("error", traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            break
    if recorder is not None:
        recorder.close()
    rendering.release()  # before the interpreter ends, which would destroy what the context needs
