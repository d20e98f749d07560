"""Geometry for scripted experts: rotations of the hand, and collision boxes as clouds of points."""

from __future__ import annotations

import numpy as np

from libero_gym.common.mujoco_import import mujoco

DOWN = np.array([0.0, 0.0, -1.0])
UP = -DOWN


def down(yaw: float) -> np.ndarray:
    """Orientation of a hand that points down, with its closing axis at the angle ``yaw`` in rad to x, (3, 3)."""
    closing = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    return np.column_stack([closing, np.cross(DOWN, closing), DOWN])


def tilted(pull: np.ndarray, angle: float, vertical: bool) -> np.ndarray:
    """Orientation of a hand that is tilted from down by an angle and so points against ``pull``, (3, 3).

    Args:
        pull: Horizontal unit vector (3,).
        angle: Tilt in rad.
        vertical: Whether the fingers close in the vertical plane of the pull, as around a horizontal handle; otherwise
            they close across it.
    """
    approach = -np.sin(angle) * pull + np.cos(angle) * DOWN
    across = np.cross(UP, pull)
    closing = np.cross(across, approach) if vertical else across
    return np.column_stack([closing, np.cross(approach, closing), approach])


def yaw_of(hand: np.ndarray) -> float:
    """Angle to x of a hand's closing axis in the plane, rad."""
    return float(np.arctan2(hand[1, 0], hand[0, 0]))


def rotation_about_z(angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) by an angle in rad about the upright axis."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle in rad, (3,), of a rotation matrix (3, 3)."""
    # MuJoCo's conversion, because scipy's rounds otherwise and takes twenty times as long for one matrix.
    quat, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(matrix).ravel())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector scaled to length one."""
    return np.asarray(vector / np.linalg.norm(vector))


def box_surface(half: np.ndarray, spacing: float) -> np.ndarray:
    """Points on a box's surface about ``spacing`` m apart, in its frame, (n, 3)."""
    axes = [np.linspace(-h, h, max(2, int(np.ceil(2 * h / spacing)) + 1)) for h in half]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(grid[np.any(np.isclose(np.abs(grid), half), axis=1)])


def geom_points(model: mujoco.MjModel, data: mujoco.MjData, geoms: np.ndarray, spacing: float) -> np.ndarray:
    """Surface points of those geoms that can collide and are boxes, capsules or cylinders, (n, 3) in m.

    A capsule or a cylinder counts as the box around it.
    """
    clouds = []
    for geom in geoms:
        if model.geom_contype[geom] == 0 and model.geom_conaffinity[geom] == 0:
            continue
        size = model.geom_size[geom]
        kind = model.geom_type[geom]
        if kind in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER):
            size = np.array([size[0], size[0], size[1]])
        elif kind != mujoco.mjtGeom.mjGEOM_BOX:
            continue
        clouds.append(box_surface(size, spacing) @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    return np.concatenate(clouds) if clouds else np.zeros((0, 3))


def corridor_height(points: np.ndarray, start: np.ndarray, end: np.ndarray, half_width: float = 0.11) -> float:
    """Highest point within ``half_width`` m of the straight line from start to end in the plane; 0 if none."""
    line = end - start
    t = np.clip((points[:, :2] - start) @ line / max(float(line @ line), 1e-9), 0, 1)
    near = np.linalg.norm(points[:, :2] - start - t[:, None] * line, axis=1) < half_width
    return float(points[near, 2].max()) if near.any() else 0.0


def highest_near(points: np.ndarray, xy: np.ndarray, default: float, radius: float = 0.03) -> float:
    """Height in m of the highest point within a radius in the plane; ``default`` if there is none."""
    near = np.linalg.norm(points[:, :2] - xy, axis=1) < radius
    return float(points[near, 2].max()) if near.any() else float(default)


def long_axis(points: np.ndarray, min_ratio: float = 1.5) -> np.ndarray | None:
    """Unit vector (2,) along which points spread most in the plane; None if they spread hardly less across it."""
    spreads, axes = np.linalg.eigh(np.cov(points[:, :2].T))
    return np.asarray(axes[:, 1]) if spreads[1] > min_ratio**2 * spreads[0] else None
