"""Camera frames, pixel for pixel those of stock LIBERO, from one GL context per process.

The context is made at the first frame, never before: a process that has had one must not be forked, for the child's
first frame would hang. Meshes and textures are uploaded once per scene and shared by all environments of the process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes.util
import importlib
import logging
import os
import sys
from collections import OrderedDict
from typing import Any

import numpy as np

from libero_gym.compile import MAX_SCENES, CompiledTask
from libero_gym.scene import LayeredScene, Scene
from libero_gym.simulator import Simulator

logger = logging.getLogger(__name__)

# "exact" draws stock LIBERO's pixels; "fast" decimated meshes and smaller textures (see `decimation`), and what stands
# still only once (see `scene`).
RENDERERS = ("exact", "fast")
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048
DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libglib2.0-0"

_BACKENDS = {"egl": "EGL", "osmesa": "OSMesa"}


class RenderingError(RuntimeError):
    """No OpenGL back end works on this machine."""


def check_image_size(image_size: int) -> int:
    """The size as an int, if such an image can be rendered.

    Raises:
        ValueError: If it is not an integer within the limits.
    """
    whole = isinstance(image_size, (int, np.integer)) and not isinstance(image_size, bool)
    if not whole or not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise ValueError(
            f"image_size={image_size!r} cannot be rendered; expected an integer from {MIN_IMAGE_SIZE} to "
            f"{MAX_IMAGE_SIZE} pixels, for a square image."
        )
    return int(image_size)


def available_backends() -> list[str]:
    """Back ends to try, best first: ``$MUJOCO_GL`` if it names one of them, else EGL and OSMesa if installed."""
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if chosen in _BACKENDS:
        return [chosen]
    return [name for name, library in _BACKENDS.items() if ctypes.util.find_library(library)]


def make_gl_context(backend: str, device: int | None = None) -> Any:
    """A GL context of that back end, made current in this thread.

    Args:
        backend: ``"egl"`` or ``"osmesa"``.
        device: EGL device index; None lets EGL choose.
    """
    if os.environ.get("PYOPENGL_PLATFORM", backend) != backend or f"mujoco.{backend}" not in sys.modules:
        _forget_opengl()
        os.environ["PYOPENGL_PLATFORM"] = backend
    if backend == "egl" and device is not None:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = str(device)
    context = importlib.import_module(f"mujoco.{backend}").GLContext(MAX_IMAGE_SIZE, MAX_IMAGE_SIZE)
    context.make_current()
    return context


def _forget_opengl() -> None:
    """PyOpenGL binds to one platform when it is imported; drop it so that another can be tried."""
    for name in [name for name in sys.modules if name.split(".")[0] == "OpenGL"]:
        del sys.modules[name]
    for backend in _BACKENDS:
        for name in [name for name in sys.modules if name.startswith(f"mujoco.{backend}")]:
            del sys.modules[name]


class _ProcessRenderer:
    """The GL context of this process and the scenes uploaded to it."""

    def __init__(self, device: int | None) -> None:
        self.pid = os.getpid()
        self.device = device
        self.backend, self._gl = _first_working_context(device)
        self._scenes: OrderedDict[str, Scene] = OrderedDict()

    def scene(self, compiled: CompiledTask, size: int, renderer: str) -> Scene:
        """The uploaded scene of a task; the least recently used one makes room where there are too many."""
        self._gl.make_current()
        key = f"{compiled.visual_key}-{renderer}"
        if key not in self._scenes:
            while len(self._scenes) >= MAX_SCENES:
                self._scenes.popitem(last=False)[1].free()
            kind = Scene if renderer == "exact" else LayeredScene
            self._scenes[key] = kind(compiled, size, renderer)
        self._scenes.move_to_end(key)
        return self._scenes[key]

    def name(self) -> str:
        """GL's name of what draws."""
        from OpenGL import GL  # bound to the context's platform, so only after that exists

        self._gl.make_current()
        return str(GL.glGetString(GL.GL_RENDERER).decode())

    def close(self) -> None:
        """Free everything, in the order GL needs."""
        if self.pid != os.getpid():
            return  # the parent's context is not ours to free
        with contextlib.suppress(Exception):
            self._gl.make_current()
            for scene in self._scenes.values():
                scene.free()
            self._scenes.clear()
            self._gl.free()
        # Where another library has ended the display before us, the context's own finaliser would complain.
        self._gl._context = None


_renderer: _ProcessRenderer | None = None


def render(
    simulator: Simulator, cameras: tuple[str, ...], size: int, device: int | None = None, renderer: str = "exact"
) -> list[np.ndarray]:
    """Frames of a simulator's sampled state, as published LIBERO policies expect them.

    Args:
        simulator: What to draw.
        cameras: Names from `scene.CAMERAS`.
        size: Side in pixels.
        device: EGL device index for this process; the first call decides.
        renderer: One of `RENDERERS`.

    Returns:
        One uint8 (size, size, 3) image per camera. Stock LIBERO hands out OpenGL's rows bottom first, and published
        data sets turned those by 180 degrees; so these frames are stock's ``[::-1, ::-1]``.

    Raises:
        RenderingError: If no OpenGL back end works; the message names the packages that cure it.
    """
    scene = _process_renderer(device).scene(simulator.compiled, size, renderer)
    scene.pose(simulator)
    return [np.ascontiguousarray(scene.draw(camera, size)[::-1, ::-1]) for camera in cameras]


def release() -> None:
    """Free this process's GL context and scenes; the next frame makes new ones."""
    global _renderer
    if _renderer is not None:
        _renderer.close()
        _renderer = None


def gl_renderer() -> str:
    """What draws this process's frames, as OpenGL names it, such as ``"llvmpipe (LLVM 15.0.6, 256 bits)"``.

    Makes the process's GL context if there is none.

    Raises:
        RenderingError: If no OpenGL back end works.
    """
    return _process_renderer(None).name()


def _process_renderer(device: int | None) -> _ProcessRenderer:
    global _renderer
    if _renderer is not None and _renderer.pid != os.getpid():
        raise RenderingError(
            "This process was forked from one that had already rendered; OpenGL would hang. Start worker processes "
            "before the first frame, or with the 'spawn' or 'forkserver' method."
        )
    if _renderer is None:
        _renderer = _ProcessRenderer(device)
        atexit.register(release)
    return _renderer


def _first_working_context(device: int | None) -> tuple[str, Any]:
    failures = []
    for backend in available_backends():
        try:
            return backend, make_gl_context(backend, device)
        except Exception as error:  # PyOpenGL and the drivers raise whatever they like
            failures.append(f"{backend}: {error}")
    tried = "; ".join(failures) if failures else "neither EGL nor OSMesa is installed"
    raise RenderingError(
        f"No OpenGL back end can render here ({tried}). On Debian or Ubuntu: apt-get install {DEBIAN_PACKAGES}. "
        "Environments without cameras (cameras=()) need none."
    )
