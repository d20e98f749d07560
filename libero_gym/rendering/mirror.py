"""The reflection on a mirror's upper face, as MuJoCo draws it: the scene mirrored, seen through the face alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from libero_gym.rendering.kernels import kernel
from libero_gym.rendering.packing import TRIANGLE_BITS, TRIANGLE_MASK

# Samples of these are left alone.
_HIDDEN = -2


class MirrorImage(NamedTuple):
    """Poses of G geoms and lights behind a mirror, and the plane that they are seen in front of."""

    rotations: np.ndarray  # (G, 3, 3)
    places: np.ndarray  # (G, 3)
    lights: np.ndarray  # as `packing.LIGHT_SIZE` says
    plane: np.ndarray  # (4,): normal and offset


def mirror_image(
    rotation: np.ndarray,
    place: np.ndarray,
    height: float,
    eye: np.ndarray,
    rotations: np.ndarray,
    places: np.ndarray,
    lights: np.ndarray,
) -> MirrorImage | None:
    """What stands behind a mirror; None if the eye is behind it.

    Args:
        rotation, place: The mirror's pose; its face looks along its third axis.
        height: How far its face is from its place along that axis, m.
        eye: Where the camera is.
        rotations, places: Poses of all geoms.
        lights: Rows of `packing.LIGHT_SIZE` numbers.
    """
    normal = rotation[:, 2]
    face = place + normal * height
    if (eye - face) @ normal < 0:
        return None
    reflection = np.eye(3) - 2 * np.outer(normal, normal)
    mirrored_lights = lights.copy()
    mirrored_lights[:, 1:4] = (lights[:, 1:4] - face) @ reflection.T + face
    mirrored_lights[:, 4:7] = lights[:, 4:7] @ reflection.T
    plane = np.array([*(-normal), normal @ face])
    return MirrorImage(reflection @ rotations, (places - face) @ reflection.T + face, mirrored_lights, plane)


@kernel
def hide_outside_face(front, behind, geometry, geom, window):
    """Hides mirrored samples of `behind` where `front` does not show the mirror's upper face."""
    for y in range(window[1], window[3]):
        for x in range(window[0], window[2]):
            for sample in range(4):
                name = front[y, x, sample]
                if (
                    name < 0
                    or name >> TRIANGLE_BITS != geom
                    or geometry.records[(name & TRIANGLE_MASK) + geometry.geom_triangles[geom], 11] < 0.9
                ):
                    behind[y, x, sample] = _HIDDEN


@kernel
def add_reflection(colours, reflected, behind, window):
    """Adds reflected colours to the mirror's own where something is reflected, saturating."""
    for y in range(window[1], window[3]):
        for x in range(window[0], window[2]):
            for sample in range(4):
                if behind[y, x, sample] >= 0:
                    for k in range(3):
                        total = np.int32(colours[y, x, sample, k]) + reflected[y, x, sample, k]
                        colours[y, x, sample, k] = min(255, total)
