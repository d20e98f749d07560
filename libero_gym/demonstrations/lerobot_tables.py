"""The parquet files of a LeRobot dataset, of which a small one can state more than memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from libero_gym.demonstrations.episodes import DamagedEpisodeError

# Bounds of one parquet file; LeRobot begins another one at 100 MB.
_MAX_ROWS, _MAX_TABLE_BYTES = 10**7, 16 * 2**30
# Episodes that a dataset may list: as many as it states, up to a bound; a few thousand need not be stated.
_MAX_EPISODES, _UNSTATED_EPISODES = 10**6, 10_000
_MAX_LIST_BYTES = 2**30  # of all entries in memory
_BATCH_SLACK = 2**20  # bytes, whatever a batch's rows


class _Limits(NamedTuple):
    """What is read at once. Repeated values are stored once, so that what they take is known when they are decoded.

    Attributes:
        n_rows: Rows of a batch.
        row_bytes: Bytes that a row may take in memory, in a batch's mean.
        cell_values: Values that a cell may hold, in a row group's mean.
    """

    n_rows: int
    row_bytes: int
    cell_values: int


_NUMBERS = _Limits(4096, 512, 64)
_LIST = _Limits(64, 16 * 2**10, 1024)  # instructions, names, where the files lie


def check_parquet(path: Path) -> None:
    """Raise a DamagedEpisodeError if a file states more than any dataset's file holds, before it is read."""
    import pyarrow.parquet as pq

    stated = pq.read_metadata(path)
    size = sum(stated.row_group(index).total_byte_size for index in range(stated.num_row_groups))
    if stated.num_rows > _MAX_ROWS or not 0 <= size <= _MAX_TABLE_BYTES:
        raise DamagedEpisodeError(f"{path} is damaged: it states {stated.num_rows} rows of {size} bytes in all.")


def parquet_rows(folder: Path, stated: Any) -> list[dict[str, Any]]:
    """The rows of all files of a folder, without their statistics.

    Args:
        folder: The folder with a dataset's lists of episodes.
        stated: How many episodes the dataset says that it has.

    Raises:
        DamagedEpisodeError: If a file is damaged, or the lists hold more than a dataset's do.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    most = min(max(stated if isinstance(stated, int) else 0, _UNSTATED_EPISODES), _MAX_EPISODES)
    rows: list[dict[str, Any]] = []
    taken = 0
    for path in sorted(folder.glob("*/*.parquet")):
        try:
            check_parquet(path)
            n_rows = len(rows) + pq.read_metadata(path).num_rows
            if n_rows > most:
                raise DamagedEpisodeError(f"{folder} is damaged: it lists {n_rows} episodes; the dataset has {stated}.")
            wanted = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
            for batch in _batches(path, wanted, _LIST):
                taken += batch.nbytes
                if taken > _MAX_LIST_BYTES:
                    raise DamagedEpisodeError(f"{folder} is damaged: its lists take more than {_MAX_LIST_BYTES} bytes.")
                rows += batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DamagedEpisodeError(f"{path} is damaged ({error}).") from error
    return rows


def episode_numbers(path: Path, columns: Sequence[str], index: int, length: int) -> Any:
    """An episode's rows in a data file, as a table; a few more than ``length`` if there are more.

    Args:
        path: The file, which `check_parquet` has passed.
        columns: Columns of numbers, or of short lists of numbers.
        index: The episode's index.
        length: The number of rows that are expected.

    Raises:
        DamagedEpisodeError: If cells take more memory than such numbers.
    """
    return _episode(path, columns, index, length, _NUMBERS)


def episode_images(path: Path, columns: Sequence[str], index: int, length: int, pixel_bytes: int) -> Any:
    """As `episode_numbers`, of columns of encoded images that decode to at most ``pixel_bytes`` each."""
    cell = 4 * pixel_bytes + 2**16  # 16 bits, transparency and descriptions; compressed, they are less
    return _episode(path, columns, index, length, _Limits(16, cell * len(columns), 1))


def _episode(path: Path, columns: Sequence[str], index: int, length: int, limits: _Limits) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = [*columns, "episode_index"]
    found: list[Any] = []
    for batch in _batches(path, names, limits, _groups_of(pq.read_metadata(path), index)):
        rows = batch.filter(pc.equal(batch.column("episode_index"), index))
        found += [rows] if len(rows) else []
        if sum(map(len, found)) > length:
            break
    schema = pa.schema([pq.read_schema(path).field(name) for name in names])
    return pa.Table.from_batches(found) if found else schema.empty_table()


def _groups_of(stated: Any, index: int) -> list[int]:
    """The row groups of a data file that may hold an episode, by their statistics."""
    found = []
    for group in range(stated.num_row_groups):
        chunks = [stated.row_group(group).column(number) for number in range(stated.row_group(group).num_columns)]
        ranges = [chunk.statistics for chunk in chunks if chunk.path_in_schema == "episode_index"]
        known = [one for one in ranges if one is not None and one.has_min_max and isinstance(one.min, int)]
        if all(one.min <= index <= one.max for one in known):
            found.append(group)
    return found


def _batches(path: Path, columns: list[str], limits: _Limits, groups: list[int] | None = None) -> Iterator[Any]:
    """Record batches of a file's columns, of all row groups or of some.

    Raises:
        DamagedEpisodeError: If they exceed the limits.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.metadata.num_row_groups) if groups is None else groups:
            stated = file.metadata.row_group(group)
            for chunk in (stated.column(number) for number in range(stated.num_columns)):
                one_of_them = any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in columns)
                if one_of_them and chunk.num_values > limits.cell_values * stated.num_rows:
                    raise DamagedEpisodeError(
                        f"{path} is damaged: {chunk.path_in_schema!r} holds {chunk.num_values} values in "
                        f"{stated.num_rows} rows."
                    )
            for batch in file.iter_batches(limits.n_rows, row_groups=[group], columns=columns, use_threads=False):
                if batch.nbytes > limits.row_bytes * len(batch) + _BATCH_SLACK:
                    raise DamagedEpisodeError(f"{path} is damaged: {len(batch)} of its rows take {batch.nbytes} bytes.")
                yield batch
