"""A bounded cache of compiled models on disk. It is safe for concurrent writers, and fails by not caching."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import platformdirs

from libero_gym.common.warn import warn_once

_SUFFIX = ".bin"
# Keys are a word and hashes, see `compilation.records`: other files in a folder that somebody chose are not ours.
_ENTRY = re.compile(r"[a-z]+(-[0-9a-f]{16}){2,}[a-z0-9-]*\.bin")
_TEMPORARY, _TEMPORARY_S = re.compile(r"\.write-\w{8}"), 3600  # names, and age at which nobody writes any more
# An entry of fewer bytes goes after all larger ones: tasks and placements are small and cost seconds each.
_SMALL_BYTES = 16_000_000
_CRC_BYTES = 4
_CHUNK_BYTES = 2**20


def cache_dir() -> Path:
    """The folder of the cache.

    Returns:
        ``$LIBERO_GYM_CACHE`` if it is set, else ``libero_gym`` in the user's folder for caches, which on Linux is
        ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        FileNotFoundError: If the folder is in the home folder, and this user has none.
    """
    chosen = os.environ.get("LIBERO_GYM_CACHE")
    try:
        folder = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("libero_gym")
        if chosen or folder.is_absolute():
            return folder
    except RuntimeError:  # `docker run --user` without HOME; older platformdirs return a path that begins with ~
        pass
    raise FileNotFoundError(f"no home folder is known, so there is no {chosen or '~/.cache/libero_gym'}")


def cache_limit_bytes() -> int:
    """The limit ``$LIBERO_GYM_CACHE_GB`` in bytes, 12 GB by default. 0 turns the cache off.

    The forty tasks of ``LIBERO-40-v0`` take 7 GB with the scenes of both renderers. A cache that is too small for what
    is used in turn keeps nothing that is needed next.

    Raises:
        ValueError: If the variable is not a number from 0.
    """
    given = os.environ.get("LIBERO_GYM_CACHE_GB") or "12"
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise ValueError(f"LIBERO_GYM_CACHE_GB={given!r}; expected gigabytes, a number from 0 (no cache).")
    return int(limit * 1e9)


def read(key: str) -> bytes | None:
    """The bytes that were stored under a key; None if they are absent or damaged, or the cache is off.

    A damaged entry is removed.
    """
    if not cache_limit_bytes():
        return None
    try:
        path = cache_dir() / (key + _SUFFIX)
        blob = path.read_bytes()
    except OSError:
        return None
    body, checksum = blob[:-_CRC_BYTES], blob[-_CRC_BYTES:]
    if len(blob) < _CRC_BYTES or zlib.crc32(body).to_bytes(_CRC_BYTES, "little") != checksum:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # marks it as recently used: `_evict` removes the oldest first
    return body


def map_entry(key: str) -> np.ndarray | None:
    """The bytes that were stored under a key as a read-only array (n,) mapped from the file; None as `read` has it.

    Processes that map the same entry share its memory. An entry that is removed meanwhile stays as it was in memory.
    """
    if not cache_limit_bytes():
        return None
    try:
        path = cache_dir() / (key + _SUFFIX)
        with path.open("rb") as stream:
            # Read, not mapped: pages that are mapped count as the process's memory, and it may never need most of them.
            is_whole = _is_whole(stream)
            body = np.memmap(stream, np.uint8, mode="r")[:-_CRC_BYTES] if is_whole else None
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if body is None:
            path.unlink()
        else:
            os.utime(path)
    return body


def _is_whole(stream: BinaryIO) -> bool:
    """Whether an entry's bytes have the checksum that stands at their end."""
    left = os.fstat(stream.fileno()).st_size - _CRC_BYTES
    checksum = 0
    while left > 0 and (part := stream.read(min(left, _CHUNK_BYTES))):
        checksum, left = zlib.crc32(part, checksum), left - len(part)
    return left == 0 and stream.read() == checksum.to_bytes(_CRC_BYTES, "little")


def contains(key: str) -> bool:
    """Whether this user can read an entry under a key, and the cache is on. It may be damaged; `read` checks that."""
    try:
        path = cache_dir() / (key + _SUFFIX)
        return cache_limit_bytes() > 0 and path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False


def write(key: str, body: bytes) -> None:
    """Store bytes under a key, as a whole or not at all. A full disk or an unwritable folder causes one warning."""
    limit = cache_limit_bytes()
    if len(body) > limit:
        return
    temporary = None
    try:
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / f".write-{secrets.token_hex(4)}"  # as in _TEMPORARY
        # The umask says who may read it; `mkstemp` would let nobody else.
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        temporary = name
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(body)
            stream.write(zlib.crc32(body).to_bytes(_CRC_BYTES, "little"))
        os.replace(temporary, folder / (key + _SUFFIX))
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        warn_once(
            f"Compiled tasks are not cached, so that each process compiles them again (seconds per task): {error}. "
            "Set LIBERO_GYM_CACHE to a folder that can be written."
        )
        return
    _evict(folder, limit)


def _evict(folder: Path, limit: int) -> None:
    """Remove the least recently used entries, small ones last, until the folder is within its limit.

    What a process left that was killed while it wrote goes, too.
    """
    entries, listed = [], []
    with contextlib.suppress(OSError):  # another process may have removed the folder
        listed = list(os.scandir(folder))
    for entry in listed:
        with contextlib.suppress(OSError):  # another process may have removed it
            if _ENTRY.fullmatch(entry.name):
                stat = entry.stat()
                entries.append((stat.st_mtime, stat.st_size, entry.path))
            elif _TEMPORARY.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _TEMPORARY_S:
                os.unlink(entry)
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda entry: (entry[1] < _SMALL_BYTES, entry[0])):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= size
