"""OSMesa: Mesa's software renderer without EGL, for machines that have nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any

from libero_gym.rendering.gl import ContextLostError, renderer_name

_LIBRARIES = ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
_RGBA, _UNSIGNED_BYTE = 0x1908, 0x1401
_TYPE = 0x23
_SIDE = 8  # of OSMesa's own buffer, in pixels; frames are drawn to another, which MuJoCo makes


@functools.cache
def load() -> Any:
    """The library, loaded once per process.

    Raises:
        OSError: If it is not installed.
    """
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            # MuJoCo looks for OpenGL's functions among the symbols of the whole process.
            library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            break
    else:
        raise OSError("OSMesa is not installed")
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    for name, result, *arguments in (
        ("OSMesaCreateContextExt", pointer, ctypes.c_uint, integer, integer, integer, pointer),
        ("OSMesaDestroyContext", None, pointer),
        ("OSMesaMakeCurrent", ctypes.c_ubyte, pointer, pointer, ctypes.c_uint, integer, integer),
        ("OSMesaGetCurrentContext", pointer),
        ("OSMesaGetColorBuffer", ctypes.c_ubyte, pointer, pointer, pointer, pointer, pointer),
        ("OSMesaGetIntegerv", None, integer, pointer),
        ("OSMesaGetProcAddress", pointer, ctypes.c_char_p),
    ):
        found = getattr(library, name)
        found.restype, found.argtypes = result, arguments
    return library


class OSMesaContext:
    """An OpenGL context of OSMesa.

    Raises:
        OSError: If OSMesa is not installed or gives no context.
    """

    display: int | None = None

    def __init__(self) -> None:
        self._library = library = load()
        self._context = library.OSMesaCreateContextExt(_RGBA, 24, 8, 0, None)
        if not self._context:
            raise OSError("OSMesa cannot make an OpenGL context")
        self._buffer = (ctypes.c_ubyte * (4 * _SIDE * _SIDE))()

    def renderer(self) -> str:
        """See `GLContext.renderer`."""
        return renderer_name(self._library.OSMesaGetProcAddress)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `GLContext.current`."""
        previous = self._binding()
        buffer = ctypes.addressof(self._buffer)
        if not self._library.OSMesaMakeCurrent(self._context, buffer, _UNSIGNED_BYTE, _SIDE, _SIDE):
            raise ContextLostError("OSMesa cannot make its context current.")
        try:
            yield
        finally:
            self._library.OSMesaMakeCurrent(*previous)

    def free(self) -> None:
        """Destroy the context."""
        self._library.OSMesaDestroyContext(self._context)

    def _binding(self) -> tuple[int | None, int | None, int, int, int]:
        """Arguments of ``OSMesaMakeCurrent`` for what is current in this thread."""
        library, context = self._library, self._library.OSMesaGetCurrentContext()
        if not context:
            return None, None, 0, 0, 0
        width, height, layout, kind, buffer = *(ctypes.c_int(0) for _ in range(4)), ctypes.c_void_p()
        outputs = (ctypes.byref(width), ctypes.byref(height), ctypes.byref(layout), ctypes.byref(buffer))
        library.OSMesaGetColorBuffer(context, *outputs)
        library.OSMesaGetIntegerv(_TYPE, ctypes.byref(kind))
        return context, buffer.value, kind.value, width.value, height.value
