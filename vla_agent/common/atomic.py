"""Folders that appear on disk complete, or not at all; only a folder of the same kind is ever replaced."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch as th
from safetensors import SafetensorError
from safetensors.torch import save_file

from libero_gym.common.atomic import allowed, replacing

logger = logging.getLogger(__name__)

ZIP = ".zip"
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # linux/fs.h, fcntl.h


class Kind(NamedTuple):
    """The files that a folder of ours holds; a folder with anything else belongs to somebody else.

    Attributes:
        what: Name of the kind in messages, such as "saved run".
        files: Names of the files that each folder has.
        optional: Names of the files that a folder may have.
    """

    what: str
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def mismatch(self, names: list[str]) -> str | None:
        """Why a folder with these files is not of the kind, as the end of a sentence; None if it is."""
        foreign = sorted(set(names) - {*self.files, *self.optional})
        if foreign:
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            return f"holds {', '.join(map(repr, foreign[:3]))}{more}, which no {self.what} has"
        missing = [name for name in self.files if name not in names]
        return f"is no whole {self.what} (it lacks {', '.join(missing)})" if missing else None


def destination(target: str | Path, kind: Kind) -> Path:
    """The absolute path, behind symbolic links, at which `writing` puts a folder. It makes and changes nothing.

    Raises:
        FileExistsError: If something stands there that is neither of this kind nor an empty folder.
    """
    path = Path(os.path.realpath(target))
    obstacle = _obstacle(path, kind)
    if obstacle is not None:
        raise FileExistsError(
            f"'{target}' {obstacle}; nothing was written, and what is there stays. Give the {kind.what} a name that is "
            "free, or move what is there away."
        )
    return path


def _obstacle(path: Path, kind: Kind) -> str | None:
    if path == path.parent:
        return "is the root of the file system"
    if path == Path.cwd():  # even an empty one: its processes would stand in a folder that is gone
        return "is the current folder"
    if not os.path.lexists(path):
        return None
    if path.is_symlink():
        return "is a symbolic link to itself"
    if not path.is_dir():
        return "is a file"
    entries = list(os.scandir(path))
    folders = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    if folders:
        return f"has the subfolder {folders[0]!r}, which no {kind.what} has"
    return kind.mismatch([entry.name for entry in entries]) if entries else None


@contextlib.contextmanager
def writing(target: str | Path, kind: Kind) -> Iterator[Path]:
    """A new folder to write files into. It takes `target`'s place at the end; if an error comes, it is removed.

    Raises:
        FileExistsError: As `destination`, before anything is written and once more at the end.
        OSError: If it cannot be written, as on a full disk; the message names `target`, and what was there stays.
    """
    path = destination(target, kind)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            folder.chmod(allowed(0o777))
            yield folder
            for file in folder.iterdir():
                file.chmod(allowed(0o666))  # safetensors leaves files readable by their owner alone
                _flush(file)
            destination(target, kind)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            _publish(folder, path, kind)
        finally:
            _discard(folder, kind)


@contextlib.contextmanager
def writing_zip(target: str | Path, kind: Kind) -> Iterator[Path]:
    """As `writing`, but the files become one zip at `target`: uncompressed, so that reading needs no more than it has.

    Raises:
        FileExistsError: If something stands there that is no zip of this kind's files.
        OSError: If it cannot be written, as on a full disk; the message names `target`, and what was there stays.
    """
    path = zip_destination(target, kind)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
            yield Path(name)
            zip_destination(target, kind)
            with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for file in sorted(Path(name).iterdir()):
                    archive.write(file, file.name)
        _flush(path.parent)


def remove(path: Path, kind: Kind) -> None:
    """Removes a folder of this kind, and nothing else. It is renamed first, so that nobody sees half of it.

    Raises:
        FileExistsError: If it holds anything else, or is a link; it stays then.
        OSError: If it cannot be removed.
    """
    obstacle = "is a symbolic link" if path.is_symlink() else _obstacle(path, kind)
    if obstacle is not None:
        raise FileExistsError(f"'{path}' {obstacle}.")
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    os.replace(path, aside / "run")
    _discard(aside / "run", kind)
    with contextlib.suppress(OSError):
        aside.rmdir()


def zip_destination(target: str | Path, kind: Kind) -> Path:
    """As `destination`, for a zip of such a folder's files.

    Raises:
        FileExistsError: If something stands there that is no zip of this kind's files.
    """
    path = Path(os.path.realpath(target))
    obstacle = None
    if path.is_symlink():
        obstacle = "is a symbolic link to itself"
    elif path.is_dir():
        obstacle = "is a folder"
    elif path.exists():
        obstacle = f"is a file, and no zip of a {kind.what}"
        with contextlib.suppress(zipfile.BadZipFile, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
            obstacle = kind.mismatch(archive.namelist())
    if obstacle is not None:
        raise FileExistsError(
            f"'{target}' {obstacle}; nothing was written, and what is there stays. Give the {kind.what} a name that is "
            "free, or move what is there away."
        )
    return path


def save_tensors(tensors: Mapping[str, th.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device to a safetensors file; what shares memory, as tied weights do, is written twice.

    Raises:
        OSError: If it cannot be written, as on a full disk.
    """
    content: dict[str, th.Tensor] = {}
    written: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        memory = held.untyped_storage().data_ptr()
        content[name] = held.clone() if memory in written else held
        written.add(memory)
    try:
        save_file(content, path, metadata=metadata)
    except SafetensorError as error:  # safetensors tells an operating system's error in words alone
        number = re.search(r"os error (\d+)", str(error))
        code = int(number.group(1)) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def _publish(folder: Path, path: Path, kind: Kind) -> None:
    """Renames a complete folder to `path`. A folder of ours there takes its place, to be discarded."""
    try:
        os.replace(folder, path)  # where nothing is, or an empty folder; anything else makes the system refuse
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(folder, path):
            _replace_in_two_steps(folder, path, kind)
    _flush(path.parent)


def _replace_in_two_steps(folder: Path, path: Path, kind: Kind) -> None:
    """Without an exchange on this system: for an instant the old run bears another name, beside the new one."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    old = aside / "run"
    os.replace(path, old)
    try:
        os.replace(folder, path)
    except OSError:
        os.replace(old, path)
        aside.rmdir()
        raise
    _discard(old, kind)
    with contextlib.suppress(OSError):
        aside.rmdir()


def _discard(folder: Path, kind: Kind) -> None:
    """Removes a folder of ours, file by file; a file that came into it since the check stays and is logged."""
    for name in (*kind.files, *kind.optional):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("'%s' was not removed, for it holds more than a %s (%s).", folder, kind.what, error.strerror)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; False if the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes errors of the disk name `path` instead of a temporary file, with the way out.

    An error of a file that lies elsewhere, such as one that could not be read, stays as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or not _is_of(path, error.filename):  # or one of our own sentences
            raise
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way = "Free space, or choose a folder on another disk" if is_full else "Choose a folder that can be written"
        reason = f"{os.strerror(error.errno)}; '{path}' was not written, and what was there stays. {way}"
        raise type(error)(error.errno, reason, str(path)) from error


def _is_of(path: Path, name: object) -> bool:
    """Whether a file is `path`, a folder on its way, or what is written beside it until the end, by its name."""
    if not isinstance(name, (str, bytes)):  # not told, or a descriptor
        return True
    path, file = path.absolute(), Path(os.path.abspath(os.fsdecode(name)))
    if path.is_relative_to(file):
        return True
    below = file.relative_to(path.parent).parts[0] if file.is_relative_to(path.parent) else ""
    return below == path.name or below.startswith(f".{path.name}.")


def _flush(path: Path) -> None:
    """Has the system write a file to the disk, as far as the file system supports it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
