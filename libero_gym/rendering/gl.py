"""What the OpenGL back ends in `egl` and `osmesa` have in common, and the OpenGL call that MuJoCo does not make.

MuJoCo's own ``GLContext`` is not used for three reasons: it takes the caller's context away when it is made and when it
is freed (``eglReleaseThread``); it draws on one device per process, whichever is asked for later; and it cannot be
imported if its library is missing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

_RENDERER = 0x1F01


class RenderingError(RuntimeError):
    """This process cannot draw; the message says what to do about it."""


class ContextLostError(RenderingError):
    """A context that worked cannot be made current any more."""


class GLContext(Protocol):
    """A GL context of a back end, current in no thread except within `current`."""

    display: int | None  # tells contexts on different devices apart

    def current(self) -> AbstractContextManager[None]:
        """Make the context current in this thread for a while; then what was current before is current again.

        Raises:
            ContextLostError: If it cannot be made current.
        """

    def renderer(self) -> str:
        """OpenGL's name of what draws; the context must be current."""

    def free(self) -> None:
        """Give the context back; it must not be current."""


def renderer_name(find: Callable[[bytes], int | None]) -> str:
    """OpenGL's name of what draws in the context that is current.

    Args:
        find: The back end's ``GetProcAddress``, which gives the address of a function by its name.

    Raises:
        OSError: If the library does not have the function that tells.
    """
    address = find(b"glGetString")
    if not address:
        raise OSError("the OpenGL library has no glGetString")
    get_string = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint)(address)
    return str((get_string(_RENDERER) or b"").decode(errors="replace"))


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
