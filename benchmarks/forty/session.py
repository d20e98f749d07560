"""Processes that are stopped when the hours are used, so that they can go on, and notes of what is under way."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from measuring import commit
from memory import memory_mb

from libero_gym.common.atomic import write_text

GRACE_S = 600  # for a process to save and end; a training first ends the evaluation that it may be in
LIBERO_VLA = "from vla_agent.commands.cli import main; main()"  # the program `libero-vla`, of these sources
NOTE_EVERY_S = 30  # so much of the clock a kill can lose
MEASURE_EVERY_S = 10  # a peak of memory that is shorter can be missed


class CellError(RuntimeError):
    """A cell that cannot go on; the others can."""


class Stopped(Exception):
    """The hours are used, or a signal came."""


class Session:
    """Runs processes until its hours are used or a signal comes; they are then stopped so that they can go on.

    Args:
        hours: Hours from now; None for as long as it takes.
        threads: Threads of each process, as ``OMP_NUM_THREADS``; another number rounds otherwise.
        lock: Descriptor that the processes inherit, so that the lock lasts as long as they do.
    """

    def __init__(self, hours: float | None = None, threads: int = 1, lock: int | None = None) -> None:
        self.end = float("inf") if hours is None else time.monotonic() + 3600 * hours
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.lock = () if lock is None else (lock,)
        self.signals = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[Session]:
        """Takes signals as the end of the hours; a second one kills the process under way."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        previous = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        self.end = 0.0

    def run(self, command: Sequence[str], stop: signal.Signals, output: Path, note: Note, what: str) -> None:
        """Run a command to its end.

        Args:
            command: The command.
            stop: Signal that lets it save and end.
            output: File that its output is added to.
            note: Where its seconds are counted, and the peak of its memory is kept.
            what: What they are counted as.

        Raises:
            Stopped: If it was stopped, or there was no time left to begin.
            CellError: If it failed.
        """
        if time.monotonic() >= self.end:
            raise Stopped
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as stream:
            # A session of its own, so that Ctrl-C reaches it through us alone.
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                pass_fds=self.lock,
            )
            with note.timing(what) as tick:
                was_stopped = self._wait(process, stop, tick, lambda: note.peak(what, memory_mb(process.pid)))
        if was_stopped:
            raise Stopped
        if process.returncode:
            last = output.read_text(errors="replace").strip().splitlines()[-3:]
            raise CellError(f"it ended with status {process.returncode} ({' / '.join(last)}). Its output: {output}")

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        stop: signal.Signals,
        tick: Callable[[], None],
        measure: Callable[[], None],
    ) -> bool:
        """Whether the process was stopped before its end."""
        killed_at, measured = None, float("-inf")
        while process.poll() is None:
            if time.monotonic() - measured >= MEASURE_EVERY_S:
                measure()
                measured = time.monotonic()
            if killed_at is None and time.monotonic() >= self.end:
                process.send_signal(stop)
                killed_at = time.monotonic() + GRACE_S
            if killed_at is not None and (time.monotonic() >= killed_at or self.signals > 1):
                os.killpg(process.pid, signal.SIGKILL)
            tick()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        return killed_at is not None


def do_each(steps: Mapping[str, Callable[[], None]]) -> int:
    """Do steps in order until the session ends.

    Args:
        steps: Functions by the step's name. After one that raises `CellError` the others go on; `Stopped` ends all.

    Returns:
        The number of steps that failed.
    """
    failed = 0
    for name, do in steps.items():
        try:
            do()
            print(f"{name}: done", flush=True)
        except CellError as error:
            failed += 1
            print(f"{name}: not done, since {error}", flush=True)
        except Stopped:
            print(f"Stopped at {name}; the same command goes on from there.", flush=True)
            break
    return failed


class Note:
    """What is known of a cell under way, in a file: the settings that it was begun with, seconds, commits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        self.seconds: dict[str, float] = self.content.setdefault("seconds", {})
        self.memory_mb: dict[str, float] = self.content.setdefault("memory_mb", {})

    def begin(self, settings: dict[str, Any]) -> None:
        """Keep the settings of a new cell, or hold them against those that it was begun with.

        Raises:
            CellError: If they differ.
        """
        told = json.loads(json.dumps(settings))
        if (differing := different(self.content.setdefault("settings", told), told)) and self.seconds:
            raise CellError(
                f"it was begun with other settings ({differing}). Set them back, give another --work, or move "
                f"'{self.path.parent}' away to begin anew."
            )
        self.content["settings"] = told
        self.content["commits"] = list(dict.fromkeys([*self.content.get("commits", []), commit()]))
        self.write()

    @contextlib.contextmanager
    def timing(self, what: str) -> Iterator[Any]:
        """Adds the seconds of a block; the function that it gives keeps them on disk every now and then."""
        before, start, written = self.seconds.get(what, 0.0), time.monotonic(), time.monotonic()

        def tick(at_once: bool = False) -> None:
            nonlocal written
            if at_once or time.monotonic() - written >= NOTE_EVERY_S:
                written = time.monotonic()
                self.seconds[what] = round(before + written - start, 1)
                self.write()

        try:
            yield tick
        finally:
            tick(at_once=True)

    def peak(self, what: str, mb: float) -> None:
        """Keep the most memory that something was seen to hold, MB."""
        self.memory_mb[what] = max(self.memory_mb.get(what, 0.0), round(mb, 1))

    def write(self) -> None:
        """Keep it on disk."""
        write_text(self.path, json.dumps(self.content, indent=1) + "\n")


def different(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The entries in which settings differ, in words; "" if none does."""
    flat = [{**entry, **entry.get("options", {})} for entry in (first, second)]
    for entry in flat:
        entry.pop("options", None)
    names = [name for name in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(name) != flat[1].get(name)]
    return ", ".join(f"{name} {flat[0].get(name, 'default')} and not {flat[1].get(name, 'default')}" for name in names)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[int]:
    """The right to work in a folder, as a descriptor that processes may inherit.

    Raises:
        ValueError: If another driver, or a process that it left, works there.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process works in '{root}'; wait for its end, or give another --work.") from None
        yield stream.fileno()
