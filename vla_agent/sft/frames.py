"""Frames of demonstrations in a file: memory holds those of one batch, however many there are.

A file without a name vanishes with the process. A named one, with what else is known of the frames, is a folder that a
later run opens instead of decoding videos again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from libero_gym.common.array_files import pack, unpack
from libero_gym.common.uncopyable import Uncopyable
from vla_agent.common.atomic import Kind, destination, remove, writing

FRAMES_FILE, TABLE_FILE = "frames.bin", "examples.npz"
DECODED = Kind("cache of decoded frames", (), (FRAMES_FILE, TABLE_FILE))  # half of one is replaced like a whole one
_VERSION = 3  # of the files; another one is decoded anew
_STALE_S = 60  # a writer locks its file at once; one that is unlocked and older than this has lost its writer


class FrameFile(Uncopyable):
    """Frames of N examples, read from a file when they are asked for.

    Args:
        stream: The file: frame after frame, of each frame one image per camera.
        n_cameras: Images per frame.
        image_size: Side S of an image in pixels.
    """

    copy_instead = "its file belongs to this process; make the ActionChunks in the other one."

    def __init__(self, stream: IO[bytes], n_cameras: int, image_size: int) -> None:
        self.n_cameras, self._shape = n_cameras, (image_size, image_size, 3)
        self._frame_bytes = n_cameras * image_size * image_size * 3
        self._descriptor = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._n_frames = os.fstat(self._descriptor).st_size // self._frame_bytes
        if hasattr(os, "posix_fadvise"):  # batches are drawn at random: what lies beside a frame is not read with it
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __len__(self) -> int:
        return self._n_frames

    def __deepcopy__(self, memo: dict[int, Any]) -> FrameFile:
        with os.fdopen(os.dup(self._descriptor), "rb") as stream:
            return FrameFile(stream, self.n_cameras, self._shape[0])

    def __copy__(self) -> FrameFile:
        return self.__deepcopy__({})

    def __getitem__(self, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        """Images of frames, int64 (B,), as `checked_frames` reads them; one array uint8 (B, S, S, 3) per camera.

        Raises:
            IndexError: If there is no such frame.
            OSError: If the file is shorter than it was.
        """
        frames = checked_frames(frames, len(self))
        images = tuple(np.empty((len(frames), *self._shape), np.uint8) for _ in range(self.n_cameras))
        for row, frame in enumerate(frames.tolist()):
            parts = [memoryview(camera[row].reshape(-1)) for camera in images]
            if os.preadv(self._descriptor, parts, frame * self._frame_bytes) != self._frame_bytes:
                raise OSError(
                    "The file of decoded frames was cut short while it was in use; start again, it is made anew."
                )
        return images


def checked_frames(frames: np.ndarray, n_frames: int) -> np.ndarray:
    """Frames, int64 (B,), as numbers from 0; negative ones count from the end.

    Raises:
        TypeError: If they are no list of whole numbers.
        IndexError: If there is no such frame.
    """
    found = np.asarray(frames)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
        raise TypeError(f"Frames are {found.dtype} {found.shape}; expected whole numbers (B,).")
    outside = (found < -n_frames) | (found >= n_frames)
    if outside.any():
        raise IndexError(f"There is no frame {found[outside][0]}; expected numbers from {-n_frames} to {n_frames - 1}.")
    return np.where(found < 0, found + n_frames, found).astype(np.int64)


class Decoded(NamedTuple):
    """Frames, and what else is known of them.

    Attributes:
        frames: The frames.
        description: Values as JSON holds them.
        table: Arrays by name.
    """

    frames: FrameFile
    description: dict[str, Any]
    table: dict[str, np.ndarray]


class FrameWriter:
    """Writes frames behind one another.

    Args:
        stream: The file, without a buffer.
        folder: Folder of the file, which becomes a cache; None if the file has no name.
        n_cameras: Images per frame.
        image_size: Side of an image in pixels.
    """

    def __init__(self, stream: Any, folder: Path | None, n_cameras: int, image_size: int) -> None:
        self._stream, self._folder = stream, folder
        self._n_cameras, self._image_size = n_cameras, image_size

    def add(self, images: Sequence[np.ndarray]) -> None:
        """Write the frames of an episode: one array uint8 (T, S, S, 3) per camera.

        Raises:
            OSError: If the disk is full.
        """
        block = images[0] if len(images) == 1 else np.stack(images, axis=1)
        assert block.size == len(images[0]) * self._n_cameras * self._image_size**2 * 3
        rest = block.tobytes()
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            if self._folder is not None:  # `writing` names the folder
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}: the decoded frames of all demonstrations must fit into '{tempfile.gettempdir()}'. "
                "Free space, or name a folder with more by the environment variable TMPDIR",
            ) from error

    def finish(self, description: dict[str, Any], table: Mapping[str, np.ndarray]) -> Decoded:
        """The frames that were written; a cache gets a file with the description and the table too."""
        if self._folder is not None:
            body = pack({"version": _VERSION, **description}, dict(table))
            (self._folder / TABLE_FILE).write_bytes(body)
        return Decoded(FrameFile(self._stream, self._n_cameras, self._image_size), description, dict(table))


@contextlib.contextmanager
def writing_frames(cache: Path | None, n_cameras: int, image_size: int) -> Iterator[FrameWriter]:
    """A `FrameWriter`; the cache appears at the end, or after an error not at all.

    Two processes may write one cache: each has its own files, and the later ones stay.

    Args:
        cache: Folder of the cache, replaced if it is one; None for a file without a name.
        n_cameras: Images per frame.
        image_size: Side of an image in pixels.

    Raises:
        FileExistsError: If something else than a cache is there.
        OSError: If the disk is full.
    """
    with contextlib.ExitStack() as stack:
        if cache is None:
            stream: Any = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            yield FrameWriter(stream, None, n_cameras, image_size)
            return
        path = destination(cache, DECODED)
        _remove_leftovers(path)
        remove_frames(path)  # they are of other data, and there need not be room for both
        folder = stack.enter_context(writing(path, DECODED))
        stream = stack.enter_context((folder / FRAMES_FILE).open("w+b", buffering=0))
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield FrameWriter(stream, folder, n_cameras, image_size)


def read_frames(cache: Path, wanted: Mapping[str, Any], n_cameras: int, image_size: int) -> Decoded | None:
    """The frames of a cache; None if there is none, it is damaged, or it is of other data.

    Args:
        cache: Folder of the cache.
        wanted: Entries that the cache's description must have.
        n_cameras: Images per frame.
        image_size: Side of an image in pixels.
    """
    try:
        description, table = unpack(cache / TABLE_FILE)
        if any(description.get(name) != value for name, value in {"version": _VERSION, **wanted}.items()):
            return None
        with (cache / FRAMES_FILE).open("rb") as stream:
            frames = FrameFile(stream, n_cameras, image_size)
            whole = os.fstat(stream.fileno()).st_size == len(table["state"]) * n_cameras * image_size * image_size * 3
        return Decoded(frames, description, table) if whole else None
    except (OSError, ValueError, KeyError):
        return None


def remove_frames(cache: Path) -> None:
    """Remove a cache, if there is one; who has it open reads on."""
    if cache.is_dir():
        with contextlib.suppress(OSError):
            remove(cache, DECODED)


def _remove_leftovers(path: Path) -> None:
    """Remove what writers of this cache left that were killed."""
    if not path.parent.is_dir():
        return
    named = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")  # as `writing` names its folders
    for folder in path.parent.iterdir():
        if not named.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError), (folder / FRAMES_FILE).open("rb") as stream:
            if time.time() - os.fstat(stream.fileno()).st_mtime > _STALE_S:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError while its writer lives
                if {file.name for file in folder.iterdir()} <= {FRAMES_FILE, TABLE_FILE}:
                    shutil.rmtree(folder, ignore_errors=True)
