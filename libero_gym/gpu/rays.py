"""Which triangle a ray meets first: a hierarchy of boxes for each mesh, in Warp.

A ray meets a triangle from its front alone, as a rasteriser that leaves out back faces draws it. Directions have length
1 along the view, so that how far something is means its depth in m.
"""

from __future__ import annotations

import warp as wp

wp.set_module_options({"enable_backward": False})

_LARGE = wp.constant(1.0e9)
# How far outside of a triangle, in barycentric coordinates, a rasteriser's rounding may still let it cover a sample.
_SLACK = wp.constant(0.1)


@wp.struct
class Meshes:
    """Triangles of a scene's G geoms; geoms with the same mesh share it.

    Attributes:
        records: float32 (N, 27), see `packing.Geometry`.
        boxes: Hierarchy of all triangles' boxes, a group for each mesh.
        roots: int32 (G,): the group's root, by geom.
    """

    records: wp.array2d(dtype=float)
    boxes: wp.uint64
    roots: wp.array(dtype=int)


@wp.struct
class Ray:
    """A ray from the eye, in the eye's frame: it looks along the negative third axis.

    Attributes:
        direction: The point at depth 1.
        x, y: Where the sample lies in the image, in 1/256 pixel from its lower left corner.
        scale: 1/256 pixels for a slope of 1. middle_x, middle_y: The image's middle, in 1/256 pixel.
        is_rounded: Whether the sample belongs to the triangles that a rasteriser gives it to.
    """

    direction: wp.vec3
    x: int
    y: int
    scale: float
    middle_x: float
    middle_y: float
    is_rounded: bool


@wp.struct
class Hit:
    """What a ray meets; ``geom`` is -1 if that is nothing. ``triangle`` counts through the whole scene."""

    depth: float
    geom: int
    triangle: int


@wp.func
def corner(meshes: Meshes, triangle: int, first: int) -> wp.vec3:
    """Three numbers of a triangle's record."""
    return wp.vec3(
        meshes.records[triangle, first], meshes.records[triangle, first + 1], meshes.records[triangle, first + 2]
    )


@wp.func
def rounded(ray: Ray, at: wp.vec3) -> wp.vec2i:
    """A point of the eye's frame in the image, in whole 1/256 pixels, to which llvmpipe rounds."""
    by_depth = 1.0 / -at[2]
    x = wp.floor(at[0] * by_depth * ray.scale + ray.middle_x + 0.5)
    y = wp.floor(at[1] * by_depth * ray.scale + ray.middle_y + 0.5)
    return wp.vec2i(int(wp.clamp(x, -_LARGE, _LARGE)), int(wp.clamp(y, -_LARGE, _LARGE)))


@wp.func
def is_left(a: wp.vec2i, b: wp.vec2i, x: int, y: int) -> bool:
    """Whether a sample lies left of the line from a to b, or on it if it is the left or bottom edge."""
    dx, dy = wp.int64(b[0] - a[0]), wp.int64(b[1] - a[1])
    side = dx * wp.int64(y - a[1]) - dy * wp.int64(x - a[0])
    owns = b[1] < a[1] or (b[1] == a[1] and b[0] > a[0])
    return side > wp.int64(0) or (owns and side == wp.int64(0))


@wp.func
def covers(ray: Ray, a: wp.vec3, b: wp.vec3, c: wp.vec3) -> bool:
    """Whether a rasteriser gives the sample to a triangle of the eye's frame, by the rule of `rendering.visibility`."""
    p, q, r = rounded(ray, a), rounded(ray, b), rounded(ray, c)
    return is_left(p, q, ray.x, ray.y) and is_left(q, r, ray.x, ray.y) and is_left(r, p, ray.x, ray.y)


@wp.func
def meet_triangle(
    meshes: Meshes,
    geom: int,
    triangle: int,
    rotation: wp.mat33,
    place: wp.vec3,
    ray: Ray,
    origin: wp.vec3,
    direction: wp.vec3,
    near: float,
    hit: Hit,
) -> Hit:
    """The hit, or a nearer one of this triangle beyond the depth ``near``.

    Ray and triangle meet by Möller and Trumbore (Journal of Graphics Tools, 1997). On the edges, a rasteriser's rule
    decides, for triangles in front of the eye.

    Args:
        rotation, place: From the geom's frame to the eye's.
        origin, direction: The ray in the geom's frame.
    """
    a, b, c = corner(meshes, triangle, 0), corner(meshes, triangle, 3), corner(meshes, triangle, 6)
    e1, e2, s = b - a, c - a, origin - a
    p = wp.cross(direction, e2)
    facing = wp.dot(e1, p)
    if facing <= 0.0:
        return hit
    u = wp.dot(s, p)
    q = wp.cross(s, e1)
    v = wp.dot(direction, q)
    slack = wp.where(ray.is_rounded, _SLACK, 0.0) * facing
    if u < -slack or v < -slack or u + v > facing + slack:
        return hit
    depth = wp.dot(e2, q) / facing
    if depth <= near or depth >= hit.depth:
        return hit
    if ray.is_rounded:
        a = rotation * a + place
        b = rotation * b + place
        c = rotation * c + place
        if wp.max(a[2], wp.max(b[2], c[2])) < -near:
            if not covers(ray, a, b, c):
                return hit
        elif u < 0.0 or v < 0.0 or u + v > facing:
            return hit
    hit.depth = depth
    hit.geom = geom
    hit.triangle = triangle
    return hit


@wp.func
def meet_geom(
    meshes: Meshes, geom: int, guess: int, rotation: wp.mat33, place: wp.vec3, ray: Ray, near: float, hit: Hit
) -> Hit:
    """The hit, or a nearer one of this geom beyond the depth ``near``.

    Args:
        guess: A triangle of the geom that the ray is likely to meet, so that others are looked at only before it; -1
            for none.
        rotation, place: From the geom's frame to the eye's.
    """
    to_geom = wp.transpose(rotation)
    origin, direction = -(to_geom * place), to_geom * ray.direction
    if guess >= 0:
        hit = meet_triangle(meshes, geom, guess, rotation, place, ray, origin, direction, near, hit)
    query = wp.bvh_query_ray(meshes.boxes, origin, direction, meshes.roots[geom])
    triangle = int(0)
    while wp.bvh_query_next(query, triangle, hit.depth):
        hit = meet_triangle(meshes, geom, triangle, rotation, place, ray, origin, direction, near, hit)
    return hit


@wp.func
def misses(sphere: wp.vec4, direction: wp.vec3, widening: float, farthest: float) -> bool:
    """Whether a ray from the eye passes a sphere (centre, radius), or ends before it.

    Args:
        direction: Of the ray, as in `Ray`. widening: How much it widens per m of depth.
        farthest: Depth of its end, m.
    """
    centre = wp.vec3(sphere[0], sphere[1], sphere[2])
    squared = wp.length_sq(direction)
    depth = wp.dot(centre, direction) / squared
    radius = sphere[3] + widening * wp.abs(depth)
    reach = radius / wp.sqrt(squared)
    beside = wp.length_sq(centre - depth * direction)
    return depth + reach < 0.0 or depth - reach > farthest or beside > radius * radius
