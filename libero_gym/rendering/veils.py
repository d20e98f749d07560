"""Transparent geoms: every one of their triangles that faces the camera in front of what is opaque.

MuJoCo draws them without writing depth (`mjr_render`), so that a sample blends with each triangle over it, not with the
nearest alone.
"""

from __future__ import annotations

import numpy as np

from libero_gym.rendering.filling import clipped_polygon, fill_polygon
from libero_gym.rendering.kernels import kernel
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
    depth: np.ndarray,
    bounds: np.ndarray,
    todo: np.ndarray,
) -> list[np.ndarray]:
    """Ids of a geom's triangles over the samples, layer by layer.

    Args:
        geom: Which geom.
        geometry, rotations, places, camera, eye, view, bounds, todo: See `visibility.rasterise`.
        depth: float32 (4 H, W): 1/z of what is opaque.

    Returns:
        Layers of ids, int32 (4 H, W), `BACKGROUND` where there is none: in the first, the first triangle of each
        sample, in the second, its second one, and so on.
    """
    behind = depth * np.float32(1 - _TIE)
    capacity = 2 * depth.size
    while True:
        places_hit, names, layers = (np.empty(capacity, np.int32) for _ in range(3))
        n = _hits(
            np.array([geom]), geometry, rotations, places, camera, eye, view, behind, bounds, todo, places_hit, names,
            layers,
        )  # fmt: skip
        if n < capacity:
            break
        capacity *= 4
    found = []
    for layer in range(int(layers[:n].max()) + 1 if n else 0):
        ids = np.full(depth.shape, BACKGROUND, np.int32)
        chosen = layers[:n] == layer
        ids.reshape(-1)[places_hit[:n][chosen]] = names[:n][chosen]
        found.append(ids)
    return found


@kernel
def _hits(order, geometry, rotations, places, camera, eye, view, depth, bounds, todo, places_hit, names, layers):
    """Lists which sample (its place in the flat array), which triangle and which layer; stops when a list is full."""
    height, width = depth.shape[0] >> 2, depth.shape[1]
    near, capacity = view[1], len(names)
    scale_x, scale_y = view[0] * height * 128, view[0] * height * 128
    window = np.array([0, 0, width, height], dtype=np.int64)
    nearest, ids = depth.copy(), np.full(depth.shape, -1, np.int32)
    counts = np.zeros(depth.shape, np.int32)
    polygon, other = np.empty((8, 4)), np.empty((8, 4))
    matrices = np.empty((1, 12), np.float32)
    camera_matrices(order, rotations, places, camera, eye, matrices)
    n_clusters = seen_clusters(
        order, geometry, matrices, rotations, places, view, window, np.zeros(4), False, bounds, todo
    )
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
            if fill_polygon(polygon, m, name, nearest, ids, window) == 0:
                continue
            for row in range(max(int(bottom) >> 6, 0), min((int(top) >> 6) + 1, 4 * height)):
                for x in range(max(int(left) >> 8, 0), min((int(right) >> 8) + 1, width)):
                    if ids[row, x] == name:
                        if n == capacity:
                            return n
                        places_hit[n] = row * width + x
                        names[n] = name
                        layers[n] = counts[row, x]
                        n += 1
                        counts[row, x] += 1
                        nearest[row, x], ids[row, x] = depth[row, x], -1
    return n
