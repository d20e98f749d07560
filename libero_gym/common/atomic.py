"""Files that appear on disk as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def allowed(mode: int) -> int:
    """A new file's mode as the process's umask leaves it; for files of libraries that give their own."""
    mask = os.umask(0o077)  # the only way to read it; private for that instant
    os.umask(mask)
    return mode & ~mask


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` to write into; it takes `path`'s place at the end, and vanishes after an error.

    The temporary name keeps the suffix, by which image writers tell the format. A symbolic link is written through, and
    who may read the file is the process's umask to say, as for any new file.

    Raises:
        OSError: If it cannot be written, as on a full disk; the message names `path`, and what was there stays.
    """
    path, temporary = Path(os.path.realpath(path)), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # `mkstemp` would let nobody else read
        temporary = name
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _naming(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, body: bytes) -> None:
    """Write a file so that, whatever happens, it is there as a whole or not at all.

    Raises:
        OSError: If it cannot be written, as on a full disk; the message names `path`, and what was there stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(body)


def write_text(path: str | Path, text: str) -> None:
    """As `write_bytes`, of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def _naming(error: OSError, path: Path) -> OSError:
    """The same error, of the file that was asked for instead of a temporary one."""
    if error.errno is None:  # a library's own, such as h5py's
        return OSError(f"{error}; '{path}' was not written")
    # Of the class of its number, such as PermissionError.
    return OSError(error.errno, f"{error.strerror or error}; '{path}' was not written", str(path))
