"""Warnings that come once per process."""

from __future__ import annotations

import functools
import warnings


@functools.cache
def warn_once(message: str, stacklevel: int = 3) -> None:
    """Warn with this message, at the first call with it alone.

    Args:
        message: The warning.
        stacklevel: Whose line it names: 2 is the caller's, 3 the caller's caller's.
    """
    warnings.warn(message, stacklevel=stacklevel)
