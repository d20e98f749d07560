"""Which files in a dataset's folder the writer wrote itself: only those are replaced without asking, or removed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

# The key that the writer puts into the schema of each data file. It writes a data file before the videos that belong
# to it, so that unmarked videos beside a marked file are its own.
MARK = b"libero_gym"
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
