"""Grasps planned from collision geometry: places where two fingers fit around something with nothing in their way.

All coordinates are in a frame in which the hand descends along -z. For a tilted hand, turn the points first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# The Panda's hand in m, measured from the grip site: inner and outer face of an open finger, half a finger's width, the
# fingertip below and the palm above; then the palm's half extents along and across the closing axis, and its length.
FINGER_INNER, FINGER_OUTER, FINGER_HALF, TIP, PALM = 0.0395, 0.0565, 0.0105, 0.011, 0.033
PALM_HALF, PALM_LENGTH = (0.105, 0.034), 0.065
FAR = 0.68  # m from the arm's base, where a hand that points down comes near the end of its reach
GRASP_DEPTHS = (0.010, 0.018, 0.028, 0.040, 0.055, 0.075, 0.100)  # m below the object's local top
YAWS = tuple(np.linspace(0.0, np.pi, 16, endpoint=False))


@dataclass(frozen=True)
class Grasp:
    """A top-down grasp.

    Attributes:
        pos: Position of the grip site in m, (3,).
        yaw: Angle of the closing axis to x in rad.
        score: Higher is better.
    """

    pos: np.ndarray
    yaw: float
    score: float


@dataclass(frozen=True)
class GraspOptions:
    """The requirements and preferences of a search for grasps.

    Attributes:
        max_width: Widest span between the fingers, m.
        centering: Cost per m between grasp and object centre.
        avoid: Horizontal direction (2,) along which the fingers should not close; zeros for none.
        yaws: Angles of the closing axis to try, rad.
        base: Position of the arm's base in the plane, m (2,); grasps out of its easy reach cost. None for no cost.
        palm_length: Length above the palm that has to be free, m.
    """

    max_width: float = 0.070
    centering: float = 8.0
    avoid: tuple[float, float] = (0.0, 0.0)
    yaws: tuple[float, ...] = YAWS
    base: tuple[float, float] | None = None
    palm_length: float = np.inf


def grasp_options(body: str, avoid: tuple[float, float] = (0.0, 0.0)) -> GraspOptions:
    """Options for an object by its name: rims of bowls and mugs, necks of bottles, the middle of others."""
    if "bowl" in body:
        return GraspOptions(0.022, 2.0, avoid)
    if "mug" in body:
        return GraspOptions(0.030, 2.0, avoid)
    if "bottle" in body:
        return GraspOptions(0.070, 3.0, avoid)
    return GraspOptions(avoid=avoid)


def plan_grasps(
    points: np.ndarray, obstacles: np.ndarray, options: GraspOptions, hand_yaw: float, n_best: int = 6
) -> list[Grasp]:
    """Plan top-down grasps whose straight descent is free, best first.

    Args:
        points: Surface points of the object, (n, 3) in m.
        obstacles: Surface points of everything else, (m, 3) in m.
        options: Requirements and preferences.
        hand_yaw: Present angle of the closing axis to x, rad.
        n_best: Largest number of grasps to return; they differ by 1 cm or 0.3 rad.
    """
    centre = 0.5 * (points.min(axis=0) + points.max(axis=0))
    reach = np.linalg.norm(points - centre, axis=1).max() + 0.12
    around = obstacles[np.linalg.norm((obstacles - centre)[:, :2], axis=1) < reach]
    everything = np.concatenate([points, around])
    found: list[Grasp] = []
    for yaw in options.yaws:
        frame = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])  # columns: along, across
        local = np.column_stack([(points - centre)[:, :2] @ frame, points[:, 2]])
        world = np.column_stack([(everything - centre)[:, :2] @ frame, everything[:, 2]])
        for u, z, v, width, slant in _spans(local, options.max_width):
            if _blocked(world, u, v, z, options.palm_length):
                continue
            turn = abs((yaw - hand_yaw + np.pi / 2) % np.pi - np.pi / 2)
            score = (
                -options.centering * np.hypot(u, v)
                - 30 * slant
                - 0.25 * turn
                - 40 * max(0.0, width - 0.062)
                - 5 * max(0.0, z - centre[2] - 0.005)
                - 5 * max(0.0, centre[2] - z - 0.03)
                - 1.2 * abs(float(frame[:, 0] @ options.avoid))
            )
            spot = centre[:2] + frame @ [u, v]
            if options.base is not None:
                score -= 20 * max(0.0, float(np.linalg.norm(spot - options.base)) - FAR)
            found.append(Grasp(np.array([*spot, z]), float(yaw), float(score)))
    return _distinct(sorted(found, key=lambda grasp: -grasp.score), n_best)


def _spans(local: np.ndarray, max_width: float) -> Iterator[tuple[float, float, float, float, float]]:
    """Parts of the object that fit between the pads.

    Args:
        local: The object's points: along the closing axis, across it, height; (n, 3) in m.
        max_width: Widest span between the fingers, m.

    Yields:
        For each slab across and each depth: middle along the closing axis, height, middle across, width, and slant,
        which is the distance along between the middles of the slab's two halves. All in m.
    """
    bottom = local[:, 2].min()
    for v in np.arange(local[:, 1].min() + 0.004, local[:, 1].max() - 0.003, 0.006):
        slab = local[np.abs(local[:, 1] - v) < 0.0085]
        if not len(slab):
            continue
        heights = {round(max(slab[:, 2].max() - depth, bottom + TIP + 0.002), 4) for depth in GRASP_DEPTHS}
        for z in sorted(heights):
            band = slab[(slab[:, 2] > z - 0.006) & (slab[:, 2] < z + 0.012)]
            if len(band) < 3:
                continue
            band = band[np.argsort(band[:, 0])]
            cuts = np.flatnonzero(np.diff(band[:, 0]) > 0.016) + 1
            groups = np.split(band, cuts)
            for group in groups if len(groups) == 1 else [*groups, band]:
                width = group[-1, 0] - group[0, 0]
                if width <= max_width:
                    left, right = group[group[:, 1] < v, 0], group[group[:, 1] >= v, 0]
                    slant = abs(left.mean() - right.mean()) if len(left) and len(right) else 0.01
                    yield 0.5 * (group[0, 0] + group[-1, 0]), z, v, width, slant


def _blocked(world: np.ndarray, u: float, v: float, z: float, palm_length: float) -> bool:
    """Whether anything lies where the open fingers or the palm would descend."""
    along, across = np.abs(world[:, 0] - u), np.abs(world[:, 1] - v)
    fingers = (along > FINGER_INNER) & (along < FINGER_OUTER) & (across < FINGER_HALF) & (world[:, 2] > z - TIP)
    above_palm = world[:, 2] - z - PALM
    palm = (along < PALM_HALF[0]) & (across < PALM_HALF[1]) & (above_palm > 0) & (above_palm < palm_length)
    return bool(np.any(fingers | palm))


def _distinct(grasps: list[Grasp], n_best: int) -> list[Grasp]:
    kept: list[Grasp] = []
    for grasp in grasps:
        if all(np.linalg.norm(grasp.pos - k.pos) > 0.01 or abs(grasp.yaw - k.yaw) > 0.3 for k in kept):
            kept.append(grasp)
        if len(kept) == n_best:
            break
    return kept
