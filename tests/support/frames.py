"""Frames of small scenes, drawn by MuJoCo with OpenGL and by the rasteriser without it, and how alike they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np

from libero_gym.rendering.packing import pack_scene
from libero_gym.rendering.renderer import available_backends, make_gl_context
from libero_gym.rendering.software import Frame
from libero_gym.rendering.software_scene import SoftwareScene


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images, dB."""
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def levels_off(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By how many of 255 levels two images differ at most at each pixel, int (H, W)."""
    return np.abs(a.astype(int) - b).max(axis=-1)


def scene_xml(bodies: str, assets: str = "", options: str = "") -> str:
    """A small scene in MJCF, whose geoms are seen (group 1), with the two cameras that LIBERO's scenes have."""
    return f"""
    <mujoco>
      <visual><global offwidth="512" offheight="512"/><map znear="0.01"/></visual>
      <statistic extent="1" center="0 0 0"/>
      {options}
      <default><geom group="1"/></default>
      <asset>{assets}</asset>
      <worldbody>
        <light pos="0.5 -0.8 1.5" dir="-0.3 0.5 -1" castshadow="false" diffuse="0.5 0.5 0.5"/>
        <camera name="agentview" pos="0.9 -0.7 0.8" xyaxes="0.6 0.8 0 -0.45 0.34 0.83" fovy="45"/>
        <camera name="robot0_eye_in_hand" pos="0 0 0.25" xyaxes="1 0 0 0 1 0" fovy="75"/>
        {bodies}
      </worldbody>
    </mujoco>"""


class SmallScene:
    """A model with its bodies where it starts, drawn by either renderer.

    Args:
        xml: As `scene_xml` gives it.
    """

    def __init__(self, xml: str) -> None:
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        compiled: Any = SimpleNamespace(physics=self.model, burners=())
        self.scene = SoftwareScene(compiled, pack_scene(self.model))
        nothing = np.zeros(0, int)
        fixtures = SimpleNamespace(body_ids=nothing, pos=np.zeros((0, 3)), quat=np.zeros((0, 4)))
        self.state: Any = SimpleNamespace(fixtures=fixtures, kinematics_qpos=self.data.qpos, burners_shown=())

    def fast(self, camera: str = "agentview", height: int = 128, width: int = 128, *, stored: bool = True) -> Frame:
        """The frame without OpenGL, bottom row first."""
        self.scene.pose(self.state)
        return self.scene.draw(camera, height, width, stored=stored)

    def exact(self, camera: int = 0, height: int = 128, width: int = 128) -> np.ndarray:
        """MuJoCo's own frame, uint8 (H, W, 3), bottom row first."""
        image = np.empty((height, width, 3), np.uint8)
        with self.opengl(camera, height, width) as (rectangle, scene, context):
            mujoco.mjr_render(rectangle, scene, context)
            mujoco.mjr_readPixels(image, None, rectangle, context)
        return image

    def exact_layers(self, camera: int = 0, height: int = 128, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """MuJoCo's own depth in m, (H, W), and ids of geoms, (H, W), -1 where none is."""
        depth, colours = np.empty((height, width), np.float32), np.empty((height, width, 3), np.uint8)
        with self.opengl(camera, height, width) as (rectangle, scene, context):
            mujoco.mjr_render(rectangle, scene, context)
            mujoco.mjr_readPixels(None, depth, rectangle, context)
            for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
                scene.flags[flag] = 1
            mujoco.mjr_render(rectangle, scene, context)
            mujoco.mjr_readPixels(colours, None, rectangle, context)
            numbers = colours.astype(np.int32) @ np.array([1, 256, 65536])  # place in the scene's list, from 1
            named = np.full(scene.ngeom + 1, -1)
            for geom in scene.geoms[: scene.ngeom]:
                if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                    named[geom.segid + 1] = geom.objid
        extent, visual = self.model.stat.extent, self.model.vis.map
        near, far = visual.znear * extent, visual.zfar * extent
        return near / (1 - depth * (1 - near / far)), named[numbers]

    @contextmanager
    def opengl(self, camera: int, height: int, width: int) -> Iterator[tuple[Any, Any, Any]]:
        """A rectangle, an `MjvScene` seen from a camera, and an `MjrContext` to draw it with."""
        with make_gl_context(available_backends()[0]).current():
            context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
            option = mujoco.MjvOption()
            option.geomgroup[0], option.geomgroup[1] = 0, 1
            view = mujoco.MjvCamera()
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
            scene = mujoco.MjvScene(self.model, maxgeom=1000)
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(self.model, self.data, option, mujoco.MjvPerturb(), view, everything, scene)
            yield mujoco.MjrRect(0, 0, width, height), scene, context
            context.free()
