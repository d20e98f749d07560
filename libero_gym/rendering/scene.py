"""One scene's meshes and textures in a GL context, and how a frame is drawn from them.

A GL context must be current while any of this runs; `renderer` sees to that.
"""

from __future__ import annotations

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.compilation.compile import visual_model
from libero_gym.rendering.posing import MAX_SCENE_GEOMS, Pose, burner_alpha, camera_ids, pose_bodies, visual_option
from libero_gym.simulation.compiled import CompiledTask


class Scene(Uncopyable):
    """The uploaded meshes and textures of one scene, drawn as stock LIBERO draws them.

    Non-obvious behaviours:

    * MuJoCo's ``MjrContext`` frees its names in whatever GL context is current when it is dropped, which may be another
      library's. So it is made last here, and `free` must be called while our context is current.

    Args:
        compiled: The task.
        buffer_size: Side of the first frames in pixels; larger ones are possible later.
    """

    def __init__(self, compiled: CompiledTask, buffer_size: int) -> None:
        self.model = visual_model(compiled)
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

    def pose(self, pose: Pose) -> None:
        """Put every body, light and camera at a pose."""
        for burner, shown in zip(pose.compiled.burners, pose.burners_shown, strict=True):
            self.model.site(burner.site).rgba[3] = burner_alpha(self._alpha[burner.site], shown)
        pose_bodies(self.model, self.data, pose)

    def draw(
        self, camera: str, height: int, width: int, depth: np.ndarray | None = None, with_sites: bool = True
    ) -> np.ndarray:
        """One frame of the posed scene, uint8 (height, width, 3), as OpenGL orders rows: bottom first.

        Args:
            camera: A name among `posing.camera_ids`.
            height, width: Of the frame, pixels.
            depth: Filled with OpenGL's depth buffer if given: float32 (height, width), 0 (near plane) to 1.
            with_sites: Whether burners' flames are drawn.
        """
        self._update(camera, with_sites)
        return self._read(height, width, depth)

    def segment(self, camera: str, height: int, width: int) -> np.ndarray:
        """MuJoCo's id of the geom that each pixel shows, int32 (height, width), bottom row first; -1 for none."""
        self._update(camera, with_sites=False)
        for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
            self.scene.flags[flag] = 1
        try:
            red, green, blue = np.moveaxis(self._read(height, width, None).astype(np.int64), -1, 0)
        finally:
            for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
                self.scene.flags[flag] = 0
        segments = red + (green << 8) + (blue << 16)
        ids = np.full(self.scene.ngeom + 1, -1, dtype=np.int32)
        for geom in self.scene.geoms[: self.scene.ngeom]:
            if geom.segid != -1:
                ids[geom.segid + 1] = geom.objid
        found: np.ndarray = ids[np.where(segments <= self.scene.ngeom, segments, 0)]
        return found

    def metres(self, depth: np.ndarray) -> np.ndarray:
        """A depth buffer as distances along the view in m, float32; infinite where nothing is."""
        near, far = (plane * self.model.stat.extent for plane in (self.model.vis.map.znear, self.model.vis.map.zfar))
        distances = near / (1 - depth.astype(np.float64) * (1 - near / far))
        return np.where(depth < 1, distances, np.inf).astype(np.float32)

    def _update(self, camera: str, with_sites: bool) -> None:
        """Tell MuJoCo's scene what the camera sees."""
        self.camera.fixedcamid = self.camera_ids[camera]
        sizes = self.model.site_size.copy()
        if not with_sites:
            self.model.site_size[:] = 1e-8  # as robosuite, so that they do not show
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self.model, self.data, self.option, self.perturbation, self.camera, everything, self.scene
        )
        self.model.site_size[:] = sizes

    def _read(self, height: int, width: int, depth: np.ndarray | None) -> np.ndarray:
        """Draw MuJoCo's scene, and read the pixels, and the depth buffer if there is an array for it."""
        self._bind(max(height, width))
        whole, frame = mujoco.MjrRect(0, 0, width, height), np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_render(whole, self.scene, self.context)
        mujoco.mjr_readPixels(frame, depth, whole, self.context)
        return frame

    def free(self) -> None:
        """Give the meshes and textures back to GL."""
        self.context.free()

    def _bind(self, size: int) -> None:
        """Make this scene's frame buffer the one that is drawn to; another scene's may be."""
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        if size > self.buffer_size:
            mujoco.mjr_resizeOffscreen(size, size, self.context)
            self.buffer_size = size
