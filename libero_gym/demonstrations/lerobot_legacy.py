"""LeRobot's formats v2.0 and v2.1: a file per episode, listed in JSON lines.

Most published sets of LIBERO are of these. ``meta/episodes.jsonl`` has the episodes, ``meta/episodes_stats.jsonl``
(v2.1) or ``meta/stats.json`` (v2.0) their statistics. Paths are templates with ``episode_chunk`` and ``episode_index``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from libero_gym.common.checks import whole_number
from libero_gym.common.json_files import MAX_BYTES, parse_json
from libero_gym.demonstrations.episodes import DamagedEpisodeError
from libero_gym.demonstrations.lerobot_layout import INFO_PATH

VERSIONS = ("v2.0", "v2.1")
EPISODES, EPISODES_STATS, TASKS = "meta/episodes.jsonl", "meta/episodes_stats.jsonl", "meta/tasks.jsonl"


def is_legacy(info: dict[str, Any]) -> bool:
    """Whether a data set is of one of `VERSIONS`."""
    return info.get("codebase_version") in VERSIONS


def place_of(info: dict[str, Any], row: dict[str, Any], root: Path) -> dict[str, int]:
    """Values of the fields in the paths of an episode's files.

    Raises:
        DamagedEpisodeError: If the data set does not say how many episodes a folder holds, or the row has no index.
    """
    try:
        size = whole_number("chunks_size", info.get("chunks_size"), 1)
        index = whole_number("episode_index", row.get("episode_index"), 0)
    except ValueError as error:
        raise DamagedEpisodeError(f"{root / INFO_PATH} is damaged: {error}") from error
    return {"episode_chunk": index // size, "episode_index": index}


def action_ranges(root: Path, action: str) -> Iterator[tuple[list[Any], list[Any]]]:
    """Smallest and largest actions of each episode, as v2.1 states them; none if it states none.

    Args:
        root: The data set's folder.
        action: Name of the actions.
    """
    if not (root / EPISODES_STATS).is_file():
        return
    for line in json_lines(root / EPISODES_STATS):
        stated = line.get("stats", {}).get(action, {})
        yield stated["min"], stated["max"]


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Raises:
        DamagedEpisodeError: If it cannot be read, is too large, or a line is no object.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DamagedEpisodeError(f"{path} is missing or cannot be read ({error.strerror}).") from error
    if len(content) > MAX_BYTES:
        raise DamagedEpisodeError(f"{path} is larger than {MAX_BYTES / 2**20:.0f} MiB.")
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            yield parse_json(line, f"'{path}', line {number},", error=DamagedEpisodeError)
