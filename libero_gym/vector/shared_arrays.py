"""Named NumPy arrays in one block of memory that several processes map, so frames travel without being pickled."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping

import numpy as np

from libero_gym.common.uncopyable import Uncopyable

# Name -> (shape, dtype string); small enough to send to a worker as text.
Layout = Mapping[str, tuple[tuple[int, ...], str]]
_ALIGNMENT = 64


class SharedArrays(Uncopyable):
    """Arrays over an anonymous file; whoever holds its descriptor maps the same bytes.

    Args:
        layout: Shape and dtype per name, the same in every process.
        descriptor: An open file descriptor to map; None makes a new, zeroed file.

    Raises:
        OSError: If the system does not give the memory.
    """

    def __init__(self, layout: Layout, descriptor: int | None = None) -> None:
        offsets, size = {}, 0
        for name, (shape, dtype) in layout.items():
            offsets[name] = size
            n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            size += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
        self.descriptor = _reserved_file(size) if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, size)
        self.arrays: dict[str, np.ndarray] = {
            name: np.ndarray(shape, dtype, buffer=self._memory, offset=offsets[name])
            for name, (shape, dtype) in layout.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def close(self) -> None:
        """Close the descriptor. The mapping lives on while arrays refer to it. May be called twice."""
        descriptor, self.descriptor = self.descriptor, -1  # whose number the system gives to the next file
        if descriptor >= 0:
            os.close(descriptor)
        self.arrays.clear()


def anonymous_file() -> int:
    """The descriptor of an empty file without a name; in memory if the system can do that (Linux)."""
    if hasattr(os, "memfd_create"):  # Linux: not in /dev/shm, whose size does not matter therefore
        return os.memfd_create("libero_gym")
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())


def _reserved_file(size: int) -> int:
    """An anonymous file with all its memory reserved: a page that is missing later would kill the process (SIGBUS).

    Raises:
        OSError: If there is too little; the message says what to do.
    """
    descriptor = -1
    try:
        descriptor = anonymous_file()
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        where = "of RAM" if hasattr(os, "memfd_create") else f"in {tempfile.gettempdir()}"
        raise OSError(
            error.errno,
            f"The environments' shared memory needs {size / 2**20:.1f} MiB {where}, and the system refuses "
            f"({os.strerror(error.errno or 0)}); make fewer environments or smaller images, or give the container more "
            "memory (docker run --memory, and --shm-size where it limits /dev/shm)",
        ) from error
    return descriptor
