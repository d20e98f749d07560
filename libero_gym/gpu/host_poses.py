"""Poses of simulators in the host's memory, as the device's camera takes them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import warp as wp

from libero_gym.common.mujoco_import import mujoco
from libero_gym.gpu.camera import BatchCamera, SceneOnDevice
from libero_gym.rendering.posing import pose_bodies
from libero_gym.simulation.simulator import Simulator


class HostPoses:
    """Where bodies, cameras and lights of W simulators of one scene are; see `BatchCamera.draw`.

    Args:
        simulators: The simulators.
        scene: Their scene.

    Attributes:
        shown: int32 (W, B) on the device: whether each burner burns, for `BatchCamera.show_flames`.
    """

    def __init__(self, simulators: Sequence[Simulator], scene: SceneOnDevice) -> None:
        rows = [_pose(simulator) for simulator in simulators]

        def stacked(name: str, dtype: object, width: int) -> wp.array:
            arrays = np.stack([np.asarray(getattr(data, name), np.float32) for data in rows])
            shape = (len(rows), -1, width) if width == 3 else (len(rows), -1, 3, 3)
            return wp.array(arrays.reshape(shape), dtype=dtype, device=scene.device)

        self.xpos, self.cam_xpos = stacked("xpos", wp.vec3, 3), stacked("cam_xpos", wp.vec3, 3)
        self.xmat, self.cam_xmat = stacked("xmat", wp.mat33, 9), stacked("cam_xmat", wp.mat33, 9)
        self.light_xpos, self.light_xdir = stacked("light_xpos", wp.vec3, 3), stacked("light_xdir", wp.vec3, 3)
        shown = np.array([simulator.burners_shown for simulator in simulators], np.int32)
        self.shown = wp.array(shown, dtype=wp.int32, ndim=2, device=scene.device)


def camera_for(
    simulators: Sequence[Simulator], scene: SceneOnDevice, cameras: Sequence[str], image_size: int
) -> tuple[BatchCamera, HostPoses]:
    """A camera that shows simulators' flames, and their poses for its `draw`.

    Args:
        simulators: The simulators.
        scene: Their scene.
        cameras: Names of the cameras, as `rendering.renderer.render` takes them.
        image_size: Side of the frames in pixels.
    """
    camera = BatchCamera.of_task(simulators[0].compiled, scene, len(simulators), cameras, image_size)
    poses = HostPoses(simulators, scene)
    camera.show_flames(poses.shown)
    return camera, poses


def _pose(simulator: Simulator) -> mujoco.MjData:
    model = copy.copy(simulator.compiled.physics)  # whose fixtures are moved
    data = mujoco.MjData(model)
    pose_bodies(model, data, simulator)
    return data
