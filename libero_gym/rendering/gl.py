"""What the OpenGL back ends in `egl` and `osmesa` have in common, and OpenGL calls that MuJoCo does not make.

MuJoCo's own ``GLContext`` is not used for three reasons: it takes the caller's context away when it is made and when it
is freed (``eglReleaseThread``); it draws on one device per process, whichever is asked for later; and it cannot be
imported if its library is missing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

_RENDERER = 0x1F01
_ALPHA_BITS = 0x0D55
_READ_FRAMEBUFFER = 0x8CA8
_RGBA, _UNSIGNED_BYTE = 0x1908, 0x1401


class RenderingError(RuntimeError):
    """This process cannot draw; the message says what to do about it."""


class ContextLostError(RenderingError):
    """A context that worked cannot be made current any more."""


class GLContext(Protocol):
    """A GL context of a back end, current in no thread except within `current`."""

    display: int | None  # tells contexts on different devices apart
    calls: GLCalls

    def current(self) -> AbstractContextManager[None]:
        """Make the context current in this thread for a while; then what was current before is current again.

        Raises:
            ContextLostError: If it cannot be made current.
        """

    def free(self) -> None:
        """Give the context back; it must not be current."""


class GLCalls:
    """OpenGL functions that work on the current context.

    Args:
        find: The back end's ``GetProcAddress``, which gives the address of a function by its name.
    """

    def __init__(self, find: Callable[[bytes], int | None]) -> None:
        enum, integer, pointer = ctypes.c_uint, ctypes.c_int, ctypes.c_void_p
        self._get_error = function(find, "glGetError", enum)
        self._get_string = function(find, "glGetString", ctypes.c_char_p, enum)
        self._get_integer = function(find, "glGetIntegerv", None, enum, pointer)
        self._bind_framebuffer = function(find, "glBindFramebuffer", None, enum, enum)
        self._read_pixels = function(
            find, "glReadPixels", None, integer, integer, integer, integer, enum, enum, pointer
        )

    def renderer(self) -> str:
        """OpenGL's name of what draws."""
        return str((self._get_string(_RENDERER) or b"").decode(errors="replace"))

    def alpha_bits(self) -> int:
        """Bits of coverage per pixel in the frame buffer that is drawn to."""
        value = ctypes.c_int(0)
        self._get_integer(_ALPHA_BITS, ctypes.byref(value))
        return value.value

    def read_rgba(self, framebuffer: int, size: int) -> np.ndarray:
        """Colours and coverage of a frame buffer's lower left square, uint8 (size, size, 4), bottom row first.

        Raises:
            RenderingError: If OpenGL reports an error.
        """
        pixels = np.empty((size, size, 4), dtype=np.uint8)
        self._bind_framebuffer(_READ_FRAMEBUFFER, framebuffer)
        self._read_pixels(0, 0, size, size, _RGBA, _UNSIGNED_BYTE, pixels.ctypes.data)
        if error := self._get_error():
            raise RenderingError(f"OpenGL could not read a frame of {size} x {size} pixels (error {error:#06x}).")
        return pixels


def function(find: Callable[[bytes], int | None], name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """The C function of that name.

    Raises:
        OSError: If the library does not have it.
    """
    address = find(name.encode())
    if not address:
        raise OSError(f"the OpenGL library has no {name}")
    return ctypes.CFUNCTYPE(result, *arguments)(address)


class GLXBinding:
    """The GLX context (of a window, such as GLFW's) that is current in this thread.

    libglvnd refuses to make an EGL context current while a GLX one is, so that one is released and bound again later.
    """

    def __init__(self, library: ctypes.CDLL, context: int) -> None:
        for name in ("glXGetCurrentDisplay", "glXGetCurrentDrawable", "glXGetCurrentReadDrawable"):
            getattr(library, name).restype = ctypes.c_void_p
        self._bind = library.glXMakeContextCurrent
        self._bind.argtypes = [ctypes.c_void_p] * 4
        self._display = library.glXGetCurrentDisplay()
        self._drawables = library.glXGetCurrentDrawable(), library.glXGetCurrentReadDrawable()
        self._context = context

    @classmethod
    def current(cls) -> GLXBinding | None:
        """The context that is current by GLX; None if none is. It loads no library."""
        try:
            library = ctypes.CDLL("libGLX.so.0", mode=os.RTLD_NOLOAD)
        except OSError:
            return None
        library.glXGetCurrentContext.restype = ctypes.c_void_p
        context = library.glXGetCurrentContext()
        return cls(library, context) if context else None

    def release(self) -> None:
        """Make nothing current."""
        self._bind(self._display, None, None, None)

    def restore(self) -> None:
        """Make it current again."""
        self._bind(self._display, *self._drawables, self._context)
