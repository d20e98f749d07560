"""One scene's meshes and textures in a GL context, and how a frame is drawn from them.

A GL context must be current while any of this runs; `renderer` sees to that.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import minimum_filter

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.compilation.compile import visual_model
from libero_gym.rendering.gl import GLCalls
from libero_gym.rendering.posing import (
    MAX_SCENE_GEOMS,
    STILL_CAMERAS,
    burner_alpha,
    camera_ids,
    pose_bodies,
    still_key,
    visual_option,
)
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.simulation.simulator import Simulator

# Bytes of stored backgrounds per scene; a 128-pixel one takes 0.25 MB.
_MAX_BACKGROUND_BYTES = 64 * 2**20
# Depth buffers round; what differs by less stands at the same depth.
_DEPTH_TOLERANCE = 1e-6


class Scene(Uncopyable):
    """The uploaded meshes and textures of one scene, drawn as stock LIBERO draws them.

    Non-obvious behaviours:

    * MuJoCo's ``MjrContext`` frees its names in whatever GL context is current when it is dropped, which may be another
      library's. So it is made last here, and `free` must be called while our context is current.

    Args:
        calls: OpenGL's functions in the context that is current.
        compiled: The task.
        buffer_size: Side of the first frames in pixels; larger ones are possible later.
        renderer: Name of the visual model to draw; see `compile.visual_model`.
    """

    def __init__(self, calls: GLCalls, compiled: CompiledTask, buffer_size: int, renderer: str) -> None:
        self.calls = calls
        self.model = visual_model(compiled, renderer)
        self.model.vis.global_.offwidth = self.model.vis.global_.offheight = buffer_size
        self.buffer_size = buffer_size
        self.data = mujoco.MjData(self.model)
        self.scene = mujoco.MjvScene(self.model, maxgeom=MAX_SCENE_GEOMS)
        self.option = visual_option()
        self.perturbation = mujoco.MjvPerturb()
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.camera_ids = camera_ids(self.model)
        self._alpha = {burner.site: self.model.site(burner.site).rgba[3] for burner in compiled.burners}
        self.context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_150)

    def pose(self, simulator: Simulator) -> None:
        """Put every body, light and camera where the simulator's last sampled substep had it."""
        for burner, shown in zip(simulator.compiled.burners, simulator.burners_shown, strict=True):
            self.model.site(burner.site).rgba[3] = burner_alpha(self._alpha[burner.site], shown)
        pose_bodies(self.model, self.data, simulator)

    def draw(self, camera: str, size: int) -> np.ndarray:
        """One frame of the posed scene, uint8 (size, size, 3), as OpenGL orders rows: bottom first."""
        self._bind(size)
        self._render(camera, size, mujoco.mjtCatBit.mjCAT_ALL)
        return self._read(size)[0]

    def free(self) -> None:
        """Give the meshes and textures back to GL."""
        self.context.free()

    def _bind(self, size: int) -> None:
        """Make this scene's frame buffer the one that is drawn to; another scene's may be."""
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        if size > self.buffer_size:
            mujoco.mjr_resizeOffscreen(size, size, self.context)
            self.buffer_size = size

    def _render(self, camera: str, size: int, category: int) -> None:
        self.camera.fixedcamid = self.camera_ids[camera]
        mujoco.mjv_updateScene(self.model, self.data, self.option, self.perturbation, self.camera, category, self.scene)
        mujoco.mjr_render(mujoco.MjrRect(0, 0, size, size), self.scene, self.context)

    def _read(self, size: int, depth: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Colours, uint8 (size, size, 3); and the depth array, float32 (size, size), filled if one is given."""
        frame = np.empty((size, size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(frame, depth, mujoco.MjrRect(0, 0, size, size), self.context)
        return frame, depth


@dataclass(frozen=True)
class _Background:
    """What stands still: colours, float32 (size, size, 3), and depth, float32 (size, size)."""

    color: np.ndarray
    depth: np.ndarray


class LayeredScene(Scene):
    """A scene that draws what stands still once, and after that only the robot, objects, doors and drawers.

    Cameras that stand still get the static part (walls, tables, cabinets' bodies, stoves) as a stored image with depth.
    The rest is drawn in front of it, its edges blended by the share of samples that they cover. The stove does not
    reflect what moves; the moving camera sees no reflections. A frame depends on the state alone, never on earlier
    frames.
    """

    def __init__(self, calls: GLCalls, compiled: CompiledTask, buffer_size: int, renderer: str) -> None:
        self._backgrounds: OrderedDict[tuple[Any, ...], _Background] = OrderedDict()
        self._static_key: tuple[Any, ...] = ()
        super().__init__(calls, compiled, buffer_size, renderer)

    def pose(self, simulator: Simulator) -> None:
        """Pose the scene as `Scene.pose` does, and remember what decides how the static part looks."""
        super().pose(simulator)
        self._static_key = still_key(simulator)

    def draw(self, camera: str, size: int) -> np.ndarray:
        """One frame of the posed scene, uint8 (size, size, 3), bottom row first."""
        self._bind(size)
        still = camera in STILL_CAMERAS
        if not still or not self._has_alpha():
            self._set_flags(reflection=still, skybox=True)
            self._render(camera, size, mujoco.mjtCatBit.mjCAT_ALL)
            return self._read(size)[0]
        background = self._background(camera, size)
        self._set_flags(reflection=False, skybox=False)
        self._render(camera, size, mujoco.mjtCatBit.mjCAT_DYNAMIC)
        depth = np.empty((size, size), dtype=np.float32)
        self._read(size, depth)
        return _composite(background, self._read_rgba(size), depth)

    def _background(self, camera: str, size: int) -> _Background:
        key = (self._static_key, camera, size)
        if key not in self._backgrounds:
            capacity = max(_MAX_BACKGROUND_BYTES // (16 * size * size), 1)  # 12 bytes of colour and 4 of depth a pixel
            while len(self._backgrounds) >= capacity:
                self._backgrounds.popitem(last=False)
            self._set_flags(reflection=True, skybox=True)
            self._render(camera, size, mujoco.mjtCatBit.mjCAT_STATIC)
            depth = np.empty((size, size), dtype=np.float32)
            color, _ = self._read(size, depth)
            self._backgrounds[key] = _Background(color.astype(np.float32), depth)
        self._backgrounds.move_to_end(key)
        return self._backgrounds[key]

    def _set_flags(self, *, reflection: bool, skybox: bool) -> None:
        self.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = reflection
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = skybox

    def _has_alpha(self) -> bool:
        """Whether the frame buffer says which share of a pixel was drawn to."""
        return self.calls.alpha_bits() > 0

    def _read_rgba(self, size: int) -> np.ndarray:
        """Colours and coverage of what `_read` has just read, uint8 (size, size, 4)."""
        # `mjr_readPixels` has averaged the samples into this buffer, where there are samples.
        return self.calls.read_rgba(self.context.offFBO_r if self.context.offSamples else self.context.offFBO, size)


def _composite(background: _Background, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The moving part in front of the still part, or hidden behind it.

    Args:
        background: The still part.
        pixels: The moving part over black, uint8 (size, size, 4); alpha is the share of a pixel that it covers.
        depth: Depth of the moving part, (size, size); 1 if it does not cover the pixel's centre.

    Returns:
        uint8 (size, size, 3).
    """
    alpha = pixels[..., 3]
    # An edge may cover a part of a pixel but not its centre, which has no depth then; its neighbours' depth serves.
    nearest = np.where(depth < 1, depth, minimum_filter(depth, 3))
    visible = (alpha > 0) & (nearest <= background.depth + _DEPTH_TOLERANCE)
    blended = pixels[..., :3] + (1 - alpha[..., None] / np.float32(255)) * background.color
    frame = np.where(visible[..., None], blended, background.color)
    return np.asarray(np.clip(frame + 0.5, 0, 255), dtype=np.uint8)
