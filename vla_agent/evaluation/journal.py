"""Episodes of an evaluation on disk as they end, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_agent.evaluation.protocols import with_fixtures
from vla_agent.evaluation.reports import SCHEMA, EpisodeResult, ReportError

JOURNAL_FILE = "episodes.jsonl"


class Journal:
    """The file ``episodes.jsonl``: what is evaluated in the first line, then an episode per line.

    Args:
        folder: Where the file is, or is made.
        identity: What decides the episodes; an existing file must have the same.

    Attributes:
        episodes: Those that were there already.

    Raises:
        ReportError: If the file is of another evaluation, or damaged.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.path = folder / JOURNAL_FILE
        self.episodes: list[EpisodeResult] = []
        header = json.loads(json.dumps({"schema": SCHEMA, **identity}))
        lines = self._whole_lines()
        if lines:
            self._check(header, with_fixtures(lines[0]))
            self.episodes = [EpisodeResult(**line) for line in lines[1:]]
        else:
            folder.mkdir(parents=True, exist_ok=True)
        # Written anew: whatever a kill left of a last line is gone.
        text = "".join(json.dumps(line) + "\n" for line in [header, *(e._asdict() for e in self.episodes)])
        temporary = self.path.with_name(f".{JOURNAL_FILE}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)

    def write(self, episode: EpisodeResult) -> None:
        """Append an episode."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(episode._asdict()) + "\n")

    def _whole_lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1].splitlines()  # a kill may leave half a line at the end
        try:
            return [json.loads(line) for line in whole]
        except ValueError as error:
            raise ReportError(f"'{self.path}' is damaged ({error}); remove it to start afresh.") from error

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
