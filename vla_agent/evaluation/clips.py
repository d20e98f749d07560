"""Films of failures as parts of a page: which ones fit in, and which were left out."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vla_agent.evaluation.journal import unfilmed
from vla_agent.evaluation.results import EpisodeResult

FAILURES = "failures"  # folder of the films, beside the report
MAX_BYTES = 20_000_000  # of all films in a page, as the page holds them: four bytes for three


class Clip(NamedTuple):
    """A film of a failure.

    Attributes:
        episode: The episode.
        uri: The film itself as a ``data:`` URI.
    """

    episode: EpisodeResult
    uri: str


class Clips(NamedTuple):
    """The films of an evaluation.

    Attributes:
        shown: Films that a page holds, in the order of the episodes.
        left_out: Files that would have made the page too large.
    """

    shown: list[Clip]
    left_out: list[str]


def clip_path(folder: Path, episode: EpisodeResult) -> Path:
    """File of an episode's film.

    Args:
        folder: Folder of the evaluation.
        episode: The episode.
    """
    return folder / FAILURES / f"task{episode.task_id:02d}_init{episode.init_state_id:02d}.mp4"


def filmed_failures(folder: Path, episodes: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    """Failed episodes with a film, but for films that another evaluation left, by the folder's journal.

    Args:
        folder: Folder of the evaluation.
        episodes: Its episodes.
    """
    foreign = unfilmed(folder)
    failures = [episode for episode in episodes if not episode.success and episode[:2] not in foreign]
    return [episode for episode in failures if clip_path(folder, episode).is_file()]


def read_clips(folder: Path, episodes: Sequence[EpisodeResult], max_bytes: int = MAX_BYTES) -> Clips:
    """The films of failed episodes, every task's first one before any task's second, until the page is full.

    Args:
        folder: Folder of the evaluation.
        episodes: Its episodes.
        max_bytes: Bytes that the films may take in the page.
    """
    filmed = filmed_failures(folder, episodes)
    seen: Counter[int] = Counter()
    turns = {}
    for episode in filmed:
        turns[episode] = seen[episode.task_id]
        seen[episode.task_id] += 1
    shown, left_out, room = {}, set(), max_bytes
    for episode in sorted(filmed, key=lambda episode: turns[episode]):
        path = clip_path(folder, episode)
        size = 4 * -(-path.stat().st_size // 3)
        if size > room:
            left_out.add(episode)
            continue
        room -= size
        shown[episode] = Clip(episode, "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode())
    names = [clip_path(folder, episode).relative_to(folder).as_posix() for episode in filmed if episode in left_out]
    return Clips([shown[episode] for episode in filmed if episode in shown], names)
