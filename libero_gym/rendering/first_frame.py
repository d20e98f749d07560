"""Compiles the rasteriser once, before processes are forked that would each compile it for themselves."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.rendering import visibility
from libero_gym.rendering.band import Poses, View
from libero_gym.rendering.packing import pack_scene
from libero_gym.rendering.software import Painter

logger = logging.getLogger(__name__)

# A scene that needs every kernel: a mirror, something that moves before it, and something transparent.
_SCENE = """
<mujoco>
  <default><geom group="1"/></default>
  <worldbody>
    <camera name="above" pos="0 0 3"/>
    <geom type="box" size="1 1 .1" rgba="1 1 1 1" material="mirror"/>
    <geom type="box" size=".1 .1 .1" pos="0 0 1" rgba="1 0 0 .5"/>
    <body pos=".8 0 1"><freejoint/><geom type="box" size=".2 .2 .1"/></body>
  </worldbody>
  <asset><material name="mirror" reflectance=".5"/></asset>
</mujoco>
"""
_SIDE = 16


@functools.cache
def compile_kernels() -> None:
    """Draws a frame of a small scene, so that everything is compiled, or fetched from numba's cache on disk.

    Compiling takes 20 to 40 s of CPU time, once per installation where numba's cache can be written. Processes that are
    forked afterwards have the compiled code.
    """
    if not _is_cached():
        logger.warning("Compiling the renderer: once, some 20 to 40 s.")
    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    packed = pack_scene(model)
    n = len(packed.body)
    view = View(np.eye(3), np.array([0.0, 0.0, 3.0]), np.array([1.0, 0.01, _SIDE, _SIDE]), packed.lights.copy())
    poses = Poses(np.tile(np.eye(3), (n, 1, 1)), data.geom_xpos[packed.name])
    painter = Painter(packed)
    for still_key in (None, ()):
        painter.paint(view, poses, packed.alpha, still_key)


def _is_cached() -> bool:
    """Whether numba's cache has the largest kernel, compiled from the source as it is."""
    folder = visibility.rasterise.stats.cache_path
    if folder is None:
        return False
    written = [path.stat().st_mtime for path in Path(folder).glob("visibility.rasterise-*.nbi")]
    return max(written, default=0.0) > Path(visibility.__file__).stat().st_mtime
