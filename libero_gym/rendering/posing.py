"""What every renderer does alike: which cameras there are, what they see, and where a simulator has put it."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.dimensions import IMAGE_KEYS
from libero_gym.simulation.compiled import CompiledTask, FixtureDraw

# The observation's name of a camera, and LIBERO's. Scenes have further ones, which go by LIBERO's names.
CAMERAS = {camera: camera for camera in IMAGE_KEYS} | {"wrist": "robot0_eye_in_hand"}
# robosuite's scene capacity; a larger one would draw geoms that stock LIBERO leaves out.
MAX_SCENE_GEOMS = 1000

_Alpha = TypeVar("_Alpha", float, np.ndarray)


class Pose(Protocol):
    """Where everything in a scene is, as a simulator's sampled substep had it.

    Attributes:
        compiled: The task.
        fixtures: Where fixtures stand.
        kinematics_qpos: Positions, (nq,).
        burners_shown: Whether each burner burns.
    """

    @property
    def compiled(self) -> CompiledTask: ...
    @property
    def fixtures(self) -> FixtureDraw: ...
    @property
    def kinematics_qpos(self) -> np.ndarray: ...
    @property
    def burners_shown(self) -> tuple[bool, ...]: ...


def camera_ids(model: mujoco.MjModel) -> dict[str, int]:
    """Ids of all cameras, by LIBERO's names and the observation's."""
    ids = {str(model.camera(camera).name): camera for camera in range(model.ncam)}
    return ids | {name: ids[stock] for name, stock in CAMERAS.items() if stock in ids}


def visual_option() -> mujoco.MjvOption:
    """What is shown: visual geoms, and not those that collide."""
    option = mujoco.MjvOption()
    option.geomgroup[0], option.geomgroup[1] = 0, 1
    return option


def pose_bodies(model: mujoco.MjModel, data: mujoco.MjData, pose: Pose) -> None:
    """Put every body, light and camera at a pose.

    Args:
        model: A model of the task's bodies; its fixtures are moved.
        data: Its data.
        pose: A simulator, or what it had been at.
    """
    fixtures = pose.fixtures
    model.body_pos[fixtures.body_ids] = fixtures.pos
    model.body_quat[fixtures.body_ids] = fixtures.quat
    data.qpos[:] = pose.kinematics_qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


def burner_alpha(alpha: _Alpha, shown: bool) -> _Alpha:
    """Opacity of a burner's flame: LIBERO toggles it between its value in the file and one minus that."""
    return np.where((alpha > 0) == shown, alpha, 1 - alpha)  # type: ignore[return-value]


def still_key(pose: Pose) -> tuple[bytes, bytes, tuple[bool, ...]]:
    """What decides how the part of a scene looks that stands still."""
    return pose.fixtures.pos.tobytes(), pose.fixtures.quat.tobytes(), pose.burners_shown
