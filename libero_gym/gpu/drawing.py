"""The kernels that draw a frame of each world: rays for what is seen, fixed-function lighting for how it looks.

`culling` lists what parts of a frame may show, `see` finds what samples show, and `paint` colours them. A pixel has
llvmpipe's four samples; each distinct triangle of a pixel is shaded once. Rows of a frame are those of
`rendering.renderer.render`: turned by 180 degrees against OpenGL's.
"""

from __future__ import annotations

import warp as wp

from libero_gym.gpu.culling import Parts, may_meet, pixel_of
from libero_gym.gpu.rays import Hit, Meshes, Ray, meet_geom, misses
from libero_gym.gpu.shading import Lamps, Looks, View, fragment, ray_at, sky_at
from libero_gym.rendering.packing import OPAQUE

# Unrolled loops would make the kernels larger than an instruction cache.
wp.set_module_options({"enable_backward": False, "max_unroll": 1})

_OPAQUE = wp.constant(OPAQUE)
_FAR = wp.constant(1.0e10)
# Half a pixel's diagonal, and a little more.
_PIXEL_RADIUS = wp.constant(0.72)
# How much farther than a surface the next one is.
_BEYOND = wp.constant(1.0 + 1.0e-5)
MAX_LAYERS = 8
"""Triangles of a transparent geom that a sample sees through."""
_MAX_LAYERS = wp.constant(MAX_LAYERS)


class Colours(wp.types.matrix(shape=(4, 3), dtype=wp.float32)):
    """Colours of four samples in whole levels, 0 to 255."""


@wp.struct
class Poses:
    """Where G geoms are in W worlds.

    Attributes:
        rotations, places: (W, G): from the geom's frame to the world's, m.
        spheres: (G,): centre and radius of what bounds it in its own frame, m.
        alpha: float32 (W, G): opacity.
    """

    rotations: wp.array2d(dtype=wp.mat33)
    places: wp.array2d(dtype=wp.vec3)
    spheres: wp.array(dtype=wp.vec4)
    alpha: wp.array2d(dtype=float)


@wp.struct
class Seen:
    """Where G geoms are in the frames of C cameras' eyes.

    Attributes:
        rotations, places: (W, C, G), m.
        spheres: (W, C, G), m.
    """

    rotations: wp.array3d(dtype=wp.mat33)
    places: wp.array3d(dtype=wp.vec3)
    spheres: wp.array3d(dtype=wp.vec4)


@wp.struct
class Samples:
    """What the four samples of pixels show, (worlds, C, pixels); pixels count tile by tile, see `culling.pixel_of`.

    Attributes:
        geoms: Geoms, -1 for none. triangles: Their triangles.
        depths: How deep these are, m.
    """

    geoms: wp.array3d(dtype=wp.vec4i)
    triangles: wp.array3d(dtype=wp.vec4i)
    depths: wp.array3d(dtype=wp.vec4)


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


@wp.kernel
def pose_geoms(
    body_rotations: wp.array2d(dtype=wp.mat33),
    body_places: wp.array2d(dtype=wp.vec3),
    body: wp.array(dtype=int),
    rotation: wp.array(dtype=wp.mat33),
    place: wp.array(dtype=wp.vec3),
    worlds: wp.array(dtype=int),
    poses: Poses,
):
    """Puts every geom of the worlds where its body is; one thread for each of (worlds, G)."""
    place_of_world, geom = wp.tid()
    world = worlds[place_of_world]
    turn = body_rotations[world, body[geom]]
    poses.rotations[world, geom] = turn * rotation[geom]
    poses.places[world, geom] = turn * place[geom] + body_places[world, body[geom]]


@wp.kernel
def show_flames(
    flames: wp.array(dtype=int),
    burner_of: wp.array(dtype=int),
    shown: wp.array2d(dtype=int),
    alpha: wp.array2d(dtype=float),
):
    """Shows and hides flames, see `posing.burner_alpha`; one thread for each of (W, flames).

    Args:
        flames: Geoms. burner_of: The burner of each.
        shown: Whether each burner burns, (W, burners).
    """
    world, flame = wp.tid()
    geom = flames[flame]
    if (alpha[world, geom] > 0.0) != (shown[world, burner_of[flame]] != 0):
        alpha[world, geom] = 1.0 - alpha[world, geom]


@wp.kernel
def see_geoms(
    poses: Poses,
    cameras: wp.array(dtype=int),
    camera_places: wp.array2d(dtype=wp.vec3),
    camera_rotations: wp.array2d(dtype=wp.mat33),
    worlds: wp.array(dtype=int),
    seen: Seen,
):
    """Takes every geom into every eye's frame; one thread for each of (worlds, C, G)."""
    place_of_world, number, geom = wp.tid()
    world = worlds[place_of_world]
    camera = cameras[number]
    axes = wp.transpose(camera_rotations[world, camera])
    rotation = axes * poses.rotations[world, geom]
    place = axes * (poses.places[world, geom] - camera_places[world, camera])
    seen.rotations[world, number, geom] = rotation
    seen.places[world, number, geom] = place
    seen.spheres[world, number, geom] = moved(poses.spheres[geom], rotation, place)


@wp.func
def moved(sphere: wp.vec4, rotation: wp.mat33, place: wp.vec3) -> wp.vec4:
    """A sphere in another frame."""
    centre = rotation * wp.vec3(sphere[0], sphere[1], sphere[2]) + place
    return wp.vec4(centre[0], centre[1], centre[2], sphere[3])


@wp.func
def nothing() -> Hit:
    """A hit of nothing."""
    hit = Hit()
    hit.depth = _FAR
    hit.geom = -1
    hit.triangle = -1
    return hit


@wp.func
def level(shade: float) -> float:
    """A colour from 0 to 1 as a whole level."""
    return wp.floor(wp.clamp(shade, 0.0, 1.0) * 255.0 + 0.5)


@wp.func
def levels(shade: wp.vec3) -> wp.vec3:
    """Likewise, of three channels."""
    return wp.vec3(level(shade[0]), level(shade[1]), level(shade[2]))


@wp.func
def sample_ray(view: View, x: int, y: int, sample: int, is_rounded: bool) -> Ray:
    """The ray through one of a pixel's samples."""
    across = wp.vec4i(96, 224, 32, 160)
    up = wp.vec4i(32, 96, 160, 224)
    ray = Ray()
    ray.x = 256 * x + across[sample]
    ray.y = 256 * y + up[sample]
    ray.direction = ray_at(view, float(ray.x - 128) / 256.0, float(ray.y - 128) / 256.0)
    ray.scale = 256.0 / view.step
    ray.middle_x = 256.0 * view.middle_x + 128.0
    ray.middle_y = 256.0 * view.middle_y + 128.0
    ray.is_rounded = is_rounded
    return ray


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


@wp.func
def guess_of(hit: Hit, geom: int) -> int:
    """The triangle of a geom that a neighbouring sample shows, -1 for none."""
    return wp.where(hit.geom == geom, hit.triangle, -1)


@wp.func
def view_of(
    camera: int,
    world: int,
    width: int,
    focals: wp.array(dtype=float),
    camera_places: wp.array2d(dtype=wp.vec3),
    camera_rotations: wp.array2d(dtype=wp.mat33),
) -> View:
    """Where a world's square frames are seen from."""
    view = View()
    view.eye = camera_places[world, camera]
    view.axes = wp.transpose(camera_rotations[world, camera])
    view.lamp = view.eye
    view.ahead = -view.axes[2]
    view.step = 2.0 / (float(width) * focals[camera])
    view.middle_x = 0.5 * float(width - 1)
    view.middle_y = view.middle_x
    return view


@wp.kernel
def see(
    meshes: Meshes,
    poses: Poses,
    seen: Seen,
    parts: Parts,
    cameras: wp.array(dtype=int),
    focals: wp.array(dtype=float),
    camera_places: wp.array2d(dtype=wp.vec3),
    camera_rotations: wp.array2d(dtype=wp.mat33),
    near: float,
    width: int,
    first: int,
    worlds: wp.array(dtype=int),
    samples: Samples,
):
    """Finds what opaque geoms the samples of a pixel show; one thread for each of (some worlds, cameras, pixels).

    Args:
        cameras: Their ids. focals: Focal lengths of half the image's height, by id.
        camera_places, camera_rotations: (W, n), by id.
        near: Depth of the near plane, m.
        width: Side of the frames in pixels.
        first: The first of these worlds among ``worlds``.
        worlds: Which worlds are drawn.
        samples: Filled.
    """
    row, number, index = wp.tid()
    world = worlds[first + row]
    at = pixel_of(index, width)
    x, y, tile = at[0], at[1], at[2]
    if x >= width or y >= width:
        return
    view = view_of(cameras[number], world, width, focals, camera_places, camera_rotations)
    middle = ray_at(view, float(x), float(y))
    ray0, ray1 = sample_ray(view, x, y, 0, True), sample_ray(view, x, y, 1, True)
    ray2, ray3 = sample_ray(view, x, y, 2, True), sample_ray(view, x, y, 3, True)
    hit0, hit1, hit2, hit3 = nothing(), nothing(), nothing(), nothing()
    count = parts.counts[world, number, tile]
    for i in range(wp.where(count < 0, poses.alpha.shape[1], count)):
        geom = int(i)
        if count >= 0:
            geom = int(parts.lists[world, number, tile, i])
        elif poses.alpha[world, geom] < _OPAQUE:
            continue
        farthest = wp.max(wp.max(hit0.depth, hit1.depth), wp.max(hit2.depth, hit3.depth))
        if misses(seen.spheres[world, number, geom], middle, _PIXEL_RADIUS * view.step, farthest):
            continue
        rotation, place = seen.rotations[world, number, geom], seen.places[world, number, geom]
        hit0 = meet_geom(meshes, geom, -1, rotation, place, ray0, near, hit0)
        hit1 = meet_geom(meshes, geom, guess_of(hit0, geom), rotation, place, ray1, near, hit1)
        hit2 = meet_geom(meshes, geom, guess_of(hit1, geom), rotation, place, ray2, near, hit2)
        hit3 = meet_geom(meshes, geom, guess_of(hit2, geom), rotation, place, ray3, near, hit3)
    samples.geoms[row, number, index] = wp.vec4i(hit0.geom, hit1.geom, hit2.geom, hit3.geom)
    samples.triangles[row, number, index] = wp.vec4i(hit0.triangle, hit1.triangle, hit2.triangle, hit3.triangle)
    samples.depths[row, number, index] = wp.vec4(hit0.depth, hit1.depth, hit2.depth, hit3.depth)


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
