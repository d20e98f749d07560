"""Long tables in a run's state, such as one row per episode: their columns are tensors beside the JSON document.

As JSON, ten million rows are a gigabyte, and a reader that parses as much of anything can be made to fill its memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch as th

LONG = 2**16  # rows; shorter tables stay in the document, where anybody can read them
MAX_ROWS = 2**26  # of all tables: a row takes a hundred bytes in memory, and may take one in the file
_REFERENCE = "rows in tables.safetensors"  # the one key of what stands in a table's place
_TYPES = {int: th.int64, float: th.float64, bool: th.bool}


def split(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """A document without its long tables, and their columns by "<table>.<column>"; `join` turns it back.

    A table is a list of at least `LONG` rows, each a list or tuple of as many values. A column holds whole numbers of
    64 bits, finite floats, or booleans; a table with another one stays in the document, and so do lists in lists.
    """
    tables: list[list[th.Tensor]] = []
    rest = {key: _split(value, tables) for key, value in document.items()}
    return rest, {f"{i}.{j}": column for i, columns in enumerate(tables) for j, column in enumerate(columns)}


def _split(value: Any, tables: list[list[th.Tensor]]) -> Any:
    if isinstance(value, dict):
        return {key: _split(item, tables) for key, item in value.items()}
    if not isinstance(value, list) or len(value) < LONG:
        return value
    if len(value) + sum(len(columns[0]) for columns in tables) > MAX_ROWS or not (columns := _columns(value)):
        return value
    tables.append(columns)
    return {_REFERENCE: len(tables) - 1}


def _columns(rows: list[Any]) -> list[th.Tensor]:
    """The columns of a table; none if it is no table."""
    if not all(isinstance(row, (list, tuple)) for row in rows) or len(set(map(len, rows))) > 1:
        return []
    found = []
    for column in zip(*rows, strict=True):
        kind, *others = set(map(type, column))
        if others or kind not in _TYPES or (kind is float and not all(map(math.isfinite, column))):
            return []
        try:
            found.append(th.tensor(column, dtype=_TYPES[kind]))
        except (OverflowError, ValueError, RuntimeError):  # a whole number of more than 64 bits
            return []
    return found


def join(document: dict[str, Any], columns: Mapping[str, th.Tensor]) -> dict[str, Any]:
    """The document that `split` took apart; rows are lists.

    Raises:
        ValueError: If a table is missing, is used twice, or is none.
    """
    tables: dict[str, dict[int, th.Tensor]] = {}
    for name, column in columns.items():
        number, _, place = name.partition(".")
        tables.setdefault(number, {})[int(place)] = column
    n_rows = sum(max(part.numel() for part in parts.values()) for parts in tables.values())
    if n_rows > MAX_ROWS:
        raise ValueError(f"its tables have {n_rows} rows; expected at most {MAX_ROWS}")
    return {key: _join(value, tables) for key, value in document.items()}


def _join(value: Any, tables: dict[str, dict[int, th.Tensor]]) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() != {_REFERENCE}:
        return {key: _join(item, tables) for key, item in value.items()}
    number = str(value[_REFERENCE])
    parts = tables.pop(number, {})  # once: many references to one table would be as many in memory
    columns = [parts[place] for place in sorted(parts)]
    if not columns or len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
        raise ValueError(f"table {number} is missing, is used twice, or has columns of several lengths")
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
