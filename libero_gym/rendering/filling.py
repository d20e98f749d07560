"""Which samples a projected triangle wins: small ones are tested sample by sample, large ones by spans.

Coordinates, samples and the fill rule are those of `visibility`.
"""

from __future__ import annotations

import numpy as np

from libero_gym.rendering.kernels import f32, inlined, kernel


@inlined
def plane_distance(geom, point, rotations, places, plane):
    """Signed distance of a point in a geom's frame from a plane in the world."""
    distance = plane[3]
    for k in range(3):
        world = places[geom, k]
        for j in range(3):
            world += rotations[geom, k, j] * point[j]
        distance += plane[k] * world
    return distance


@inlined
def sample_x(row):
    """Where, within its pixel, the sample of a row of samples lies (four rows a pixel)."""
    return 96 + 128 * (row & 1) - 64 * ((row >> 1) & 1)


@inlined
def _cut_span(first, last, value, slope, per_slope):
    """The part of the pixels first to last where `value + slope * pixel` is not negative.

    The quotient is rounded: it may be one off, which whole numbers put right.
    """
    if slope > 0:
        first = max(first, np.int64(np.ceil(-value * per_slope - 0.001)))
        first += 1 if value + slope * first < 0 else 0
    elif slope < 0:
        last = min(last, np.int64(np.floor(-value * per_slope + 0.001)))
        last -= 1 if value + slope * last < 0 else 0
    elif value < 0:
        last = first - 1
    return first, last


@inlined
def _fill_span(row, first, last, at_row, slope_x, name, depth, ids):
    """Draws pixels first to last of a row of samples where they are nearer; gives their number.

    Indices are unsigned: numba lets signed ones count from the end, for which the loop would not vectorise.
    """
    won, start, where = np.int64(0), at_row + slope_x * (first << 8), np.uint64(first)
    for k in range(np.uint64(last + 1 - first) if last >= first else np.uint64(0)):
        w = f32(start + slope_x * np.float64(np.int64(k) << 8))
        if w > depth[np.uint64(row), where + k]:
            depth[np.uint64(row), where + k] = w
            ids[np.uint64(row), where + k] = name
            won += 1
    return won


@kernel
def fill_triangle(x0, y0, w0, x1, y1, w1, x2, y2, w2, area, name, depth, ids, left, bottom, right, top):
    """Draws a counter-clockwise triangle with whole coordinates; gives the number of samples that it won.

    Edge functions are `A x + B y + C >= 0`; edges that do not own their points subtract one, which for whole numbers is
    the fill rule.
    """
    min_x, max_x = min(x0, x1, x2), max(x0, x1, x2)
    min_y, max_y = min(y0, y1, y2), max(y0, y1, y2)
    a0, b0 = y0 - y1, x1 - x0
    a1, b1 = y1 - y2, x2 - x1
    a2, b2 = y2 - y0, x0 - x2
    c0, c1, c2 = -(a0 * x0 + b0 * y0), -(a1 * x1 + b1 * y1), -(a2 * x2 + b2 * y2)
    if not (a0 > 0 or (a0 == 0 and b0 > 0)):
        c0 -= 1
    if not (a1 > 0 or (a1 == 0 and b1 > 0)):
        c1 -= 1
    if not (a2 > 0 or (a2 == 0 and b2 > 0)):
        c2 -= 1
    # 1/z is linear in window coordinates.
    slope_x = (a1 * w0 + a2 * w1 + a0 * w2) / area
    slope_y = (b1 * w0 + b2 * w1 + b0 * w2) / area
    at_origin = w0 - slope_x * x0 - slope_y * y0
    per_a0, per_a1, per_a2 = 1 / np.float64(a0 << 8), 1 / np.float64(a1 << 8), 1 / np.float64(a2 << 8)
    won = 0
    for row in range(max((min_y + 31) >> 6, bottom << 2), min((max_y - 32) >> 6, (top << 2) - 1) + 1):
        offset = sample_x(row)
        first, last = max((min_x - offset + 255) >> 8, left), min((max_x - offset) >> 8, right - 1)
        if first > last:
            continue
        y = 32 + 64 * row
        e0, e1, e2 = b0 * y + c0 + a0 * offset, b1 * y + c1 + a1 * offset, b2 * y + c2 + a2 * offset
        at_row = slope_y * y + at_origin + slope_x * offset
        if last - first > 8:  # solve for the span instead of testing each pixel
            first, last = _cut_span(first, last, e0, a0 << 8, per_a0)
            first, last = _cut_span(first, last, e1, a1 << 8, per_a1)
            first, last = _cut_span(first, last, e2, a2 << 8, per_a2)
            won += _fill_span(row, first, last, at_row, slope_x, name, depth, ids)
        else:
            for pixel_x in range(first, last + 1):
                x = pixel_x << 8
                if ((e0 + a0 * x) | (e1 + a1 * x) | (e2 + a2 * x)) >= 0:
                    w = f32(at_row + slope_x * x)
                    if w > depth[row, pixel_x]:
                        depth[row, pixel_x] = w
                        ids[row, pixel_x] = name
                        won += 1
    return won


@kernel
def clipped_polygon(polygon, n, distance, other):
    """The part of a polygon in front of a plane (Sutherland and Hodgman, 1974); its number of corners.

    Args:
        polygon: float64 (8, 4), its first n rows; replaced by the result.
        n: Number of corners.
        distance: Which column holds the distance to the plane: 2 the near plane's, 3 the mirror's.
        other: Work space like `polygon`.
    """
    m = 0
    for p in range(n):
        q = p + 1 if p + 1 < n else 0
        dp, dq = polygon[p, distance], polygon[q, distance]
        if dp >= 0:
            other[m] = polygon[p]
            m += 1
        if (dp >= 0) != (dq >= 0):
            share = dp / (dp - dq)
            for k in range(4):
                other[m, k] = polygon[p, k] + share * (polygon[q, k] - polygon[p, k])
            m += 1
    for p in range(m):
        polygon[p] = other[p]
    return m


@kernel
def fill_polygon(polygon, n, name, depth, ids, window):
    """Draws a convex polygon of n corners (x, y in whole 1/256 pixels, 1/z) as a fan of triangles; samples won."""
    won = 0
    x0, y0 = np.int64(polygon[0, 0]), np.int64(polygon[0, 1])
    for k in range(1, n - 1):
        x1, y1 = np.int64(polygon[k, 0]), np.int64(polygon[k, 1])
        x2, y2 = np.int64(polygon[k + 1, 0]), np.int64(polygon[k + 1, 1])
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area > 0:
            won += fill_triangle(
                x0, y0, polygon[0, 2], x1, y1, polygon[k, 2], x2, y2, polygon[k + 1, 2], area, name, depth, ids,
                window[0], window[1], window[2], window[3],
            )  # fmt: skip
    return won


@kernel
def fill_clipped(
    cluster, geom, geometry, matrix, rotations, places, clip, is_mirrored, view, scales, name, depth, ids, window, work
):
    """Draws a cluster that reaches behind the near plane or the mirror, triangle by triangle; samples won."""
    near, won = view[1], 0
    first, last = geometry.cluster_rows[cluster, 0], geometry.cluster_rows[cluster, 1]
    positions = geometry.positions[cluster]
    polygon, other = work[0], work[1]
    corner = np.empty(3)
    for i in range(last - first):
        for k in range(3):
            source = k if not is_mirrored or k == 0 else 3 - k  # a mirror turns triangles round
            for axis in range(3):
                corner[axis] = positions[3 * source + axis, i]
            x, y, z = corner[0], corner[1], corner[2]
            polygon[k, 0] = matrix[0] * x + matrix[1] * y + matrix[2] * z + matrix[3]
            polygon[k, 1] = matrix[4] * x + matrix[5] * y + matrix[6] * z + matrix[7]
            polygon[k, 2] = -(matrix[8] * x + matrix[9] * y + matrix[10] * z + matrix[11]) - near
            polygon[k, 3] = plane_distance(geom, corner, rotations, places, clip) if is_mirrored else 1.0
        n = clipped_polygon(polygon, 3, 2, other)
        if is_mirrored:
            n = clipped_polygon(polygon, n, 3, other)
        for k in range(n):
            w = 1.0 / (polygon[k, 2] + near)
            polygon[k, 0] = np.floor(polygon[k, 0] * w * scales[0] + scales[2] + 0.5)
            polygon[k, 1] = np.floor(polygon[k, 1] * w * scales[1] + scales[3] + 0.5)
            polygon[k, 2] = w
        won += fill_polygon(polygon, n, name + i, depth, ids, window)
    return won


@kernel
def fill_cluster(n, corners, verdict, name, depth, ids, window):
    """Draws a projected cluster: small triangles sample by sample, large ones by `fill_triangle`; samples won."""
    left, bottom, right, top = window[0], window[1], window[2], window[3]
    won = 0
    for i in range(n):
        if verdict[i] == 0:
            continue
        rows = np.int32(verdict[i])
        x0, y0, w0 = np.int64(corners[0, i]), np.int64(corners[1, i]), corners[6, i]
        x1, y1, w1 = np.int64(corners[2, i]), np.int64(corners[3, i]), corners[7, i]
        x2, y2, w2 = np.int64(corners[4, i]), np.int64(corners[5, i]), corners[8, i]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        min_x, min_y = min(x0, x1, x2), min(y0, y1, y2)
        if rows == 8:
            is_outside = (
                max(x0, x1, x2) < left << 8 or min_x >= right << 8 or max(y0, y1, y2) < bottom << 8 or min_y >= top << 8
            )
            if area > 0 and not is_outside:
                won += fill_triangle(
                    x0, y0, w0, x1, y1, w1, x2, y2, w2, area, name + i, depth, ids, left, bottom, right, top
                )
            continue
        row = (min_y + 31) >> 6
        while rows:
            if rows & 1:
                offset = sample_x(row)
                x = (min_x - offset + 255) >> 8
                if left <= x < right and bottom <= row >> 2 < top:
                    px, py = (x << 8) + offset, 32 + 64 * row
                    e0 = (x1 - x0) * (py - y0) - (y1 - y0) * (px - x0)
                    e1 = (x2 - x1) * (py - y1) - (y2 - y1) * (px - x1)
                    w = f32((e1 * w0 + (area - e0 - e1) * w1 + e0 * w2) / area)
                    if w > depth[row, x]:
                        depth[row, x] = w
                        ids[row, x] = name + i
                        won += 1
            rows >>= 1
            row += 1
    return won
