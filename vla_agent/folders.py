"""Folders that appear on disk complete, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # linux/fs.h, fcntl.h


@contextlib.contextmanager
def writing(target: str | Path) -> Iterator[Path]:
    """A new folder to write files into. It takes `target`'s place at the end, and vanishes where an error ends it."""
    target = Path(target).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors leaves files readable by their owner alone
            _flush(path)
        _publish(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Renames a complete folder to `target`. Where that exists, the two are exchanged, and the old one removed."""
    if target.exists():
        if not _exchange(folder, target):
            # No exchange on this system: for an instant the old run bears another name, beside the new one.
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, aside / "run")
            os.replace(folder, target)
            shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(folder, target)
    _flush(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step, where the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Have it on disk, as far as the file system lets us know."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
