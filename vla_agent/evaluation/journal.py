"""The journal of an evaluation: it keeps episodes on disk as they end, so that an interrupted evaluation can go on."""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path
from typing import Any, TextIO

from libero_gym.common.atomic import write_text
from libero_gym.common.json_files import MAX_BYTES, parse_json
from libero_gym.equivalence.versions import with_fidelity
from vla_agent.evaluation.frames import with_frames
from vla_agent.evaluation.protocols import with_fixtures
from vla_agent.evaluation.results import SCHEMA, EpisodeResult, ReportError

JOURNAL_FILE, LOCK_FILE = "episodes.jsonl", ".episodes.lock"
_FILMED = "filmed"  # whether this evaluation filmed a failure, which older journals do not tell
_LATER = ("task_files", "scorer_weights")  # which older journals do not tell


class Journal:
    """The file ``episodes.jsonl``: what is evaluated in the first line, then an episode per line.

    The folder is locked until `close`, on a file system that has locks.

    Args:
        folder: Folder of the file, which may be missing.
        identity: Conditions and settings that decide the episodes; an existing file must have the same.

    Attributes:
        episodes: Episodes that the file held already.

    Raises:
        ReportError: If the file is of another evaluation, or damaged.
        BlockingIOError: If another evaluation writes into the folder.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.path = folder / JOURNAL_FILE
        self.episodes: list[EpisodeResult] = []
        self._lock = _lock(folder)
        try:
            self._begin(json.loads(json.dumps({"schema": SCHEMA, **identity})))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder; safe to call twice."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # a process that was forked meanwhile holds it, too
            self._lock.close()
            self._lock = None

    def _begin(self, header: dict[str, Any]) -> None:
        """Read the episodes of a file that is there, and write it with this first line."""
        lines = _whole_lines(self.path)
        if lines:
            told = {name: value for name, value in header.items() if name in lines[0] or name not in _LATER}
            self._check(_completed(told), _completed(lines[0]))
            self.episodes = [
                _episode(line, f"'{self.path}', line {number},") for number, line in enumerate(lines[1:], start=2)
            ]
        # Written anew: whatever a kill left of a last line is gone.
        text = "".join(json.dumps(line) + "\n" for line in [header, *lines[1:]])
        write_text(self.path, text)

    def write(self, episode: EpisodeResult, filmed: bool = False) -> None:
        """Append an episode.

        Args:
            episode: The episode.
            filmed: Whether its film was written.

        Raises:
            OSError: If it cannot be written, as on a full disk.
        """
        content = episode.to_json() | ({} if episode.success else {_FILMED: filmed})
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(content) + "\n")
        except OSError as error:
            reason = f"{error.strerror or error}; an episode could not be added to '{self.path}'"
            raise type(error)(error.errno, reason) from error

    def _check(self, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        differing = [
            f"{name} is {found.get(name)!r} and not {wanted.get(name)!r}"
            for name in dict.fromkeys([*wanted, *found])
            if found.get(name) != wanted.get(name)
        ]
        if differing:
            raise ReportError(
                f"'{self.path}' is of another evaluation: {'; '.join(differing)}. Give another folder, or remove it."
            )


def unfilmed(folder: Path) -> set[tuple[int, int]]:
    """Task and initial state of failures that a folder's evaluation did not film; none without a whole journal."""
    try:
        lines = [line for line in _whole_lines(folder / JOURNAL_FILE)[1:] if line.get(_FILMED) is False]
        return {_episode(line, JOURNAL_FILE)[:2] for line in lines}
    except ReportError:
        return set()


def _completed(header: dict[str, Any]) -> dict[str, Any]:
    """A first line with what older ones do not state."""
    return with_fixtures(with_fidelity(with_frames(header, header.get("protocol"))))


def _episode(line: dict[str, Any], name: str) -> EpisodeResult:
    return EpisodeResult.from_json({key: value for key, value in line.items() if key != _FILMED}, name)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ReportError(
            f"'{path}' cannot be read ({error.strerror}); give another folder for the evaluation."
        ) from error
    if len(content) > MAX_BYTES:
        raise ReportError(f"'{path}' is larger than {MAX_BYTES / 2**20:.0f} MiB; remove it to start afresh.")
    whole = content[: content.rfind(b"\n") + 1].splitlines()  # a kill may leave half a line at the end
    return [
        parse_json(line, f"'{path}', line {number},", error=ReportError) for number, line in enumerate(whole, start=1)
    ]


def _lock(folder: Path) -> TextIO | None:
    """A file that is locked until it is closed, or the process ends; None where nothing can be locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK_FILE).open("a")
    except OSError:
        return None  # writing the journal fails, too, and tells why
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise BlockingIOError(
            f"Another evaluation writes into '{folder}'; wait for it, end it, or give another folder."
        ) from error
    except OSError:  # a file system without locks
        stream.close()
        return None
    return stream
