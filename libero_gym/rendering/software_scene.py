"""A scene posed as a simulator says and drawn by `software.Painter`: what `scene.Scene` is, without OpenGL."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.common.uncopyable import Uncopyable
from libero_gym.rendering.band import Poses, View
from libero_gym.rendering.packing import TRIANGLE_BITS, PackedScene
from libero_gym.rendering.posing import Pose, burner_alpha, camera_ids, pose_bodies, still_key
from libero_gym.rendering.software import Frame, Painter
from libero_gym.simulation.compiled import CompiledTask


class SoftwareScene(Uncopyable):
    """One scene's packed triangles, and a model of its bodies that says where they are.

    It needs the physics model alone, which is small; the model that OpenGL draws is never loaded.

    Args:
        compiled: A task of the scene.
        packed: The scene.
    """

    def __init__(self, compiled: CompiledTask, packed: PackedScene) -> None:
        self._packed = packed
        self._painter = Painter(packed)
        self._model = copy.copy(compiled.physics)  # whose bodies it moves
        self._data = mujoco.MjData(self._model)
        self._cameras = camera_ids(self._model)
        # In front of a camera that stands still, what stands still needs drawing only once.
        self._stands_still = self._model.body_weldid[self._model.cam_bodyid] == 0
        self._burners = [np.flatnonzero(packed.site == self._model.site(burner.site).id) for burner in compiled.burners]
        self._alpha = packed.alpha.copy()
        self._poses = Poses(np.empty((0, 3, 3)), np.empty((0, 3)))
        self._still_key: tuple[Any, ...] = ()

    def pose(self, pose: Pose) -> None:
        """Put every body, light and camera at a pose."""
        data, packed = self._data, self._packed
        pose_bodies(self._model, data, pose)
        for rows, shown in zip(self._burners, pose.burners_shown, strict=True):
            self._alpha[rows] = burner_alpha(packed.alpha[rows], shown)
        bodies = data.xmat.reshape(-1, 3, 3)[packed.body]
        places = data.xpos[packed.body] + np.einsum("gij,gj->gi", bodies, packed.place)
        self._poses = Poses(bodies @ packed.rotation, places)
        self._still_key = still_key(pose)

    def draw(self, camera: str, height: int, width: int, *, stored: bool = True, n_threads: int = 1) -> Frame:
        """One frame of the posed scene.

        Args:
            camera: A name among `posing.camera_ids`.
            height, width: Of the frame, pixels.
            stored: Whether a camera that stands still may start from its stored background; the frame is the same.
            n_threads: How many threads draw it; the frame is the same.
        """
        number = self._cameras[camera]
        key = (number, height, width, *self._still_key) if stored and self._stands_still[number] else None
        view = self._view(number, height, width)
        return self._painter.paint(view, self._poses, self._alpha, key, n_threads)

    def named(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Geoms' ids in the visual model, and bodies', of a frame's ids; int32 like them, -1 where there is none."""
        packed, is_seen = self._packed, ids >= 0
        index = np.where(is_seen, ids >> TRIANGLE_BITS, 0)
        geoms = np.where(is_seen & (packed.site[index] < 0), packed.name[index], -1)
        return geoms.astype(np.int32), np.where(is_seen, packed.body[index], -1).astype(np.int32)

    def _view(self, camera: int, height: int, width: int) -> View:
        data, packed = self._data, self._packed
        axes = data.cam_xmat[camera].reshape(3, 3).T.copy()
        eye = data.cam_xpos[camera].copy()
        lights = packed.lights.copy()
        head, others = packed.light_ids < 0, packed.light_ids >= 0
        lights[head, 1:4], lights[head, 4:7] = eye, -axes[2]
        ids = packed.light_ids[others]
        directions = data.light_xdir[ids]
        lights[others, 1:4] = data.light_xpos[ids]
        lights[others, 4:7] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        numbers = np.array([packed.cameras[camera], packed.near, width, height], np.float64)
        return View(axes, eye, numbers, lights)
