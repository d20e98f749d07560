"""Camera frames: pixel for pixel those of stock LIBERO, or nearly these without OpenGL.

Any thread may draw, one at a time. All environments of a process share its scenes, which are loaded once.

Exact frames come from one GL context per process and device. It is current only while a frame is drawn; then the
context that was current before, of this or another library, is current again. It is made at the first exact frame and
not earlier, because a process that has used GL must not be forked: the child's first frame would hang.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np

from libero_gym.common.checks import choice
from libero_gym.common.recent import kept
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.compilation.compile import MAX_SCENES
from libero_gym.dimensions import Renderer
from libero_gym.rendering import egl, osmesa
from libero_gym.rendering.gl import ContextLostError, GLContext, RenderingError
from libero_gym.rendering.models import packed_scene
from libero_gym.rendering.posing import CAMERAS, Pose, camera_ids
from libero_gym.rendering.scene import Scene
from libero_gym.simulation.compiled import CompiledTask

if TYPE_CHECKING:
    from libero_gym.rendering.software_scene import SoftwareScene

# "exact" draws stock LIBERO's pixels by OpenGL (see `scene`); "fast" nearly the same ones without it (see `software`).
RENDERERS = get_args(Renderer)
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048
DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libglib2.0-0"

_LIBRARIES: dict[str, Callable[[], object]] = {"egl": egl.load, "osmesa": osmesa.load}
_PACKAGES = {"egl": DEBIAN_PACKAGES, "osmesa": "libosmesa6"}


def check_image_size(image_size: int, name: str = "image_size") -> int:
    """The size as an int, if such an image can be rendered.

    Raises:
        ValueError: If it is not an integer within the limits.
    """
    whole = isinstance(image_size, (int, np.integer)) and not isinstance(image_size, bool)
    if not whole or not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise ValueError(
            f"{name}={image_size!r} cannot be rendered; expected an integer from {MIN_IMAGE_SIZE} to "
            f"{MAX_IMAGE_SIZE} pixels{', for a square image' * (name == 'image_size')}."
        )
    return int(image_size)


def available_backends() -> list[str]:
    """Back ends to try, best first: ``$MUJOCO_GL`` if it names one of them, else EGL and OSMesa if installed."""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in _LIBRARIES:
        return [chosen]
    found = []
    for name, load in _LIBRARIES.items():
        with contextlib.suppress(OSError):
            load()
            found.append(name)
    return found


def make_gl_context(backend: str, device: int | None = None) -> GLContext:
    """A GL context that works: it was made current once. It is not current any more.

    Args:
        backend: ``"egl"`` or ``"osmesa"``.
        device: EGL device index; None for the one that ``$MUJOCO_EGL_DEVICE_ID`` names, else the first that works.

    Raises:
        RenderingError: If the device does not exist or cannot be opened, or the context cannot be made current.
        OSError: If the back end is not installed, or gives no context.
    """
    context: GLContext = egl.EglContext(device) if backend == "egl" else osmesa.OSMesaContext()
    with context.current():
        return context


class _ProcessRenderer(Uncopyable):
    """A GL context of this process and the scenes uploaded to it. Its context must be current, except for `abandon`."""

    def __init__(self, context: GLContext) -> None:
        self.context = context
        self._scenes: OrderedDict[str, Scene] = OrderedDict()

    def scene(self, compiled: CompiledTask, size: int) -> Scene:
        """The uploaded scene of a task; if there are too many, the least recently used one is freed."""
        key = compiled.visual_key
        if key not in self._scenes:
            while len(self._scenes) >= MAX_SCENES:
                self._scenes.popitem(last=False)[1].free()
            self._scenes[key] = Scene(compiled, size)
        self._scenes.move_to_end(key)
        return self._scenes[key]

    def free_scenes(self) -> None:
        """Give all meshes and textures back to GL."""
        while self._scenes:
            self._scenes.popitem()[1].free()

    def abandon(self) -> None:
        """Keep the scenes from being freed: their context is lost, and in another they would delete others' names."""
        _abandoned.extend(self._scenes.values())
        self._scenes.clear()


# One frame is drawn at a time in a process: scenes are shared, and a context can be current in one thread only.
_lock = threading.RLock()
_renderers: dict[int | None, _ProcessRenderer] = {}  # by the device that was asked for
_software_scenes: OrderedDict[str, SoftwareScene] = OrderedDict()
_abandoned: list[Scene] = []
_gl_process: int | None = None  # id of the process that has used GL: this one, or one that this was forked from


def render(
    pose: Pose,
    cameras: tuple[str, ...],
    size: int,
    device: int | None = None,
    renderer: str = "exact",
    n_threads: int = 1,
) -> list[np.ndarray]:
    """Frames of a simulator's sampled state, as published LIBERO policies expect them.

    Any thread may call this. The GL context that is current in it stays so.

    Args:
        pose: The simulator to draw, or what it had been at.
        cameras: Names: ``"agentview"``, ``"wrist"``, or a further camera of the scene, such as ``"frontview"``.
        size: Side in pixels.
        device: EGL device index; None for the one that is in use, else the one that `make_gl_context` chooses.
        renderer: One of `RENDERERS`.
        n_threads: How many threads draw a fast frame, which is the same; OpenGL has its own.

    Returns:
        One uint8 (size, size, 3) image per camera. Stock LIBERO hands out OpenGL's rows bottom first, and published
        data sets turned those by 180 degrees; so these frames are stock's ``[::-1, ::-1]``.

    Raises:
        NotDrawnError: If the scene has something that only exact frames show.
        RenderingError: If frames are exact and no OpenGL back end works; the message says what cures it.
        ValueError: If there is no such renderer, or the scene has no such camera.
    """
    _check_names(pose, cameras, renderer)
    if renderer == "fast":
        with _lock:
            painted = _software_scene(pose.compiled)
            painted.pose(pose)
            images = [painted.draw(camera, size, size, n_threads=n_threads).image for camera in cameras]
    else:
        with _posed(pose, size, device) as scene:
            images = [scene.draw(camera, size, size) for camera in cameras]
    return [np.ascontiguousarray(image[::-1, ::-1]) for image in images]


def render_rows(
    pose: Pose,
    camera: str,
    height: int,
    width: int,
    renderer: str = "exact",
    *,
    with_depth: bool = False,
    with_sites: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """A frame as OpenGL leaves it, bottom row first, and its depth buffer: stock LIBERO's observations.

    Args:
        pose: The simulator to draw, or what it had been at.
        camera: A name, as `render` takes it.
        height, width: Of the frame, pixels.
        renderer: One of `RENDERERS`. The rest is for exact frames.
        with_depth: Whether to read the depth buffer, too.
        with_sites: Whether burners' flames are drawn.

    Returns:
        uint8 (height, width, 3); float32 (height, width) from 0, the near plane, to 1, or None.

    Raises:
        NotDrawnError, RenderingError, ValueError: As `render`; and if a fast frame is too small or too large.
    """
    _check_names(pose, (camera,), renderer)
    if renderer == "fast":
        height, width = check_image_size(height, "height"), check_image_size(width, "width")
        with _lock:
            painted = _software_scene(pose.compiled)
            painted.pose(pose)
            return painted.draw(camera, height, width).image, None
    depth = np.empty((height, width), dtype=np.float32) if with_depth else None
    with _posed(pose, max(height, width)) as scene:
        return scene.draw(camera, height, width, depth, with_sites), depth


def segment_rows(pose: Pose, camera: str, height: int, width: int) -> np.ndarray:
    """The geom that each pixel shows, by OpenGL, bottom row first; arguments and errors are those of `render_rows`.

    Returns:
        int32 (height, width): ids in `compile.visual_model`; -1 where nothing is.
    """
    _check_names(pose, (camera,))
    with _posed(pose, max(height, width)) as scene:
        return scene.segment(camera, height, width)


@contextlib.contextmanager
def _posed(pose: Pose, size: int, device: int | None = None) -> Iterator[Scene]:
    """A task's uploaded scene at a pose; its GL context is current."""
    with _drawing(device) as process_renderer:
        scene = process_renderer.scene(pose.compiled, size)
        scene.pose(pose)
        yield scene


class CameraFrame(NamedTuple):
    """What a camera sees at each of H x W pixels, oriented as `render` orients images.

    Attributes:
        image: uint8 (H, W, 3), as `render` draws it.
        depth: float32 (H, W): distance along the view of what is there (opaque, in fast frames), m; infinite where
            nothing is.
        geoms: int32 (H, W): id, in `compile.visual_model`, of the geom that is seen, also of a transparent one; -1
            where none is, or a site (a burner's flame).
        bodies: int32 (H, W): id of its body, in every model of the task; -1 where nothing is.
    """

    image: np.ndarray
    depth: np.ndarray
    geoms: np.ndarray
    bodies: np.ndarray


def render_frame(
    pose: Pose,
    camera: str,
    height: int,
    width: int,
    renderer: str = "fast",
    device: int | None = None,
    n_threads: int = 1,
) -> CameraFrame:
    """A frame of a simulator's sampled state with depth and segmentation.

    Depth and ids belong to the first of each pixel's four samples, as in MuJoCo's own depth images.

    Args:
        pose: The simulator to draw, or what it had been at.
        camera: A name, as `render` takes it.
        height, width: Of the frame, pixels.
        renderer: One of `RENDERERS`; ``"fast"`` needs no OpenGL.
        device, n_threads: As `render` takes them.

    Raises:
        NotDrawnError, RenderingError: As `render`.
        ValueError: If the camera or the renderer is unknown, or the size out of range.
    """
    _check_names(pose, (camera,), renderer)
    height, width = check_image_size(height, "height"), check_image_size(width, "width")
    seen = pose, camera, height, width
    drawn = _exact_rows(*seen, device) if renderer == "exact" else _fast_rows(*seen, n_threads)
    return CameraFrame(*(np.ascontiguousarray(rows[::-1, ::-1]) for rows in drawn))


def _exact_rows(pose: Pose, camera: str, height: int, width: int, device: int | None) -> tuple[np.ndarray, ...]:
    buffer = np.empty((height, width), dtype=np.float32)
    with _posed(pose, max(height, width), device) as scene:
        image, geoms = scene.draw(camera, height, width, buffer), scene.segment(camera, height, width)
        depth, bodies = scene.metres(buffer), np.where(geoms < 0, -1, scene.model.geom_bodyid[geoms])
    return image, depth, geoms, bodies.astype(np.int32)


def _fast_rows(pose: Pose, camera: str, height: int, width: int, n_threads: int) -> tuple[np.ndarray, ...]:
    with _lock:
        scene = _software_scene(pose.compiled)
        scene.pose(pose)
        frame = scene.draw(camera, height, width, n_threads=n_threads)
        with np.errstate(divide="ignore"):
            return frame.image, 1 / frame.depth[..., 0], *scene.named(frame.ids[..., 0])


def _check_names(pose: Pose, cameras: tuple[str, ...], renderer: str = "exact") -> None:
    choice("renderer", renderer, RENDERERS)
    for camera in cameras:
        if camera not in CAMERAS:
            choice("camera", camera, tuple(camera_ids(pose.compiled.physics)))


def _software_scene(compiled: CompiledTask) -> SoftwareScene:
    """The scene of a task as this process draws it without OpenGL; the least recently used one makes room."""
    from libero_gym.rendering.software_scene import SoftwareScene  # its kernels take 25 ms to import

    def make() -> SoftwareScene:
        return SoftwareScene(compiled, packed_scene(compiled))

    return kept(_software_scenes, compiled.visual_key, make, MAX_SCENES)


def release() -> None:
    """Free this process's GL contexts and scenes; the next frame makes new ones."""
    if _gl_process != os.getpid():
        return  # nothing was drawn, or what there is belongs to the process that this was forked from
    with _lock:
        renderers = set(_renderers.values())
        _renderers.clear()
        for renderer in renderers:
            try:
                with _collection_paused(), renderer.context.current():
                    renderer.free_scenes()
            except ContextLostError:  # another library has ended EGL's display before us
                renderer.abandon()
            else:
                renderer.context.free()


def gl_renderer() -> str:
    """OpenGL's name of what draws this process's frames, such as ``"llvmpipe (LLVM 15.0.6, 256 bits)"``.

    Makes the process's GL context if there is none.

    Raises:
        RenderingError: If no OpenGL back end works.
    """
    with _drawing(None) as process_renderer:
        return process_renderer.context.renderer()


@contextlib.contextmanager
def _drawing(device: int | None) -> Iterator[_ProcessRenderer]:
    """This process's renderer on a device; its context is current in this thread, and other threads wait."""
    if _gl_process not in (None, os.getpid()):
        raise RenderingError(
            "This process was forked from one that had already used OpenGL, with which it would hang. Start worker "
            "processes before the first frame, or with the 'spawn' or 'forkserver' method."
        )
    with _lock, contextlib.ExitStack() as stack:
        renderer = _process_renderer(device)
        try:
            stack.enter_context(renderer.context.current())
        except ContextLostError:  # another library has ended EGL's display, which is one for all
            renderer.abandon()
            for alias in [key for key, value in _renderers.items() if value is renderer]:
                del _renderers[alias]
            renderer = _process_renderer(device)
            stack.enter_context(renderer.context.current())
        stack.enter_context(_collection_paused())
        yield renderer


def _process_renderer(device: int | None) -> _ProcessRenderer:
    global _gl_process
    if device is None and _renderers:
        return next(iter(_renderers.values()))
    if device not in _renderers:
        if _gl_process is None:
            _gl_process = os.getpid()
            atexit.register(release)
        context = _first_working_context(device)
        same = [renderer for renderer in _renderers.values() if renderer.context.display == context.display]
        if same:
            context.free()
        _renderers[device] = same[0] if same else _ProcessRenderer(context)
    return _renderers[device]


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause garbage collection: it may run another library's finalisers, which free GL's names in the current context.

    MuJoCo's own ``MjrContext`` does so, and robosuite's and Gymnasium's viewers hold one each.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _first_working_context(device: int | None) -> GLContext:
    failures = []
    backends = available_backends()
    for backend in backends:
        try:
            return make_gl_context(backend, device)
        except (OSError, ContextLostError) as error:
            failures.append(f"{backend}: {error}")
    tried = "; ".join(failures) if failures else "neither EGL nor OSMesa is installed"
    packages, other = DEBIAN_PACKAGES, ""
    if backends and os.environ.get("MUJOCO_GL", "").lower().strip() == backends[0]:
        packages = _PACKAGES[backends[0]]
        other = f"MUJOCO_GL={backends[0]} rules out the other back end; unset it to try both. "
    raise RenderingError(
        f"No OpenGL back end can draw exact frames here ({tried}). {other}On Debian or Ubuntu: apt-get install "
        f'{packages}. renderer="fast" (--renderer fast) and cameras=() need no OpenGL.'
    )


def _note_fork() -> None:
    """In a forked child: forget the parent's lock, and remember if the parent has used GL, through us or others."""
    global _lock, _gl_process
    _lock = threading.RLock()
    displays = (("mujoco.egl", "EGL_DISPLAY"), ("robosuite.renderers.context.egl_context", "EGL_DISPLAY"))
    if _gl_process is None and any(getattr(sys.modules.get(module), name, None) for module, name in displays):
        _gl_process = os.getppid()


os.register_at_fork(after_in_child=_note_fork)
