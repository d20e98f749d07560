"""The parquet files of a LeRobot dataset, of which a small one can state more than memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libero_gym.demonstrations.episodes import DamagedEpisodeError

# Bounds of one parquet file; LeRobot begins another one at 100 MB.
_MAX_ROWS, _MAX_TABLE_BYTES = 10**7, 16 * 2**30


def check_parquet(path: Path) -> None:
    """Raise a DamagedEpisodeError if a file states more than any dataset's file holds, before it is read."""
    import pyarrow.parquet as pq

    stated = pq.read_metadata(path)
    size = sum(stated.row_group(index).total_byte_size for index in range(stated.num_row_groups))
    if stated.num_rows > _MAX_ROWS or not 0 <= size <= _MAX_TABLE_BYTES:
        raise DamagedEpisodeError(f"{path} is damaged: it states {stated.num_rows} rows of {size} bytes in all.")


def parquet_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all files of a folder, without their statistics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/*.parquet")):
        try:
            check_parquet(path)
            schema = pq.read_schema(path)
            wanted = [name for name in schema.names if not name.startswith("stats/")]
            rows += pq.read_table(path, columns=wanted).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DamagedEpisodeError(f"{path} is damaged ({error}).") from error
    return rows
