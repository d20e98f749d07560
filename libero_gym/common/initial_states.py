"""Official initial states as arrays: in memory, or in a file of NumPy's."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

NO_STATES = np.zeros((0, 0))
NO_STATES.setflags(write=False)


@functools.lru_cache(maxsize=256)
def read_states(path: Path) -> np.ndarray:
    """The states of an NPZ, under ``states``, or of an NPY.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds something else.
    """
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return checked_states(loaded, str(path))
    with loaded as archive:
        if "states" not in archive:
            raise ValueError(f"{path} holds {', '.join(archive) or 'nothing'}; expected an array 'states'.")
        return checked_states(archive["states"], str(path))


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
