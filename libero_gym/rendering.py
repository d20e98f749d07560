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

import mujoco
import numpy as np

from libero_gym.compile import MAX_SCENES, CompiledTask, visual_model
from libero_gym.simulator import Simulator

logger = logging.getLogger(__name__)

# The observation's name of a camera, and LIBERO's.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
# "exact" draws stock LIBERO's pixels; "fast" decimated meshes and smaller textures, see `decimation`.
RENDERERS = ("exact", "fast")
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048
DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libglib2.0-0"

_BACKENDS = {"egl": "EGL", "osmesa": "OSMesa"}
# robosuite's scene capacity; a larger one would draw geoms that stock LIBERO leaves out.
_MAX_GEOMS = 1000


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


class _Scene:
    """The uploaded meshes and textures of one scene, with what is needed to draw it."""

    def __init__(self, compiled: CompiledTask, buffer_size: int, renderer: str) -> None:
        self.model = visual_model(compiled, renderer)
        self.model.vis.global_.offwidth = self.model.vis.global_.offheight = buffer_size
        self.buffer_size = buffer_size
        self.data = mujoco.MjData(self.model)
        self.scene = mujoco.MjvScene(self.model, maxgeom=_MAX_GEOMS)
        self.option = mujoco.MjvOption()
        self.option.geomgroup[0] = 0  # collision geoms
        self.option.geomgroup[1] = 1  # visual geoms
        self.perturbation = mujoco.MjvPerturb()
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.camera_ids = {
            name: mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, stock) for name, stock in CAMERAS.items()
        }
        self.context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_150)
        # LIBERO toggles a burner's alpha between its value in the file and one minus that.
        self._alpha = {burner.site: self.model.site(burner.site).rgba[3] for burner in compiled.burners}

    def pose(self, simulator: Simulator) -> None:
        """Put every body, light and camera where the simulator's last sampled substep had it."""
        model, data, fixtures = self.model, self.data, simulator.fixtures
        model.body_pos[fixtures.body_ids] = fixtures.pos
        model.body_quat[fixtures.body_ids] = fixtures.quat
        for burner, shown in zip(simulator.compiled.burners, simulator.burners_shown, strict=True):
            alpha = self._alpha[burner.site]
            model.site(burner.site).rgba[3] = alpha if (alpha > 0) == shown else 1 - alpha
        data.qpos[:] = simulator.kinematics_qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    def draw(self, camera: str, size: int) -> np.ndarray:
        """One frame of the posed scene, uint8 (size, size, 3), as OpenGL orders rows: bottom first."""
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)  # another scene's may be bound
        if size > self.buffer_size:
            mujoco.mjr_resizeOffscreen(size, size, self.context)
            self.buffer_size = size
        viewport = mujoco.MjrRect(0, 0, size, size)
        self.camera.fixedcamid = self.camera_ids[camera]
        mujoco.mjv_updateScene(
            self.model, self.data, self.option, self.perturbation, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene
        )
        mujoco.mjr_render(viewport, self.scene, self.context)
        frame = np.empty((size, size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, viewport, self.context)
        return frame

    def free(self) -> None:
        self.context.free()


class _ProcessRenderer:
    """The GL context of this process and the scenes uploaded to it."""

    def __init__(self, device: int | None) -> None:
        self.pid = os.getpid()
        self.device = device
        self.backend, self._gl = _first_working_context(device)
        self._scenes: OrderedDict[str, _Scene] = OrderedDict()

    def scene(self, compiled: CompiledTask, size: int, renderer: str) -> _Scene:
        """The uploaded scene of a task; the least recently used one makes room where there are too many."""
        self._gl.make_current()
        key = f"{compiled.visual_key}-{renderer}"
        if key not in self._scenes:
            while len(self._scenes) >= MAX_SCENES:
                self._scenes.popitem(last=False)[1].free()
            self._scenes[key] = _Scene(compiled, size, renderer)
        self._scenes.move_to_end(key)
        return self._scenes[key]

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
        cameras: Names from `CAMERAS`.
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


def backend_in_use() -> str | None:
    """The back end of this process, None before the first frame."""
    return None if _renderer is None else _renderer.backend


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
