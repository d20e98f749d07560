"""The kernel that colours what samples show: fixed-function lighting, what a mirror adds, and what is transparent.

`drawing` finds what samples show. Each distinct triangle of a pixel is shaded once.
"""

from __future__ import annotations

import warp as wp

from libero_gym.gpu.culling import PIXEL_RADIUS, Parts, may_meet, pixel_of
from libero_gym.gpu.drawing import Poses, Samples, Seen, moved, nothing, sample_ray, view_of
from libero_gym.gpu.rays import Hit, Meshes, Ray, meet_geom, misses
from libero_gym.gpu.shading import Lamps, Looks, View, fragment, ray_at, sky_at
from libero_gym.rendering.packing import OPAQUE

# Unrolled loops would make the kernels larger than an instruction cache.
wp.set_module_options({"enable_backward": False, "max_unroll": 1})

_OPAQUE = wp.constant(OPAQUE)
_PIXEL_RADIUS = wp.constant(PIXEL_RADIUS)
# How much farther than a surface the next one is.
_BEYOND = wp.constant(1.0 + 1.0e-5)
MAX_LAYERS = 8
"""Triangles of a transparent geom that a sample sees through."""
_MAX_LAYERS = wp.constant(MAX_LAYERS)


class Colours(wp.types.matrix(shape=(4, 3), dtype=wp.float32)):
    """Colours of four samples in whole levels, 0 to 255."""


@wp.struct
class Mirror:
    """The surface that reflects; ``geom`` is -1 if none does.

    Attributes:
        height: How far its face is from its place along its third axis, m.
        reflectance: Share of the colour that it gives back.
    """

    geom: int
    height: float
    reflectance: float


@wp.func
def level(shade: float) -> float:
    """A colour from 0 to 1 as a whole level."""
    return wp.floor(wp.clamp(shade, 0.0, 1.0) * 255.0 + 0.5)


@wp.func
def levels(shade: wp.vec3) -> wp.vec3:
    """Likewise, of three channels."""
    return wp.vec3(level(shade[0]), level(shade[1]), level(shade[2]))


@wp.func
def met_beyond(meshes: Meshes, poses: Poses, world: int, view: View, ray: Ray, near: float, without: int) -> Hit:
    """The first opaque thing that a ray meets beyond a depth, but for one geom."""
    hit = nothing()
    for geom in range(poses.alpha.shape[1]):
        if geom == without or poses.alpha[world, geom] < _OPAQUE:
            continue
        rotation = view.axes * poses.rotations[world, geom]
        place = view.axes * (poses.places[world, geom] - view.eye)
        if not misses(moved(poses.spheres[geom], rotation, place), ray.direction, 0.0, hit.depth):
            hit = meet_geom(meshes, geom, -1, rotation, place, ray, near, hit)
    return hit


@wp.func
def in_mirror(view: View, normal: wp.vec3, face: wp.vec3) -> View:
    """The view from behind a mirror."""
    turn = wp.identity(n=3, dtype=wp.float32) - 2.0 * wp.outer(normal, normal)
    there = view
    there.eye = face + turn * (view.eye - face)
    there.axes = view.axes * turn
    there.lamp = view.eye
    return there


@wp.func
def shaded(
    meshes: Meshes,
    looks: Looks,
    lamps: Lamps,
    poses: Poses,
    world: int,
    view: View,
    geom: int,
    triangle: int,
    x: int,
    y: int,
    scale: float,
) -> wp.vec3:
    """Colour of a world's triangle at a pixel in whole levels; see `shading.fragment`."""
    rotation, place = poses.rotations[world, geom], poses.places[world, geom]
    return levels(fragment(meshes, looks, lamps, world, view, rotation, place, geom, triangle, x, y, scale))


@wp.func
def shade_samples(
    meshes: Meshes,
    looks: Looks,
    lamps: Lamps,
    poses: Poses,
    world: int,
    view: View,
    x: int,
    y: int,
    geoms: wp.vec4i,
    triangles: wp.vec4i,
) -> Colours:
    """Colours of a pixel's samples; each distinct triangle is shaded once."""
    colours = Colours()
    for sample in range(4):
        shade = wp.vec3(0.0, 0.0, 0.0)
        same = int(-1)
        for earlier in range(sample):
            if geoms[earlier] == geoms[sample] and triangles[earlier] == triangles[sample]:
                same = earlier
        if same >= 0:
            shade = wp.vec3(colours[same, 0], colours[same, 1], colours[same, 2])
        elif geoms[sample] < 0:
            shade = levels(sky_at(looks, wp.transpose(view.axes) * ray_at(view, float(x), float(y))))
        else:
            geom = geoms[sample]
            shade = shaded(meshes, looks, lamps, poses, world, view, geom, triangles[sample], x, y, 1.0)
        for k in range(3):
            colours[sample, k] = shade[k]
    return colours


@wp.func
def add_reflection(
    meshes: Meshes,
    looks: Looks,
    lamps: Lamps,
    poses: Poses,
    mirror: Mirror,
    world: int,
    view: View,
    x: int,
    y: int,
    geoms: wp.vec4i,
    triangles: wp.vec4i,
    depths: wp.vec4,
    colours: Colours,
) -> Colours:
    """Adds what a mirror's upper face shows to the samples that show it."""
    for sample in range(4):
        if mirror.geom < 0 or geoms[sample] != mirror.geom or meshes.records[triangles[sample], 11] < 0.9:
            continue
        turn = poses.rotations[world, mirror.geom]
        normal = wp.vec3(turn[0, 2], turn[1, 2], turn[2, 2])
        there = in_mirror(view, normal, poses.places[world, mirror.geom] + mirror.height * normal)
        ray = sample_ray(there, x, y, sample, False)
        hit = met_beyond(meshes, poses, world, there, ray, depths[sample] * _BEYOND, mirror.geom)
        if hit.geom >= 0:
            scale = mirror.reflectance
            shade = shaded(meshes, looks, lamps, poses, world, there, hit.geom, hit.triangle, x, y, scale)
            for k in range(3):
                colours[sample, k] = wp.min(colours[sample, k] + shade[k], 255.0)
    return colours


@wp.kernel
def paint(
    meshes: Meshes,
    looks: Looks,
    lamps: Lamps,
    poses: Poses,
    mirror: Mirror,
    seen: Seen,
    parts: Parts,
    cameras: wp.array(dtype=int),
    focals: wp.array(dtype=float),
    camera_places: wp.array2d(dtype=wp.vec3),
    camera_rotations: wp.array2d(dtype=wp.mat33),
    near: float,
    first: int,
    worlds: wp.array(dtype=int),
    samples: Samples,
    frames: wp.array4d(dtype=wp.uint8),
):
    """Colours a pixel by what its samples show; one thread for each of (some worlds, cameras, pixels).

    Args:
        cameras, focals, camera_places, camera_rotations, near, first, worlds: As for `see`.
        samples: What it found.
        frames: Filled, (worlds * cameras, width, width, 3).
    """
    row, number, index = wp.tid()
    world, width = worlds[first + row], frames.shape[2]
    at = pixel_of(index, width)
    x, y = at[0], at[1]
    if x >= width or y >= width:
        return
    view = view_of(cameras[number], world, width, focals, camera_places, camera_rotations)
    geoms, triangles = samples.geoms[row, number, index], samples.triangles[row, number, index]
    depths = samples.depths[row, number, index]
    colours = shade_samples(meshes, looks, lamps, poses, world, view, x, y, geoms, triangles)
    colours = add_reflection(
        meshes, looks, lamps, poses, mirror, world, view, x, y, geoms, triangles, depths, colours
    )  # fmt: skip
    colours = blend_veils(meshes, looks, lamps, poses, seen, parts, world, number, view, x, y, near, depths, colours)
    frame = (first + row) * cameras.shape[0] + number
    for k in range(3):
        total = int(colours[0, k] + colours[1, k] + colours[2, k] + colours[3, k])
        frames[frame, width - 1 - y, width - 1 - x, k] = wp.uint8((total + 2) >> 2)


@wp.func
def blend_veils(
    meshes: Meshes,
    looks: Looks,
    lamps: Lamps,
    poses: Poses,
    seen: Seen,
    parts: Parts,
    world: int,
    number: int,
    view: View,
    x: int,
    y: int,
    near: float,
    depths: wp.vec4,
    colours: Colours,
) -> Colours:
    """Mixes transparent geoms with what is there, as MuJoCo does: all of them front to back, then back to front."""
    n = parts.n_veils[world, number]
    middle = ray_at(view, float(x), float(y))
    for turn in range(2 * n):
        geom = parts.veils[world, number, wp.where(turn < n, turn, 2 * n - 1 - turn)]
        if not may_meet(seen.spheres[world, number, geom], middle, _PIXEL_RADIUS * view.step):
            continue
        opacity = poses.alpha[world, geom]
        rotation, place = seen.rotations[world, number, geom], seen.places[world, number, geom]
        for sample in range(4):
            ray = sample_ray(view, x, y, sample, True)
            from_depth = near
            for _ in range(_MAX_LAYERS):
                hit = nothing()
                hit.depth = depths[sample]
                hit = meet_geom(meshes, geom, -1, rotation, place, ray, from_depth, hit)
                if hit.geom < 0:
                    break
                shade = shaded(meshes, looks, lamps, poses, world, view, geom, hit.triangle, x, y, 1.0)
                for k in range(3):
                    colours[sample, k] = wp.floor(opacity * shade[k] + (1.0 - opacity) * colours[sample, k] + 0.5)
                from_depth = hit.depth * _BEYOND
    return colours
