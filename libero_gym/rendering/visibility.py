"""Which triangle is seen at each sample of each pixel: a rasteriser with four samples, compiled by numba.

Coordinates are OpenGL's window coordinates in units of 1/256 pixel, y up, to which llvmpipe rounds vertices. A pixel's
four samples are llvmpipe's: (96, 32), (224, 96), (32, 160), (160, 224). No two of them are equally high, so arrays of
samples have four rows for each row of pixels, (4 H, W): neighbours in memory are neighbours on the screen. A triangle
owns samples on its left and bottom edges. Depth is 1/z, so that nearer is larger, and 0 is infinitely far.

The kernels read flat arrays, since numba counts references of every array at every call, and inner loops are written so
that LLVM vectorises them: float32 throughout (exact for whole numbers below 2^24), `np.floor` instead of `math.floor`,
no int32 products (numba widens them to int64).
"""

from __future__ import annotations

import math

import numpy as np

from libero_gym.rendering.filling import fill_clipped, fill_cluster, plane_distance
from libero_gym.rendering.kernels import f32, inlined, kernel
from libero_gym.rendering.packing import CLUSTER, TRIANGLE_BITS

BACKGROUND = -1
"""Id of samples where nothing is seen."""
_N_BUCKETS = 512
# A triangle whose corners are at most this far apart is tested in the vectorised loop, in up to three rows of samples.
_SMALL = f32(256.0)
# Above this many 1/256 pixels float32 products are no longer exact; such triangles go to the loop with whole numbers.
_LARGE = f32(2048.0)


@inlined
def _covers(row, last_row, bit, x0, y0, x1, y1, x2, y2, min_x, own0, own1, own2):
    """`bit` if a small triangle covers the only sample of a row that it can reach, else 0. All float32."""
    half, one, zero = f32(0.5), f32(1), f32(0)
    pair = np.floor(row * half)
    offset = f32(96) + f32(128) * (row - f32(2) * pair) - f32(64) * (pair - f32(2) * np.floor(pair * half))
    x = np.floor((min_x - offset + f32(255)) * f32(1 / 256)) * f32(256) + offset
    y = f32(32) + row * f32(64)
    e0 = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) - own0
    e1 = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) - own1
    e2 = (x0 - x2) * (y - y2) - (y0 - y2) * (x - x2) - own2
    inside = (min(e0, min(e1, e2)) >= zero) & (row <= last_row)
    return bit * one if inside else zero


@kernel
def project(n, positions, matrix, scale_x, scale_y, centre_x, centre_y, corners, verdict):
    """Projects the n triangles of a cluster, in loops that vectorise.

    Args:
        n: Number of triangles.
        positions: float32 (9, 64), as `Geometry.positions`.
        matrix: float32 (12,), from the geom's frame to the camera's, row by row.
        scale_x, scale_y, centre_x, centre_y: To window coordinates.
        corners: Filled: x0, y0, x1, y1, x2, y2 in whole 1/256 pixels, then 1/z of each corner; (9, 64).
        verdict: Filled: bits 1, 2 and 4 if the triangle covers its sample in the first, second and third of its rows of
            samples; 8 if it has to be filled by `fill_triangle`; 0 if it is not seen. (64,).
    """
    one, half, zero = f32(1), f32(0.5), f32(0)
    for k in range(3):
        px, py, pz = positions[3 * k], positions[3 * k + 1], positions[3 * k + 2]
        xs, ys, ws = corners[2 * k], corners[2 * k + 1], corners[6 + k]
        for i in range(n):
            x, y, z = px[i], py[i], pz[i]
            w = one / -(matrix[8] * x + matrix[9] * y + matrix[10] * z + matrix[11])
            ws[i] = w
            eye_x = matrix[0] * x + matrix[1] * y + matrix[2] * z + matrix[3]
            eye_y = matrix[4] * x + matrix[5] * y + matrix[6] * z + matrix[7]
            xs[i] = np.floor(eye_x * w * scale_x + centre_x + half)
            ys[i] = np.floor(eye_y * w * scale_y + centre_y + half)
    xs0, ys0, xs1, ys1, xs2, ys2 = corners[0], corners[1], corners[2], corners[3], corners[4], corners[5]
    for i in range(n):
        x0, y0, x1, y1, x2, y2 = xs0[i], ys0[i], xs1[i], ys1[i], xs2[i], ys2[i]
        area = (y1 - y0) * (x0 - x2) - (x1 - x0) * (y0 - y2)
        max_x, min_x = max(x0, max(x1, x2)), min(x0, min(x1, x2))
        max_y, min_y = max(y0, max(y1, y2)), min(y0, min(y1, y2))
        first, last = np.floor((min_y + f32(31)) * f32(1 / 64)), np.floor((max_y - f32(32)) * f32(1 / 64))
        own0 = zero if (y1 < y0) | ((y1 == y0) & (x1 > x0)) else one
        own1 = zero if (y2 < y1) | ((y2 == y1) & (x2 > x1)) else one
        own2 = zero if (y0 < y2) | ((y0 == y2) & (x0 > x2)) else one
        covered = _covers(first, last, one, x0, y0, x1, y1, x2, y2, min_x, own0, own1, own2)
        covered += _covers(first + one, last, f32(2), x0, y0, x1, y1, x2, y2, min_x, own0, own1, own2)
        covered += _covers(first + f32(2), last, f32(4), x0, y0, x1, y1, x2, y2, min_x, own0, own1, own2)
        is_small = (max_x - min_x < _SMALL) & (max_y - min_y < _SMALL) & (last <= first + f32(2))
        has_rows = first <= last
        too_wide = (max_x - min_x > _LARGE) | (max_y - min_y > _LARGE)  # its float32 area may have the wrong sign
        large = f32(8) if ((area > zero) | too_wide) & has_rows else zero
        verdict[i] = (covered if area > zero else zero) if is_small else large


@kernel
def camera_matrices(order, rotations, places, camera, eye, matrices):
    """From each geom's frame to the camera's, float32 (len(order), 12), row by row."""
    for i in range(len(order)):
        geom = order[i]
        for row in range(3):
            for column in range(3):
                total = 0.0
                for k in range(3):
                    total += camera[row, k] * rotations[geom, k, column]
                matrices[i, 4 * row + column] = total
            total = 0.0
            for k in range(3):
                total += camera[row, k] * (places[geom, k] - eye[k])
            matrices[i, 4 * row + 3] = total


@kernel
def seen_clusters(order, geometry, matrices, rotations, places, view, window, clip, is_mirrored, bounds, todo):
    """Clusters that may be seen, nearest first.

    Args:
        order: Geoms to draw, int64.
        geometry: The scene.
        matrices: As `camera_matrices` fills them.
        rotations, places: Of all geoms, in the world.
        view: float64: focal length, near plane, width, height.
        window: int64 (4,): left, bottom, right, top in pixels.
        clip: Plane (4,) in the world in whose front they must be, if `is_mirrored`.
        is_mirrored: Whether they are a mirror's image.
        bounds: Filled: centre x and y and nearest depth in the camera's frame, radius; float32 (C + 1, 4).
        todo: Filled: place in `order`, cluster, bucket of depth, and the sorted indices of `bounds`; int32 (C + 1, 4).

    Returns:
        Their number.
    """
    focal, near, width, height = view[0], view[1], view[2], view[3]
    left, right = 2.0 * window[0] / width - 1, 2.0 * window[2] / width - 1
    bottom, top = 2.0 * window[1] / height - 1, 2.0 * window[3] / height - 1
    focal_x, focal_y = focal * height / width, focal
    left_length, right_length = math.sqrt(focal_x**2 + left**2), math.sqrt(focal_x**2 + right**2)
    bottom_length, top_length = math.sqrt(focal_y**2 + bottom**2), math.sqrt(focal_y**2 + top**2)
    cluster_bounds = geometry.cluster_bounds
    count = np.zeros(_N_BUCKETS + 1, np.int32)
    n = 0
    for place in range(len(order)):
        geom, m = order[place], matrices[place]
        for cluster in range(geometry.geom_clusters[geom, 0], geometry.geom_clusters[geom, 1]):
            b = cluster_bounds[cluster]
            radius = b[3]
            x = m[0] * b[0] + m[1] * b[1] + m[2] * b[2] + m[3]
            y = m[4] * b[0] + m[5] * b[1] + m[6] * b[2] + m[7]
            z = -(m[8] * b[0] + m[9] * b[1] + m[10] * b[2] + m[11])
            if (
                z < near - radius
                or x * focal_x - left * z < -radius * left_length
                or right * z - x * focal_x < -radius * right_length
                or y * focal_y - bottom * z < -radius * bottom_length
                or top * z - y * focal_y < -radius * top_length
            ):
                continue
            if b[7] <= 1:  # the cone of its normals: all of them look away
                axis_x = m[0] * b[4] + m[1] * b[5] + m[2] * b[6]
                axis_y = m[4] * b[4] + m[5] * b[5] + m[6] * b[6]
                axis_z = m[8] * b[4] + m[9] * b[5] + m[10] * b[6]
                if x * axis_x + y * axis_y - z * axis_z >= b[7] * math.sqrt(x * x + y * y + z * z) + radius:
                    continue
            if is_mirrored and plane_distance(geom, b, rotations, places, clip) < -radius:
                continue
            bounds[n, 0], bounds[n, 1], bounds[n, 2], bounds[n, 3] = x, y, max(z - radius, f32(near)), radius
            # By the centre: by the nearest point, floor and walls came first and were drawn over.
            bucket = min(np.int32(_N_BUCKETS * 0.25 * math.log2(1 + max(z, f32(near)) * 15)), _N_BUCKETS - 1)
            todo[n, 0], todo[n, 1], todo[n, 2] = place, cluster, bucket
            count[bucket + 1] += 1
            n += 1
    for bucket in range(_N_BUCKETS):
        count[bucket + 1] += count[bucket]
    for i in range(n):
        bucket = todo[i, 2]
        todo[count[bucket], 3] = i
        count[bucket] += 1
    return n


@inlined
def is_hidden(bound, scale_x, scale_y, centre_x, centre_y, window, depth):
    """Whether all samples in a small cluster's rectangle are nearer than its nearest point."""
    nearest, radius = f32(1) / bound[2], bound[3]
    farthest = f32(1) / (bound[2] + 2 * radius)
    low, high = bound[0] - radius, bound[0] + radius
    first_x = max(np.int32((low * (nearest if low < 0 else farthest) * scale_x + centre_x) / 256), window[0])
    last_x = min(np.int32((high * (nearest if high > 0 else farthest) * scale_x + centre_x) / 256) + 1, window[2])
    low, high = bound[1] - radius, bound[1] + radius
    first_y = max(np.int32((low * (nearest if low < 0 else farthest) * scale_y + centre_y) / 256), window[1])
    last_y = min(np.int32((high * (nearest if high > 0 else farthest) * scale_y + centre_y) / 256) + 1, window[3])
    if (last_x - first_x) * (last_y - first_y) > 256:  # to look would cost more than to draw
        return False
    for row in range(4 * first_y, 4 * last_y):
        farthest_seen = f32(np.inf)
        for x in range(first_x, last_x):
            farthest_seen = min(farthest_seen, depth[row, x])
        if farthest_seen < nearest:
            return False
    return True


@kernel
def rasterise(
    order, geometry, rotations, places, camera, eye, view, window, is_mirrored, clip, depth, ids, bounds, todo
):
    """Draws geoms into the samples' depth and ids.

    Args:
        order: int64: which geoms.
        geometry: The scene, `packing.Geometry`.
        rotations, places: float64 (G, 3, 3) and (G, 3): every geom's pose in the world.
        camera: float64 (3, 3): rows are the camera's axes in the world; it looks along its negative third.
        eye: float64 (3,): where it is.
        view: float64 (4,): focal length (of half the image's height), near plane in m, width, height.
        window: int64 (4,): left, bottom, right, top: which pixels to draw.
        is_mirrored: Whether the poses are a mirror's image, seen only in front of the plane `clip` (4,).
        depth: float32 (4 H, W): 1/z by row of samples, changed where something is nearer.
        ids: int32 (4 H, W): `geom << TRIANGLE_BITS | triangle`, likewise.
        bounds, todo: Work space, see `seen_clusters`.

    Returns:
        Number of samples that were won.
    """
    near, width, height = f32(view[1]), view[2], view[3]
    # One focal length for both axes: pixels are square.
    scales = np.array([view[0] * height * 128, view[0] * height * 128, width * 128, height * 128], dtype=np.float32)
    matrices = np.empty((len(order), 12), np.float32)
    corners, mirrored = np.zeros((9, CLUSTER), np.float32), np.empty((9, CLUSTER), np.float32)
    verdict = np.zeros(CLUSTER, np.float32)
    polygons = np.empty((2, 8, 4))
    camera_matrices(order, rotations, places, camera, eye, matrices)
    n = seen_clusters(order, geometry, matrices, rotations, places, view, window, clip, is_mirrored, bounds, todo)
    won = 0
    for i in range(n):
        bound = bounds[todo[i, 3]]
        place, cluster = todo[todo[i, 3], 0], todo[todo[i, 3], 1]
        geom, matrix = order[place], matrices[place]
        if bound[2] > near and is_hidden(bound, scales[0], scales[1], scales[2], scales[3], window, depth):
            continue
        first, last = geometry.cluster_rows[cluster, 0], geometry.cluster_rows[cluster, 1]
        name = (geom << TRIANGLE_BITS) - geometry.geom_triangles[geom] + first
        centre = geometry.cluster_bounds[cluster]
        needs_clip = bound[2] <= 2 * near or (
            is_mirrored and plane_distance(geom, centre, rotations, places, clip) < bound[3]
        )
        if needs_clip:
            won += fill_clipped(
                cluster, geom, geometry, matrix, rotations, places, clip, is_mirrored, view, scales, name, depth, ids,
                window, polygons,
            )  # fmt: skip
            continue
        positions = geometry.positions[cluster]
        if is_mirrored:  # the other way round
            for k in range(3):
                for j in range(last - first):
                    mirrored[k, j] = positions[k, j]
                    mirrored[3 + k, j] = positions[6 + k, j]
                    mirrored[6 + k, j] = positions[3 + k, j]
            project(last - first, mirrored, matrix, scales[0], scales[1], scales[2], scales[3], corners, verdict)
        else:
            project(last - first, positions, matrix, scales[0], scales[1], scales[2], scales[3], corners, verdict)
        won += fill_cluster(last - first, corners, verdict, name, depth, ids, window)
    return won


@kernel
def geom_window(ids, geom):
    """left, bottom, right, top of the pixels that show a geom; left is not below right where none does."""
    left, bottom, right, top = ids.shape[1], ids.shape[0] >> 2, 0, 0
    for row in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            if ids[row, x] >= 0 and ids[row, x] >> TRIANGLE_BITS == geom:
                left, right = min(left, x), max(right, x + 1)
                bottom, top = min(bottom, row >> 2), max(top, (row >> 2) + 1)
    return left, bottom, right, top
