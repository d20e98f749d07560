"""What cameras and lights are, under the names that each version of MuJoCo has for it."""

from __future__ import annotations

import numpy as np

from libero_gym.common.mujoco_import import mujoco


def orthographic_cameras(model: mujoco.MjModel) -> np.ndarray:
    """Whether each camera has no perspective, bool (ncam,)."""
    if hasattr(model, "cam_projection"):
        return np.asarray(model.cam_projection != mujoco.mjtProjection.mjPROJ_PERSPECTIVE)
    return np.asarray(model.cam_orthographic != 0)


def directional_lights(model: mujoco.MjModel) -> np.ndarray:
    """Whether the rays of each light are parallel, bool (nlight,)."""
    if hasattr(model, "light_type"):
        return np.asarray(model.light_type == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    return np.asarray(model.light_directional != 0)
