"""What a part of a frame can show at all: opaque geoms by tiles of pixels, and transparent ones in their order."""

from __future__ import annotations

import warp as wp

from libero_gym.gpu.shading import View, ray_at
from libero_gym.rendering.packing import OPAQUE

wp.set_module_options({"enable_backward": False})

_OPAQUE = wp.constant(OPAQUE)
TILE = 8
"""Side of a tile in pixels."""
_TILE = wp.constant(TILE)
MOST = 32
"""Geoms that a tile's list holds; a tile with more has none, and its pixels look at all geoms."""
_MOST = wp.constant(MOST)
PIXEL_RADIUS = 0.72
"""Half a pixel's diagonal, and a little more."""
# From a tile's middle to its farthest sample, in pixels, and a little more.
_TILE_RADIUS = wp.constant(0.7072 * (TILE - 1) + PIXEL_RADIUS)


@wp.struct
class Parts:
    """What tiles and frames may show, for W worlds and C cameras.

    Attributes:
        counts: int32 (W, C, T): length of each tile's list; -1 if it would be too long.
        lists: int16 (W, C, T, `MOST`): opaque geoms by their number.
        n_veils: int32 (W, C): how many veils can be seen.
        veils: int32 (W, C, n): they, from the nearest.
    """

    counts: wp.array3d(dtype=int)
    lists: wp.array4d(dtype=wp.int16)
    n_veils: wp.array2d(dtype=int)
    veils: wp.array3d(dtype=int)


@wp.func
def pixel_of(index: int, width: int) -> wp.vec3i:
    """Column, row and tile of a frame's pixel, which are counted tile by tile; those beyond the frame exist, too."""
    across = (width + _TILE - 1) // _TILE
    tile, within = index // (_TILE * _TILE), index % (_TILE * _TILE)
    return wp.vec3i((tile % across) * _TILE + within % _TILE, (tile // across) * _TILE + within // _TILE, tile)


@wp.func
def lens_of(focal: float, width: int) -> View:
    """A view's steps and middle for square frames; ``focal`` is the focal length of half their height."""
    view = View()
    view.step = 2.0 / (float(width) * focal)
    view.middle_x = 0.5 * float(width - 1)
    view.middle_y = view.middle_x
    return view


@wp.func
def may_meet(sphere: wp.vec4, direction: wp.vec3, widening: float) -> bool:
    """Whether a ray from the eye, or one that is ``widening`` times its depth beside it, can meet a sphere."""
    centre = wp.vec3(sphere[0], sphere[1], sphere[2])
    deepest = sphere[3] - centre[2]
    radius = sphere[3] + widening * deepest
    nearest = centre - wp.dot(centre, direction) / wp.length_sq(direction) * direction
    return deepest > 0.0 and wp.length_sq(nearest) <= radius * radius


@wp.func
def nearest_of(sphere: wp.vec4) -> float:
    """The least depth of a sphere, m."""
    return -sphere[2] - sphere[3]


@wp.kernel
def list_geoms(
    alpha: wp.array2d(dtype=float),
    spheres: wp.array3d(dtype=wp.vec4),
    cameras: wp.array(dtype=int),
    focals: wp.array(dtype=float),
    worlds: wp.array(dtype=int),
    width: int,
    parts: Parts,
):
    """Lists the opaque geoms that a tile may show; one thread for each of (worlds, C, T).

    Args:
        alpha: (W, G): opacity.
        spheres: (W, C, G): what bounds each geom, in the eye's frame, m.
        cameras: Their ids. focals: Focal lengths of half the image's height, by id.
        worlds: Which worlds.
        width: Side of the frames in pixels.
    """
    place_of_world, number, tile = wp.tid()
    world = worlds[place_of_world]
    view = lens_of(focals[cameras[number]], width)
    first = pixel_of(tile * _TILE * _TILE, width)
    middle = 0.5 * float(_TILE - 1)
    direction = ray_at(view, float(first[0]) + middle, float(first[1]) + middle)
    count = int(0)
    for geom in range(alpha.shape[1]):
        if count < 0 or alpha[world, geom] < _OPAQUE:
            continue
        if may_meet(spheres[world, number, geom], direction, _TILE_RADIUS * view.step):
            if count == _MOST:
                count = -1
            else:
                place = int(count)
                while place > 0 and nearest_of(
                    spheres[world, number, int(parts.lists[world, number, tile, place - 1])]
                ) > nearest_of(spheres[world, number, geom]):
                    parts.lists[world, number, tile, place] = parts.lists[world, number, tile, place - 1]
                    place -= 1
                parts.lists[world, number, tile, place] = wp.int16(geom)
                count += 1
    parts.counts[world, number, tile] = count


@wp.kernel
def order_veils(
    veils: wp.array(dtype=int),
    alpha: wp.array2d(dtype=float),
    spheres: wp.array3d(dtype=wp.vec4),
    worlds: wp.array(dtype=int),
    parts: Parts,
):
    """Sorts what is transparent by the distance of its bounding sphere; one thread for each of (worlds, C)."""
    place_of_world, number = wp.tid()
    world = worlds[place_of_world]
    count = int(0)
    for i in range(veils.shape[0]):
        geom = veils[i]
        if alpha[world, geom] <= 0.0 or alpha[world, geom] >= _OPAQUE:
            continue
        place = int(count)
        while place > 0 and distance_of(spheres[world, number, parts.veils[world, number, place - 1]]) > distance_of(
            spheres[world, number, geom]
        ):
            parts.veils[world, number, place] = parts.veils[world, number, place - 1]
            place -= 1
        parts.veils[world, number, place] = geom
        count += 1
    parts.n_veils[world, number] = count


@wp.func
def distance_of(sphere: wp.vec4) -> float:
    """How far a sphere is from the eye, m."""
    return wp.length(wp.vec3(sphere[0], sphere[1], sphere[2])) - sphere[3]
