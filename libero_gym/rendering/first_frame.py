"""Compiles the rasteriser once, before processes are forked that would each compile it for themselves."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator

import numpy as np

from libero_gym.common.mujoco_import import mujoco
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
# Seconds after which whoever waits is told; what numba's cache has is there within a fraction of it.
_PATIENCE = 3.0


@functools.cache
def compile_kernels() -> None:
    """Draws a frame of a small scene, so that everything is compiled, or fetched from numba's cache on disk.

    Compiling takes 20 to 40 s of CPU time, once per installation where numba's cache can be written. Processes that are
    forked afterwards have the compiled code.
    """
    with _announced():
        _draw()


def _draw() -> None:
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


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """Say what takes so long if it does."""
    message = "Compiling the renderer: once, some 20 to 40 s."
    timer = threading.Timer(_PATIENCE, logger.warning, args=(message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a process that is forked next has no other thread
