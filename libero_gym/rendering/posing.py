"""What every renderer does alike: which cameras there are, what they see, and where a simulator has put it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.simulation.simulator import Simulator

# The observation's name of a camera, and LIBERO's. Scenes have further ones, which go by LIBERO's names.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
# robosuite's scene capacity; a larger one would draw geoms that stock LIBERO leaves out.
MAX_SCENE_GEOMS = 1000

_Alpha = TypeVar("_Alpha", float, np.ndarray)


def camera_ids(model: mujoco.MjModel) -> dict[str, int]:
    """Ids of all cameras, by LIBERO's names and the observation's."""
    ids = {str(model.camera(camera).name): camera for camera in range(model.ncam)}
    return ids | {name: ids[stock] for name, stock in CAMERAS.items() if stock in ids}


def visual_option() -> mujoco.MjvOption:
    """What is shown: visual geoms, and not those that collide."""
    option = mujoco.MjvOption()
    option.geomgroup[0], option.geomgroup[1] = 0, 1
    return option


def pose_bodies(model: mujoco.MjModel, data: mujoco.MjData, simulator: Simulator) -> None:
    """Put every body, light and camera where the simulator's last sampled substep had it.

    Args:
        model: A model of the task's bodies; its fixtures are moved.
        data: Its data.
        simulator: The simulator.
    """
    fixtures = simulator.fixtures
    model.body_pos[fixtures.body_ids] = fixtures.pos
    model.body_quat[fixtures.body_ids] = fixtures.quat
    data.qpos[:] = simulator.kinematics_qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


def burner_alpha(alpha: _Alpha, shown: bool) -> _Alpha:
    """Opacity of a burner's flame: LIBERO toggles it between its value in the file and one minus that."""
    return np.where((alpha > 0) == shown, alpha, 1 - alpha)  # type: ignore[return-value]


def still_key(simulator: Simulator) -> tuple[bytes, bytes, tuple[bool, ...]]:
    """What decides how the part of a scene looks that stands still."""
    return simulator.fixtures.pos.tobytes(), simulator.fixtures.quat.tobytes(), simulator.burners_shown
