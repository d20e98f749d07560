"""How the rasteriser's functions are compiled: by numba, with relaxed float arithmetic so that loops vectorise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from libero_gym.common.numba_cache import compiled

f32 = np.float32
# Not "arcp" and "afn": with them, loops that vectorise divide by estimates of reciprocals and their last turns do not,
# so that a colour would depend on where in a batch it stands.
_RELAXED = {"nnan", "ninf", "nsz"}


def kernel(function: Callable[..., Any]) -> Any:
    """A compiled function; its sums may be reordered, and divisions by zero give infinities."""
    return compiled(function, fastmath=_RELAXED, boundscheck=False, error_model="numpy")


def inlined(function: Callable[..., Any]) -> Any:
    """A function that is written into the kernels that call it, for a call would keep a loop from vectorising."""
    return numba.njit(inline="always")(function)
