"""EGL: the devices it lists, and GL contexts on them that need no window."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from libero_gym.rendering.gl import ContextLostError, GLXBinding, RenderingError, renderer_name

# Constants of EGL and of its extensions EXT_platform_device and EXT_device_query.
_EXTENSIONS = 0x3055
_PLATFORM_DEVICE_EXT = 0x313F
_OPENGL_API = 0x30A2
_DRAW, _READ = 0x3059, 0x305A
_MAX_DEVICES = 64
# What MuJoCo's own EGL context asks for: 8 bits a channel, 24 of depth, 8 of stencil, for OpenGL and a pbuffer.
_CONFIG = [0x3024, 8, 0x3023, 8, 0x3022, 8, 0x3021, 8, 0x3025, 24, 0x3026, 8, 0x303F, 0x308E]
_CONFIG += [0x3033, 0x0001, 0x3040, 0x0008, 0x3038]

DEVICE_VARIABLE = "MUJOCO_EGL_DEVICE_ID"


class Binding(NamedTuple):
    """What is current in a thread: EGL's display, draw surface, read surface and context."""

    display: int | None
    draw: int | None
    read: int | None
    context: int | None


class Egl:
    """EGL's functions; extensions that the library lacks are None.

    Raises:
        OSError: If there is no EGL.
    """

    def __init__(self) -> None:
        # MuJoCo looks for OpenGL's functions among the symbols of the whole process. NVIDIA's driver needs libOpenGL
        # loaded first for threads to work (mujoco/egl/egl_ext.py).
        with contextlib.suppress(OSError):
            ctypes.CDLL("libOpenGL.so.0", mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL("libEGL.so.1", mode=ctypes.RTLD_GLOBAL)
        pointer, integer = ctypes.c_void_p, ctypes.c_int

        def core(name: str, result: Any, *arguments: Any) -> Any:
            found = getattr(library, name)
            found.restype, found.argtypes = result, arguments
            return found

        def extension(name: str, result: Any, *arguments: Any) -> Callable[..., Any] | None:
            address = self.find(name.encode())
            return ctypes.CFUNCTYPE(result, *arguments)(address) if address else None

        self.find = core("eglGetProcAddress", pointer, ctypes.c_char_p)
        self.error = core("eglGetError", integer)
        self.initialize = core("eglInitialize", integer, pointer, pointer, pointer)
        self.terminate = core("eglTerminate", integer, pointer)
        self.query_api = core("eglQueryAPI", ctypes.c_uint)
        self.bind_api = core("eglBindAPI", integer, ctypes.c_uint)
        self.choose_config = core("eglChooseConfig", integer, pointer, pointer, pointer, integer, pointer)
        self.create_context = core("eglCreateContext", pointer, pointer, pointer, pointer, pointer)
        self.destroy_context = core("eglDestroyContext", integer, pointer, pointer)
        self.make_current = core("eglMakeCurrent", integer, pointer, pointer, pointer, pointer)
        self.current_display = core("eglGetCurrentDisplay", pointer)
        self.current_surface = core("eglGetCurrentSurface", pointer, integer)
        self.current_context = core("eglGetCurrentContext", pointer)
        self.query_devices = extension("eglQueryDevicesEXT", integer, integer, pointer, pointer)
        self.query_string = extension("eglQueryDeviceStringEXT", ctypes.c_char_p, pointer, integer)
        self.query_attribute = extension("eglQueryDeviceAttribEXT", integer, pointer, integer, pointer)
        self.query_binary = extension("eglQueryDeviceBinaryEXT", integer, pointer, integer, integer, pointer, pointer)
        self.get_display = extension("eglGetPlatformDisplayEXT", pointer, integer, pointer, pointer)

    def devices(self) -> list[int | None]:
        """Handles of all devices, in EGL's order."""
        handles, count = (ctypes.c_void_p * _MAX_DEVICES)(), ctypes.c_int(0)
        if self.query_devices is None or not self.query_devices(_MAX_DEVICES, handles, ctypes.byref(count)):
            return []
        return list(handles[: count.value])

    def extensions(self, device: int | None) -> frozenset[str]:
        """Names of the extensions that a device has."""
        value = self.query_string(device, _EXTENSIONS) if self.query_string else None
        return frozenset((value or b"").decode().split())

    def software(self, device: int | None) -> bool:
        """Whether a device is Mesa's software renderer."""
        return "EGL_MESA_device_software" in self.extensions(device)

    def open(self, device: int | None) -> int | None:
        """An initialised display on a device; None if it cannot be opened."""
        display: int | None = self.get_display(_PLATFORM_DEVICE_EXT, device, None) if self.get_display else None
        return display if display and self.initialize(display, None, None) else None

    def binding(self) -> Binding | None:
        """What is current in this thread; None if nothing is."""
        context = self.current_context()
        if not context:
            return None
        return Binding(self.current_display(), self.current_surface(_DRAW), self.current_surface(_READ), context)

    def bind(self, binding: Binding) -> bool:
        """Make a binding current in this thread, and say whether that worked."""
        return bool(self.make_current(*binding))


@functools.cache
def load() -> Egl:
    """EGL, loaded once per process.

    Raises:
        OSError: If there is no EGL.
    """
    return Egl()


class EglContext:
    """An OpenGL context on an EGL device.

    Args:
        device: Index in EGL's list. None for the one that ``$MUJOCO_EGL_DEVICE_ID`` names, else the first that opens.

    Raises:
        RenderingError: If the device that was asked for does not exist or cannot be opened.
        OSError: If there is no EGL, or none of its devices gives a context.
    """

    def __init__(self, device: int | None = None) -> None:
        self._egl = egl = load()
        self.display: int | None = _open_display(egl, device)
        config, count = ctypes.c_void_p(), ctypes.c_int(0)
        attributes = (ctypes.c_int * len(_CONFIG))(*_CONFIG)
        egl.choose_config(self.display, attributes, ctypes.byref(config), 1, ctypes.byref(count))
        if not count.value:
            raise OSError("EGL has no frame buffer of 8 bits a channel with 24 bits of depth")
        api = egl.query_api()
        egl.bind_api(_OPENGL_API)
        self._context = egl.create_context(self.display, config, None, None)
        egl.bind_api(api)
        if not self._context:
            raise OSError(f"EGL cannot make an OpenGL context (error {egl.error():#06x})")

    def renderer(self) -> str:
        """See `GLContext.renderer`."""
        return renderer_name(self._egl.find)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `GLContext.current`."""
        egl, window = self._egl, None
        previous = egl.binding()
        ours = Binding(self.display, None, None, self._context)
        if not egl.bind(ours):
            error, window = egl.error(), GLXBinding.current()
            if window is not None:
                window.release()
            if window is None or not egl.bind(ours):
                if window is not None:
                    window.restore()
                raise ContextLostError(f"EGL cannot make its context current (error {error:#06x}).")
        try:
            yield
        finally:
            # Another thread may have destroyed what was current; then nothing becomes current.
            if previous is None or not egl.bind(previous):
                egl.bind(Binding(self.display, None, None, None))
            if window is not None:
                window.restore()

    def free(self) -> None:
        """Destroy the context. The display stays: EGL hands the same one to all who ask for it in a process."""
        self._egl.destroy_context(self.display, self._context)


def _open_display(egl: Egl, device: int | None) -> int:
    devices = egl.devices()
    chosen, source = device, f"render_device={device}"
    if device is None and DEVICE_VARIABLE in os.environ:
        value = os.environ[DEVICE_VARIABLE]
        source = f"{DEVICE_VARIABLE}={value!r}"
        chosen = int(value) if value.strip().isdecimal() else -1
    if chosen is None:
        display = next(filter(None, map(egl.open, devices)), None)
        if display is None:
            raise OSError(f"none of EGL's {len(devices)} devices can be opened")
        return display
    listed = ", ".join(f"{index} ({'software' if egl.software(each) else 'GPU'})" for index, each in enumerate(devices))
    if not 0 <= chosen < len(devices):
        problem = "names no EGL device"
    elif (display := egl.open(devices[chosen])) is not None:
        return display
    else:
        problem = "names an EGL device that this process cannot open"
    unset = f"unset {DEVICE_VARIABLE}" if device is None else "pass None"
    raise RenderingError(
        f"{source} {problem}; EGL lists {listed or 'none'}. Name one of these, or {unset} to let EGL choose."
    )
