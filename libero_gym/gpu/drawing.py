"""The kernels that find what each sample of a frame shows, by rays; `painting` colours it.

`culling` lists what parts of a frame may show. A pixel has llvmpipe's four samples.
"""

from __future__ import annotations

import warp as wp

from libero_gym.gpu.culling import PIXEL_RADIUS, Parts, lens_of, pixel_of
from libero_gym.gpu.rays import Hit, Meshes, Ray, meet_geom, misses
from libero_gym.gpu.shading import View, ray_at
from libero_gym.rendering.packing import OPAQUE

# Unrolled loops would make the kernels larger than an instruction cache.
wp.set_module_options({"enable_backward": False, "max_unroll": 1})

_OPAQUE = wp.constant(OPAQUE)
_FAR = wp.constant(1.0e10)
_PIXEL_RADIUS = wp.constant(PIXEL_RADIUS)


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
    view = lens_of(focals[camera], width)
    view.eye = camera_places[world, camera]
    view.axes = wp.transpose(camera_rotations[world, camera])
    view.lamp = view.eye
    view.ahead = -view.axes[2]
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
