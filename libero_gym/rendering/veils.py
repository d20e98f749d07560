"""Transparent geoms: every one of their triangles that faces the camera in front of what is opaque.

MuJoCo draws them without writing depth (`mjr_render`), so that a sample blends with each triangle over it, not with the
nearest alone.
"""

from __future__ import annotations

import numpy as np

from libero_gym.rendering.filling import clipped_polygon, fill_polygon
from libero_gym.rendering.kernels import f32, inlined, kernel
from libero_gym.rendering.packing import TRIANGLE_BITS, Geometry
from libero_gym.rendering.visibility import BACKGROUND, camera_matrices, seen_clusters

# Surfaces in the same place are drawn over each other (GL_GEQUAL); their depths differ by float32's rounding.
_TIE = 2.0**-22


def find_layers(
    geom: int,
    geometry: Geometry,
    rotations: np.ndarray,
    places: np.ndarray,
    camera: np.ndarray,
    eye: np.ndarray,
    view: np.ndarray,
    window: np.ndarray,
    depth: np.ndarray,
    nearest: np.ndarray,
    ids: np.ndarray,
    bounds: np.ndarray,
    todo: np.ndarray,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Ids of a geom's triangles over the samples of a window, layer by layer.

    Args:
        geom: Which geom.
        geometry, rotations, places, camera, eye, view, window, bounds, todo: See `visibility.rasterise`.
        depth: float32 (4 H, W): 1/z of what is opaque.
        nearest, ids: Work space, float32 and int32 (4 H, W), of which the window is used.

    Returns:
        The part of the window where the geom is seen, int64 (4,); and layers of ids, int32 (4 H, W), set in that part,
        `BACKGROUND` where there is none: in the first, the first triangle of each sample, in the second, its second
        one, and so on.
    """
    capacity, shown = 8 * int(window[2] - window[0]) * int(window[3] - window[1]), np.zeros(4, np.int64)
    while True:
        places_hit, names, layers = (np.empty(capacity, np.int32) for _ in range(3))
        n = _hits(
            np.array([geom]), geometry, rotations, places, camera, eye, view, window, depth, nearest, ids, bounds, todo,
            shown, places_hit, names, layers,
        )  # fmt: skip
        if n < capacity or capacity == 0:
            break
        capacity *= 4
    found = []
    for layer in range(int(layers[:n].max()) + 1 if n else 0):
        names_there = np.empty(depth.shape, np.int32)
        names_there[4 * shown[1] : 4 * shown[3], shown[0] : shown[2]] = BACKGROUND
        chosen = layers[:n] == layer
        names_there.reshape(-1)[places_hit[:n][chosen]] = names[:n][chosen]
        found.append(names_there)
    return shown, found


@inlined
def _geom_part(n, bounds, scale, width, height, window, part):
    """Fills the part of a window that the spheres around n clusters reach: left, bottom, right, top."""
    left, bottom, right, top = np.inf, np.inf, -np.inf, -np.inf
    for i in range(n):
        x, y, radius = np.float64(bounds[i, 0]), np.float64(bounds[i, 1]), np.float64(bounds[i, 3])
        near = 1.0 / bounds[i, 2]
        far = 1.0 / (bounds[i, 2] + 2 * radius)
        left = min(left, (x - radius) * (near if x < radius else far))
        right = max(right, (x + radius) * (near if x > -radius else far))
        bottom = min(bottom, (y - radius) * (near if y < radius else far))
        top = max(top, (y + radius) * (near if y > -radius else far))
    # A pixel more on each side, for what rounds. Numbers are cut to the window before they become whole.
    part[0] = max(np.float64(window[0]), min(left * scale + 0.5 * width - 1, np.float64(window[2])))
    part[1] = max(np.float64(window[1]), min(bottom * scale + 0.5 * height - 1, np.float64(window[3])))
    part[2] = max(np.float64(part[0]), min(right * scale + 0.5 * width + 2, np.float64(window[2])))
    part[3] = max(np.float64(part[1]), min(top * scale + 0.5 * height + 2, np.float64(window[3])))


@kernel
def _hits(
    order, geometry, rotations, places, camera, eye, view, window, depth, nearest, ids, bounds, todo, shown, places_hit,
    names, layers,
):  # fmt: skip
    """Lists which sample (its place in the flat array), which triangle and which layer; stops when a list is full."""
    height, width = depth.shape[0] >> 2, depth.shape[1]
    near, capacity = view[1], len(names)
    scale_x, scale_y = view[0] * height * 128, view[0] * height * 128
    counts = np.empty(depth.shape, np.int32)
    polygon, other = np.empty((8, 4)), np.empty((8, 4))
    matrices = np.empty((1, 12), np.float32)
    camera_matrices(order, rotations, places, camera, eye, matrices)
    n_clusters = seen_clusters(
        order, geometry, matrices, rotations, places, view, window, np.zeros(4), False, bounds, todo
    )
    part = np.empty(4, np.int64)
    _geom_part(n_clusters, bounds, 0.5 * view[0] * height, width, height, window, part)
    shown[0], shown[1], shown[2], shown[3] = width, height, 0, 0
    first_row, last_row, first_x, last_x = 4 * part[1], 4 * part[3], part[0], part[2]
    for row in range(first_row, last_row):
        for x in range(first_x, last_x):
            nearest[row, x], ids[row, x], counts[row, x] = depth[row, x] * f32(1 - _TIE), -1, 0
    geom, matrix, n = order[0], matrices[0], 0
    for i in range(n_clusters):
        cluster = todo[todo[i, 3], 1]
        first, last = geometry.cluster_rows[cluster, 0], geometry.cluster_rows[cluster, 1]
        positions = geometry.positions[cluster]
        for j in range(last - first):
            for k in range(3):
                x, y, z = positions[3 * k, j], positions[3 * k + 1, j], positions[3 * k + 2, j]
                polygon[k, 0] = matrix[0] * x + matrix[1] * y + matrix[2] * z + matrix[3]
                polygon[k, 1] = matrix[4] * x + matrix[5] * y + matrix[6] * z + matrix[7]
                polygon[k, 2] = -(matrix[8] * x + matrix[9] * y + matrix[10] * z + matrix[11]) - near
                polygon[k, 3] = 1.0
            m = clipped_polygon(polygon, 3, 2, other)
            if m < 3:
                continue
            left, bottom, right, top = 256.0 * width, 256.0 * height, 0.0, 0.0
            for k in range(m):
                w = 1.0 / (polygon[k, 2] + near)
                polygon[k, 0] = np.floor(polygon[k, 0] * w * scale_x + width * 128 + 0.5)
                polygon[k, 1] = np.floor(polygon[k, 1] * w * scale_y + height * 128 + 0.5)
                polygon[k, 2] = w
                left, right = min(left, polygon[k, 0]), max(right, polygon[k, 0])
                bottom, top = min(bottom, polygon[k, 1]), max(top, polygon[k, 1])
            name = (geom << TRIANGLE_BITS) - geometry.geom_triangles[geom] + first + j
            if fill_polygon(polygon, m, name, nearest, ids, part) == 0:
                continue
            for row in range(max(int(bottom) >> 6, first_row), min((int(top) >> 6) + 1, last_row)):
                for x in range(max(int(left) >> 8, first_x), min((int(right) >> 8) + 1, last_x)):
                    if ids[row, x] == name:
                        if n == capacity:
                            return n
                        places_hit[n] = row * width + x
                        names[n] = name
                        layers[n] = counts[row, x]
                        shown[0], shown[1] = min(shown[0], x), min(shown[1], row >> 2)
                        shown[2], shown[3] = max(shown[2], x + 1), max(shown[3], (row >> 2) + 1)
                        n += 1
                        counts[row, x] += 1
                        nearest[row, x], ids[row, x] = depth[row, x] * f32(1 - _TIE), -1
    return n


@kernel
def mix(ids, veil, opacity, window, colours):
    """Mixes a veil's colours with what is there, rounded to nearest.

    Args:
        ids: Of the veil, int32 (4 H, W); samples below 0 are left alone.
        veil: Its colours, uint8 (4 H, W, 3).
        opacity: Its share, float64.
        window: left, bottom, right, top in pixels.
        colours: What is there, uint8 (4 H, W, 3), changed.
    """
    for row in range(4 * window[1], 4 * window[3]):
        for x in range(window[0], window[2]):
            if ids[row, x] >= 0:
                for k in range(3):
                    mixed = opacity * veil[row, x, k] + (1.0 - opacity) * colours[row, x, k]
                    colours[row, x, k] = np.uint8(mixed + 0.5)
