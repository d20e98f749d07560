"""Official initial states as arrays: in memory, or in a file of NumPy's."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common.array_files import DAMAGE

# Of a file, unpacked: states of some hundred numbers are a thousand times less.
MAX_BYTES = 200_000_000
NO_STATES = np.zeros((0, 0))
NO_STATES.setflags(write=False)


def read_states(path: Path) -> np.ndarray:
    """The states of an NPZ, under ``states``, or of an NPY; a file that has not changed is read once.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds something else, is damaged, or is too large.
    """
    seen = path.stat()
    return _read_states(path, (seen.st_mtime_ns, seen.st_size))


@functools.lru_cache(maxsize=256)
def _read_states(path: Path, version: tuple[int, int]) -> np.ndarray:
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
            size = path.stat().st_size
            if is_zip:
                with zipfile.ZipFile(file) as zipped:
                    size = sum(entry.file_size for entry in zipped.infolist())
    except DAMAGE as error:
        raise _damaged(path, error) from error
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, unpacked; expected initial states of at most {MAX_BYTES}.")
    try:  # an NPY is mapped, so that one that says to be longer than it is takes no memory
        loaded = np.load(path, mmap_mode=None if is_zip else "r", allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded as archive:
                names = list(archive)
                loaded = archive["states"] if "states" in names else None
    except DAMAGE as error:
        raise _damaged(path, error) from error
    if loaded is None:
        raise ValueError(f"{path} holds {', '.join(names) or 'nothing'}; expected an array 'states'.")
    return checked_states(loaded, str(path))


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({error}); expected initial states.")


def checked_states(states: Any, name: str) -> np.ndarray:
    """Initial states as a read-only array of their own, float64 (n_states, 1 + nq + nv).

    Raises:
        ValueError: If they are no finite numbers of such a shape; the message begins with ``name``.
    """
    try:
        values = np.array(states, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: no array of numbers ({error}); expected (n_states, 1 + nq + nv).") from None
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name}: shape {values.shape}, or not finite; expected states (n_states, 1 + nq + nv).")
    values.setflags(write=False)
    return values
