"""A bounded cache of compiled models on disk, safe for concurrent writers; every failure means 'no cache'."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
import zlib
from pathlib import Path

_SUFFIX = ".bin"
_CRC_BYTES = 4


def cache_dir() -> Path:
    """``$LIBERO_GYM_CACHE``, else ``$XDG_CACHE_HOME/libero_gym``, else ``~/.cache/libero_gym``."""
    chosen = os.environ.get("LIBERO_GYM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "libero_gym"


def cache_limit_bytes() -> int:
    """``$LIBERO_GYM_CACHE_GB`` (default 6), as bytes. 0 turns the cache off."""
    return int(float(os.environ.get("LIBERO_GYM_CACHE_GB", "6")) * 1e9)


def read(key: str) -> bytes | None:
    """The cached bytes under that key, or None if they are absent or damaged. A damaged entry is removed."""
    path = cache_dir() / (key + _SUFFIX)
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    body, checksum = blob[:-_CRC_BYTES], blob[-_CRC_BYTES:]
    if len(blob) < _CRC_BYTES or zlib.crc32(body).to_bytes(_CRC_BYTES, "little") != checksum:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # recently used: `_evict` removes the oldest first
    return body


def contains(key: str) -> bool:
    """Whether there is an entry under that key; only `read` says whether it is whole."""
    return (cache_dir() / (key + _SUFFIX)).is_file()


def write(key: str, body: bytes) -> None:
    """Store bytes under a key, atomically. A full disk or an unwritable folder gives one warning and no cache."""
    limit = cache_limit_bytes()
    if len(body) > limit:
        return
    folder = cache_dir()
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".write-")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(body)
            stream.write(zlib.crc32(body).to_bytes(_CRC_BYTES, "little"))
        os.replace(temporary, folder / (key + _SUFFIX))
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        warnings.warn(
            f"Compiled tasks are not cached, so that each process compiles them again (seconds per task): {error}. "
            "Set LIBERO_GYM_CACHE to a folder that can be written.",
            stacklevel=2,
        )
        return
    _evict(folder, limit)


def _evict(folder: Path, limit: int) -> None:
    """Remove the least recently used entries until the folder is within its limit."""
    entries = []
    for path in folder.glob("*" + _SUFFIX):
        with contextlib.suppress(OSError):  # another process may have removed it
            stat = path.stat()
            entries.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda entry: entry[0]):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
