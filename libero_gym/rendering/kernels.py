"""How the rasteriser's functions are compiled: by numba, to the same bits on every processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from libero_gym.common.numba_cache import compiled

f32 = np.float32
# What cannot change a bit: there are neither NaNs nor infinities to care for. Contraction, reassociation and estimated
# reciprocals would round each copy of a function in its own way: one in a loop that vectorises, one compiled in this
# process, one from the cache, one for another processor.
_RELAXED = {"nnan", "ninf", "nsz"}


def kernel(function: Callable[..., Any]) -> Any:
    """A compiled function, in which divisions by zero give infinities."""
    return compiled(function, fastmath=_RELAXED, boundscheck=False, error_model="numpy")


def inlined(function: Callable[..., Any]) -> Any:
    """A function that is written into the kernels that call it, for a call would keep a loop from vectorising."""
    return numba.njit(inline="always")(function)
