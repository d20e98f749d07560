"""One scene's meshes and textures in a GL context, and how a frame is drawn from them.

A GL context must be current while any of this runs; `renderer` sees to that.
"""

from __future__ import annotations

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.rendering.gl import GLCalls
from libero_gym.rendering.models import visual_model
from libero_gym.simulation.compiled import CompiledTask
from libero_gym.simulation.simulator import Simulator

# The observation's name of a camera, and LIBERO's.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}

# robosuite's scene capacity; a larger one would draw geoms that stock LIBERO leaves out.
_MAX_GEOMS = 1000


class Scene(Uncopyable):
    """The uploaded meshes and textures of one scene, drawn as stock LIBERO draws them.

    Non-obvious behaviours:

    * MuJoCo's ``MjrContext`` frees its names in whatever GL context is current when it is dropped, which may be another
      library's. So it is made last here, and `free` must be called while our context is current.

    Args:
        calls: OpenGL's functions in the context that is current.
        compiled: The task.
        buffer_size: Side of the first frames in pixels; larger ones are possible later.
    """

    def __init__(self, calls: GLCalls, compiled: CompiledTask, buffer_size: int) -> None:
        self.calls = calls
        self.model = visual_model(compiled)
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
        # LIBERO toggles a burner's alpha between its value in the file and one minus that.
        self._alpha = {burner.site: self.model.site(burner.site).rgba[3] for burner in compiled.burners}
        self.context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_150)

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
        self._bind(size)
        self._render(camera, size)
        return self._read(size)

    def free(self) -> None:
        """Give the meshes and textures back to GL."""
        self.context.free()

    def _bind(self, size: int) -> None:
        """Make this scene's frame buffer the one that is drawn to; another scene's may be."""
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        if size > self.buffer_size:
            mujoco.mjr_resizeOffscreen(size, size, self.context)
            self.buffer_size = size

    def _render(self, camera: str, size: int) -> None:
        self.camera.fixedcamid = self.camera_ids[camera]
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self.model, self.data, self.option, self.perturbation, self.camera, everything, self.scene
        )
        mujoco.mjr_render(mujoco.MjrRect(0, 0, size, size), self.scene, self.context)

    def _read(self, size: int) -> np.ndarray:
        """The colours that were drawn, uint8 (size, size, 3)."""
        frame = np.empty((size, size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, mujoco.MjrRect(0, 0, size, size), self.context)
        return frame
