"""Tells numba where to keep compiled functions: beside the source, else in our cache folder, else nowhere."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba

from libero_gym.common import cache

_config: Any = numba.config  # filled from the environment when numba is imported


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """``numba.njit(cache=True, nogil=True, **options)``, without a cache if no folder for one can be written.

    Functions are compiled again when any source file of their folder has changed. By itself numba looks at a function's
    own file alone, and would go on calling what other files held before.
    """
    with _place_of(function) as cached:
        return numba.njit(cache=cached, nogil=True, **options)(function)


def callback(signature: Any, function: Callable[..., Any]) -> Any:
    """``numba.cfunc(signature, cache=True)(function)``, a function for C to call, cached as `compiled` does."""
    with _place_of(function) as cached:
        return numba.cfunc(signature, cache=cached)(function)


def _place_of(function: Callable[..., Any]) -> contextlib.AbstractContextManager[bool]:
    folder = Path(function.__code__.co_filename).parent
    return place_for(folder, f"kernels-{_digest(folder)}")


@functools.cache
def _digest(folder: Path) -> str:
    """A digest of a folder's source files."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def place_for(package: Path, part: str = "") -> Iterator[bool]:
    """Give functions of a folder that are decorated meanwhile a place for their cache.

    numba looks for a place when it decorates: ``NUMBA_CACHE_DIR``, beside the source, the user's cache folder. A user
    without a home who did not install the packages can write none of these: numba then raises, or makes a folder named
    ``~`` in the working directory.

    Args:
        package: The folder of the functions' source.
        part: A folder in the place; empty for the place itself.

    Yields:
        Whether there is such a place.
    """
    saved = _config.CACHE_DIR
    if saved and is_writable(Path(saved)):
        place: Path | None = Path(saved)
    elif is_writable(package / "__pycache__"):
        if not part:  # what numba finds by itself
            yield True
            return
        place = package / "__pycache__"
    else:
        place = own_folder()
    if place is not None:
        _config.CACHE_DIR = str(place / part)
    try:
        yield place is not None
    finally:
        _config.CACHE_DIR = saved


def own_folder() -> Path | None:
    """The folder for numba in our cache; None if it cannot be written."""
    try:
        folder = cache.cache_dir() / "numba"
    except OSError:
        return None
    return folder if cache.cache_limit_bytes() and is_writable(folder) else None


def is_writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
