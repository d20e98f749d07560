"""Which files in a dataset's folder the writer wrote itself: only those are replaced without asking, or removed.

Where it is told to overwrite a dataset, what that one lists as its own goes, too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from libero_gym.common.json_files import read_json
from libero_gym.demonstrations.episodes import DamagedEpisodeError
from libero_gym.demonstrations.lerobot_fields import file_path, whole_cell
from libero_gym.demonstrations.lerobot_layout import DATA_PATH, EPISODES_FOLDER, INFO_PATH, VIDEO_PATH
from libero_gym.demonstrations.lerobot_legacy import (
    EPISODES,
    EPISODES_STATS,
    TASKS,
    is_legacy,
    json_lines,
    place_of,
)
from libero_gym.demonstrations.lerobot_tables import parquet_rows

# The key that the writer puts into the schema of each data file. It writes a data file before the videos that belong
# to it, so that unmarked videos beside a marked file are its own.
MARK = b"libero_gym"
_VIDEO_COLUMN = re.compile(r"videos/(.+)/file_index")
_FILE = re.compile(r"file-(\d{3,})\.parquet")
# The temporary files of `atomic.replacing`, which a killed process leaves behind.
_TEMPORARY = re.compile(r"\.file-\d{3,}\.[a-z0-9_]{8}\.(parquet|mp4)")


def is_ours(path: Path) -> bool:
    """Whether a data file has the writer's mark."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return MARK in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def foreign_data(root: Path) -> Path | None:
    """A file of someone else in a place where the dataset's files go; None if there is none."""
    for path in _files(root / "data"):
        if not _TEMPORARY.fullmatch(path.name) and not is_ours(path):
            return path
    ours = any(_files(root / "data"))  # all of them are marked, so the other folders are the same writer's
    return None if ours else next(iter([*_files(root / "meta"), *_files(root / "videos")]), None)


def listed_files(root: Path) -> set[Path]:
    """The files of the dataset in a folder by its own ``meta`` folder, whoever wrote it, with the lists themselves.

    Of a dataset whose ``meta`` folder is damaged, only as much as can be read.
    """
    found = set(root.glob(f"{EPISODES_FOLDER}/chunk-*/file-*.parquet"))
    with contextlib.suppress(DamagedEpisodeError, AttributeError, KeyError, TypeError):
        info = read_json(root / INFO_PATH, error=DamagedEpisodeError) if (root / INFO_PATH).is_file() else {}
        legacy = is_legacy(info)
        if legacy:
            found |= {root / name for name in (EPISODES, EPISODES_STATS, TASKS)}
        listed = root / (EPISODES if legacy else EPISODES_FOLDER)
        for row in json_lines(listed) if legacy else parquet_rows(listed, info.get("total_episodes")):
            found |= {path for path in _files_of(root, info, row) if path.suffix in (".parquet", ".mp4")}
    return found


def _files_of(root: Path, info: dict[str, Any], row: dict[str, Any]) -> Iterator[Path]:
    """The data file and the videos of an episode; without ``info.json``, where the format puts them by default."""
    data_path, video_path = info.get("data_path", DATA_PATH), info.get("video_path", VIDEO_PATH)
    if is_legacy(info):
        place = place_of(info, row, root)
        yield file_path(root, data_path, **place)
        for name, feature in info.get("features", {}).items():
            if video_path and feature.get("dtype") == "video":
                yield file_path(root, video_path, video_key=name, **place)
        return
    numbers = ("chunk_index", "file_index")
    yield file_path(root, data_path, **{name: whole_cell(row, f"data/{name}") for name in numbers})
    for column in row:
        if (match := _VIDEO_COLUMN.fullmatch(column)) and video_path:
            place = {name: whole_cell(row, f"videos/{match[1]}/{name}") for name in numbers}
            yield file_path(root, video_path, video_key=match[1], **place)


def remove_leftovers(root: Path, wanted: set[tuple[int, int]], video_keys: list[str]) -> None:
    """Remove the files of an earlier, longer dataset; other tools read every file in ``data``.

    Args:
        root: The dataset's folder.
        wanted: Chunk and file index of the files that stay.
        video_keys: The folders of the dataset's videos.
    """
    for path in list(root.glob("data/chunk-*/*")):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
            continue
        match, chunk = _FILE.fullmatch(path.name), path.parent.name.removeprefix("chunk-")
        if match is None or not chunk.isdecimal() or (int(chunk), int(match[1])) in wanted or not is_ours(path):
            continue
        for key in video_keys:  # before the data file, whose mark proves that they may go
            (root / "videos" / key / path.parent.name / f"{path.stem}.mp4").unlink(missing_ok=True)
        path.unlink()
    for key in video_keys:
        for path in list((root / "videos" / key).glob("chunk-*/*")):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
