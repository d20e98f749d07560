"""Poses of objects as seen from the gripper, with the arithmetic of robosuite 1.4's ``transform_utils`` (MIT licence).

It computes in single precision in places, which is kept, operation by operation.
"""

from __future__ import annotations

import numpy as np

from libero_gym.common.numba_cache import compiled
from libero_gym.simulation.controller import quat2mat


@compiled
def _mat2quat(matrix):
    """Quaternion (xyzw) of a rotation matrix: the eigenvector of its symmetric form's largest eigenvalue."""
    m = np.asarray(matrix).astype(np.float32)[:3, :3]
    zero = np.float32(0.0)
    symmetric = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], zero, zero, zero],
            [m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], zero, zero],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1], zero],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m[0, 0] + m[1, 1] + m[2, 2]],
        ]
    )
    symmetric /= 3.0
    values, vectors = np.linalg.eigh(symmetric)
    wxyz = np.array([3, 0, 1, 2])
    quaternion = vectors[wxyz, np.argmax(values)]
    if quaternion[0] < 0.0:
        np.negative(quaternion, quaternion)
    xyzw = np.array([1, 2, 3, 0])
    return quaternion[xyzw]


def world_in_gripper(eef_pos: np.ndarray, eef_quat: np.ndarray) -> np.ndarray:
    """The world's pose in the frame of the end effector, (4, 4), from position in m and xyzw quaternion."""
    pose = _pose(eef_pos, eef_quat)
    inverse = np.zeros((4, 4))
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -inverse[:3, :3].dot(pose[:3, 3])
    inverse[3, 3] = 1.0
    return inverse


def seen_from(frame: np.ndarray, pos: np.ndarray, quat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and xyzw quaternion (4,) of an object in a frame; ``frame`` is the world's pose in it, (4, 4)."""
    pose = frame.dot(_pose(pos, quat))
    return pose[:3, 3], _mat2quat(pose[:3, :3])


def _pose(pos: np.ndarray, quat: np.ndarray) -> np.ndarray:
    pose = np.zeros((4, 4), dtype=np.float32)
    pose[:3, :3] = quat2mat(quat)
    pose[:3, 3] = np.array(pos, dtype=np.float32)
    pose[3, 3] = 1.0
    return pose
