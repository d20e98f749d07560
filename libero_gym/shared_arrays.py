"""Named NumPy arrays in one block of memory that several processes map: how frames travel without being pickled."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping

import numpy as np

from libero_gym.uncopyable import Uncopyable

# Name -> (shape, dtype string); small enough to send to a worker as text.
Layout = Mapping[str, tuple[tuple[int, ...], str]]
_ALIGNMENT = 64


class SharedArrays(Uncopyable):
    """Arrays over an anonymous file; whoever holds its descriptor maps the same bytes.

    Args:
        layout: Shape and dtype per name, the same in every process.
        descriptor: An open file descriptor to map; None makes a new, zeroed file.
    """

    def __init__(self, layout: Layout, descriptor: int | None = None) -> None:
        offsets, size = {}, 0
        for name, (shape, dtype) in layout.items():
            offsets[name] = size
            n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            size += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
        self.descriptor = _anonymous_file(size) if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, size)
        self.arrays: dict[str, np.ndarray] = {
            name: np.ndarray(shape, dtype, buffer=self._memory, offset=offsets[name])
            for name, (shape, dtype) in layout.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def close(self) -> None:
        """Close the descriptor. The mapping lives on while arrays refer to it."""
        os.close(self.descriptor)
        self.arrays.clear()


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("libero_gym")
    else:  # macOS
        with tempfile.TemporaryFile() as stream:
            descriptor = os.dup(stream.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
