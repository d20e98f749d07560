"""The journal of an evaluation: it keeps episodes on disk as they end, so that an interrupted evaluation can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from libero_gym.common.atomic import write_text
from libero_gym.common.json_files import MAX_BYTES, parse_json
from libero_gym.equivalence.versions import with_fidelity
from vla_agent.evaluation.protocols import with_fixtures
from vla_agent.evaluation.results import SCHEMA, EpisodeResult, ReportError

JOURNAL_FILE = "episodes.jsonl"
_LATER = ("task_files", "scorer_weights")  # which older journals do not tell


class Journal:
    """The file ``episodes.jsonl``: what is evaluated in the first line, then an episode per line.

    Args:
        folder: Folder of the file, which may be missing.
        identity: Conditions and settings that decide the episodes; an existing file must have the same.

    Attributes:
        episodes: Episodes that the file held already.

    Raises:
        ReportError: If the file is of another evaluation, or damaged.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.path = folder / JOURNAL_FILE
        self.episodes: list[EpisodeResult] = []
        header = json.loads(json.dumps({"schema": SCHEMA, **identity}))
        lines = self._whole_lines()
        if lines:
            told = {name: value for name, value in header.items() if name in lines[0] or name not in _LATER}
            self._check(with_fixtures(with_fidelity(told)), with_fixtures(with_fidelity(lines[0])))
            self.episodes = [
                EpisodeResult.from_json(line, f"'{self.path}', line {number},")
                for number, line in enumerate(lines[1:], start=2)
            ]
        # Written anew: whatever a kill left of a last line is gone.
        text = "".join(json.dumps(line) + "\n" for line in [header, *(e.to_json() for e in self.episodes)])
        write_text(self.path, text)

    def write(self, episode: EpisodeResult) -> None:
        """Append an episode.

        Raises:
            OSError: If it cannot be written, as on a full disk.
        """
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(episode.to_json()) + "\n")
        except OSError as error:
            reason = f"{error.strerror or error}; an episode could not be added to '{self.path}'"
            raise type(error)(error.errno, reason) from error

    def _whole_lines(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ReportError(
                f"'{self.path}' cannot be read ({error.strerror}); give another folder for the evaluation."
            ) from error
        if len(content) > MAX_BYTES:
            raise ReportError(f"'{self.path}' is larger than {MAX_BYTES / 2**20:.0f} MiB; remove it to start afresh.")
        whole = content[: content.rfind(b"\n") + 1].splitlines()  # a kill may leave half a line at the end
        return [
            parse_json(line, f"'{self.path}', line {number},", error=ReportError)
            for number, line in enumerate(whole, start=1)
        ]

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
