"""The reflection on a mirror's upper face, as MuJoCo draws it: the scene mirrored, seen through the face alone."""

from __future__ import annotations

import numpy as np

from libero_gym.rendering.kernels import kernel
from libero_gym.rendering.packing import TRIANGLE_BITS, TRIANGLE_MASK

# Samples of these are left alone.
_HIDDEN = -2


@kernel
def mirror_image(rotation, place, height, eye, rotations, places, lights):
    """What stands behind a mirror.

    Args:
        rotation, place: float64 (3, 3) and (3,): the mirror's pose; its face looks along its third axis.
        height: How far its face is from its place along that axis, m.
        eye: float64 (3,): where the camera is.
        rotations, places: float64 (G, 3, 3) and (G, 3): poses of all geoms.
        lights: Rows of `packing.LIGHT_SIZE` numbers.

    Returns:
        Whether the face looks at the eye; rotations, places and lights behind the mirror; the plane (4,), normal and
        offset, that they are seen in front of.
    """
    there, there_at, there_lights = np.empty_like(rotations), np.empty_like(places), lights.copy()
    reflection, face, plane = np.empty((3, 3)), np.empty(3), np.zeros(4)
    distance = 0.0
    for i in range(3):
        face[i] = place[i] + rotation[i, 2] * height
        distance += (eye[i] - face[i]) * rotation[i, 2]
        plane[i] = -rotation[i, 2]
        plane[3] += rotation[i, 2] * face[i]
        for j in range(3):
            reflection[i, j] = (1.0 if i == j else 0.0) - 2 * rotation[i, 2] * rotation[j, 2]
    for geom in range(len(rotations)):
        for i in range(3):
            there_at[geom, i] = face[i]
            for j in range(3):
                there_at[geom, i] += reflection[i, j] * (places[geom, j] - face[j])
                there[geom, i, j] = (
                    reflection[i, 0] * rotations[geom, 0, j]
                    + reflection[i, 1] * rotations[geom, 1, j]
                    + reflection[i, 2] * rotations[geom, 2, j]
                )
    for light in range(len(lights)):
        for i in range(3):
            there_lights[light, 1 + i], there_lights[light, 4 + i] = face[i], 0.0
            for j in range(3):
                there_lights[light, 1 + i] += reflection[i, j] * (lights[light, 1 + j] - face[j])
                there_lights[light, 4 + i] += reflection[i, j] * lights[light, 4 + j]
    return distance >= 0, there, there_at, there_lights, plane


@kernel
def hide_outside_face(front, over, is_under, behind, geometry, geom, window):
    """Hides mirrored samples of `behind` where the mirror's upper face is not what is seen.

    Args:
        front: Ids of what hides the mirror, or is it, (4 H, W).
        over: Ids of what hides both, if `is_under`.
        is_under: Whether there is such a thing.
        behind: Ids of what is mirrored, changed.
        geometry: The scene.
        geom: The mirror.
        window: left, bottom, right, top in pixels.
    """
    for row in range(4 * window[1], 4 * window[3]):
        for x in range(window[0], window[2]):
            name = front[row, x]
            if (
                name < 0
                or name >> TRIANGLE_BITS != geom
                or (is_under and over[row, x] >= 0)
                or geometry.records[(name & TRIANGLE_MASK) + geometry.geom_triangles[geom], 11] < 0.9
            ):
                behind[row, x] = _HIDDEN


@kernel
def add_reflection(colours, reflected, behind, window):
    """Adds reflected colours to the mirror's own where something is reflected, saturating."""
    for row in range(4 * window[1], 4 * window[3]):
        for x in range(window[0], window[2]):
            if behind[row, x] >= 0:
                for k in range(3):
                    colours[row, x, k] = min(255, np.int32(colours[row, x, k]) + reflected[row, x, k])
