"""What colour a triangle has at a pixel: `rendering.shading`, `lighting` and `sampling`, fragment by fragment, in Warp.

Corners are lit (Gouraud, OpenGL 2.1, section 2.14.1), colours interpolated in perspective at the pixel's centre,
textures filtered trilinearly with weights of eight bits.
"""

from __future__ import annotations

import warp as wp

from libero_gym.gpu.rays import Meshes, corner

wp.set_module_options({"enable_backward": False})


@wp.struct
class Looks:
    """What a scene's geoms look like, see `packing.Geometry`; and its L lights.

    Attributes:
        materials: float32 (G, 9).
        texels: uint32 (n,).
        levels: int32 (n_levels, 3).
        textures: int32 (n_textures, 4).
        lights: float32 (L, `packing.LIGHT_SIZE`), without places and directions.
        sky: Index of the sky's texture, -1 for none.
    """

    materials: wp.array2d(dtype=float)
    texels: wp.array(dtype=wp.uint32)
    levels: wp.array2d(dtype=int)
    textures: wp.array2d(dtype=int)
    lights: wp.array2d(dtype=float)
    sky: int


@wp.struct
class Lamps:
    """Where the lights of W worlds are; the headlight's place is the eye, its direction the view.

    Attributes:
        ids: int32 (L,): ids in the model, -1 for the headlight.
        places: float32 (W, n, 3): by the model's id, m.
        directions: float32 (W, n, 3): likewise, of any length.
    """

    ids: wp.array(dtype=int)
    places: wp.array2d(dtype=wp.vec3)
    directions: wp.array2d(dtype=wp.vec3)


@wp.struct
class View:
    """Where a frame is seen from.

    Attributes:
        eye: m.
        axes: Rows are the camera's axes in the world; it looks along its negative third.
        lamp: Where the headlight is, which in a mirror is not the eye, m.
        ahead: Where it shines.
        step: From one pixel to the next at depth 1, m.
        middle_x, middle_y: The pixel in the middle of the image, which may be half a one.
    """

    eye: wp.vec3
    axes: wp.mat33
    lamp: wp.vec3
    ahead: wp.vec3
    step: float
    middle_x: float
    middle_y: float


@wp.func
def ray_at(view: View, x: float, y: float) -> wp.vec3:
    """The point at depth 1, in the eye's frame, of a point in pixels from the bottom left pixel's centre."""
    return wp.vec3((x - view.middle_x) * view.step, (y - view.middle_y) * view.step, -1.0)


@wp.func
def place_of(lamps: Lamps, world: int, light: int, view: View) -> wp.vec3:
    """Where a light is."""
    if lamps.ids[light] < 0:
        return view.lamp
    return lamps.places[world, lamps.ids[light]]


@wp.func
def direction_of(lamps: Lamps, world: int, light: int, view: View) -> wp.vec3:
    """Where a light shines."""
    if lamps.ids[light] < 0:
        return view.ahead
    return wp.normalize(lamps.directions[world, lamps.ids[light]])


@wp.func
def lit(
    looks: Looks, lamps: Lamps, world: int, view: View, geom: int, at: wp.vec3, normal: wp.vec3, scale: float
) -> wp.vec3:
    """Colour of a corner, 0 to 1.

    Args:
        at, normal: Its place and its normal of any length, in the world.
        scale: Multiplies what the material's colour gives, and not highlights.
    """
    normal = normal / wp.sqrt(wp.dot(normal, normal) + 1e-20)
    to_eye = wp.normalize(view.eye - at)
    gloss, shine = looks.materials[geom, 5], looks.materials[geom, 6]
    emission = looks.materials[geom, 4]
    plain, shining = wp.vec3(emission, emission, emission), wp.vec3(0.0, 0.0, 0.0)
    for k in range(looks.lights.shape[0]):
        ahead = direction_of(lamps, world, k, view)
        to_light, strength = -ahead, float(1.0)
        if looks.lights[k, 0] <= 0.0:
            to_light = place_of(lamps, world, k, view) - at
            squared = wp.dot(to_light, to_light) + 1e-20
            distance = wp.sqrt(squared)
            to_light = to_light / distance
            strength = 1.0 / (looks.lights[k, 16] + looks.lights[k, 17] * distance + looks.lights[k, 18] * squared)
            spot = -wp.dot(to_light, ahead)
            if spot >= looks.lights[k, 19]:
                strength *= wp.pow(wp.max(spot, 1e-6), looks.lights[k, 20])
            else:
                strength = 0.0
        facing = wp.dot(normal, to_light)
        for j in range(3):
            plain[j] += strength * (looks.lights[k, 7 + j] + wp.max(facing, 0.0) * looks.lights[k, 10 + j])
        half = wp.dot(normal, wp.normalize(to_light + to_eye))
        if facing > 0.0 and half > 0.0:
            highlight = wp.pow(wp.clamp(half, 1e-6, 1.0), shine) * gloss * strength
            for j in range(3):
                shining[j] += highlight * looks.lights[k, 13 + j]
    colour = wp.vec3(0.0, 0.0, 0.0)
    for j in range(3):
        colour[j] = wp.clamp(plain[j] * looks.materials[geom, j] * scale + shining[j], 0.0, 1.0)
    return colour


@wp.func
def cube_face(s: float, t: float, r: float) -> wp.vec3:
    """Face of a cube map that a direction meets, and the coordinates there (OpenGL 2.1, table 3.19)."""
    x, y, z = wp.abs(s), wp.abs(t), wp.abs(r)
    face, u, v, major = float(4.0), s, -t, z
    if x >= y and x >= z:
        face, u, v, major = 0.0, -r, -t, x
        if s < 0.0:
            face, u = 1.0, r
    elif y >= z:
        face, u, v, major = 2.0, s, r, y
        if t < 0.0:
            face, v = 3.0, -r
    elif r < 0.0:
        face, u = 5.0, -s
    return wp.vec3(face, u * 0.5 / major + 0.5, v * 0.5 / major + 0.5)


@wp.func
def mixed(a: wp.uint32, b: wp.uint32, weight: wp.uint32) -> wp.uint32:
    """Texels a and b, channel by channel, with b's weight out of 256, rounded to nearest."""
    both, green = wp.uint32(0xFF00FF), wp.uint32(0xFF)
    rest, eight = wp.uint32(256) - weight, wp.uint32(8)
    red_blue = (((a & both) * rest + (b & both) * weight + wp.uint32(0x800080)) >> eight) & both
    middle = ((((a >> eight) & green) * rest + ((b >> eight) & green) * weight + wp.uint32(0x80)) >> eight) & green
    return red_blue | (middle << eight)


@wp.func
def texel_pair(coordinate: float, size: int, repeats: bool) -> wp.vec3i:
    """The texels on both sides of a coordinate along an axis of ``size`` texels, and the 8-bit weight of the second."""
    fixed = int(wp.floor((coordinate * float(size) - 0.5) * 256.0))
    first = fixed >> 8
    second, last = first + 1, size - 1
    if first < 0:
        first = wp.where(repeats, last, 0)
    if second > last:
        second = wp.where(repeats, 0, last)
    return wp.vec3i(first, second, fixed & 255)


@wp.func
def in_level(looks: Looks, level: int, face: int, s: float, t: float, repeats: bool) -> wp.uint32:
    """A texture's colour in one of its levels, filtered bilinearly."""
    width, height = looks.levels[level, 1], looks.levels[level, 2]
    start = looks.levels[level, 0] + face * width * height
    x, y = texel_pair(s, width, repeats), texel_pair(t, height, repeats)
    low, high = start + y[0] * width, start + y[1] * width
    across = wp.uint32(x[2])
    below = mixed(looks.texels[low + x[0]], looks.texels[low + x[1]], across)
    above = mixed(looks.texels[high + x[0]], looks.texels[high + x[1]], across)
    return mixed(below, above, wp.uint32(y[2]))


@wp.func
def texture_at(looks: Looks, texture: int, is_cube: bool, at: wp.vec3, squared_texels: float) -> wp.vec3:
    """A texture's colour, 0 to 1, filtered trilinearly.

    Args:
        at: Texture coordinates.
        squared_texels: Texels, squared, from this pixel to the next. Their logarithm is llvmpipe's: exponent + mantissa
            - 1, from the bits of a float.
    """
    face, s, t = int(0), at[0] - wp.floor(at[0]), at[1] - wp.floor(at[1])
    if is_cube:
        met = cube_face(at[0], at[1], at[2])
        s, t = met[1], met[2]
        if looks.textures[texture, 2] >= 6:  # else one image for all six
            face = int(met[0])
    first, n_levels = looks.textures[texture, 0], looks.textures[texture, 1]
    level, weight = int(0), int(0)
    if squared_texels > 1.0:
        bits = wp.cast(squared_texels, wp.int32)
        mantissa = wp.cast((bits & 0x7FFFFF) | 0x3F800000, wp.float32)
        detail = 0.5 * (float((bits >> 23) - 128) + mantissa)
        level = int(detail)
        weight = int((detail - float(level)) * 256.0)
        if level >= n_levels - 1:
            level, weight = n_levels - 1, 0
    colour = in_level(looks, first + level, face, s, t, not is_cube)
    if weight > 0:
        further = in_level(looks, first + level + 1, face, s, t, not is_cube)
        colour = mixed(colour, further, wp.uint32(weight))
    byte, eight, sixteen = wp.uint32(0xFF), wp.uint32(8), wp.uint32(16)
    red, green, blue = colour & byte, (colour >> eight) & byte, (colour >> sixteen) & byte
    return wp.vec3(float(red), float(green), float(blue)) * (1.0 / 255.0)


@wp.func
def sky_at(looks: Looks, direction: wp.vec3) -> wp.vec3:
    """What is seen where nothing is; the sky's cube has its axes turned."""
    if looks.sky < 0:
        return wp.vec3(0.0, 0.0, 0.0)
    return texture_at(looks, looks.sky, True, wp.vec3(direction[0], direction[2], -direction[1]), 0.0)


@wp.func
def fragment(
    meshes: Meshes,
    looks: Looks,
    lamps: Lamps,
    world: int,
    view: View,
    rotation: wp.mat33,
    place: wp.vec3,
    geom: int,
    triangle: int,
    x: int,
    y: int,
    scale: float,
) -> wp.vec3:
    """Colour of a triangle at a pixel's centre, 0 to 1, even where that lies outside of it, as multisampling shades.

    A ray d meets the triangle's plane at corner 0 + u * edge 1 + v * edge 2, where u = d . a / d . n and
    v = d . b / d . n.

    Args:
        rotation, place: Pose of the geom.
        x, y: The pixel, from the bottom left.
        scale: See `lit`.
    """
    at = rotation * corner(meshes, triangle, 0) + place
    at1 = rotation * corner(meshes, triangle, 3) + place
    at2 = rotation * corner(meshes, triangle, 6) + place
    colour = lit(looks, lamps, world, view, geom, at, rotation * corner(meshes, triangle, 9), scale)
    colour1 = lit(looks, lamps, world, view, geom, at1, rotation * corner(meshes, triangle, 12), scale)
    colour2 = lit(looks, lamps, world, view, geom, at2, rotation * corner(meshes, triangle, 15), scale)
    start = view.axes * (at - view.eye)
    e1, e2 = view.axes * (at1 - at), view.axes * (at2 - at)
    n, a, b = wp.cross(e2, e1), wp.cross(start, e2), wp.cross(e1, start)
    ray = ray_at(view, float(x), float(y))
    inverse = 1.0 / wp.dot(ray, n)
    u, v = wp.dot(ray, a) * inverse, wp.dot(ray, b) * inverse
    shade = colour + u * (colour1 - colour) + v * (colour2 - colour)
    kind = looks.materials[geom, 8]
    if kind <= 0.0:
        return shade
    texture, is_cube = int(looks.materials[geom, 7]), kind > 1.0
    origin = corner(meshes, triangle, 18)
    along, aside = corner(meshes, triangle, 21) - origin, corner(meshes, triangle, 24) - origin
    coordinates = origin + u * along + v * aside
    # Texels from the even pixel of the 2 x 2 block to its neighbours, the longer way.
    even = ray_at(view, float(x - (x & 1)), float(y - (y & 1)))
    depth, at_u, at_v = wp.dot(even, n), wp.dot(even, a), wp.dot(even, b)
    right = view.step / (depth * (depth + view.step * n[0]))
    above = view.step / (depth * (depth + view.step * n[1]))
    by_x = along * ((a[0] * depth - n[0] * at_u) * right) + aside * ((b[0] * depth - n[0] * at_v) * right)
    by_y = along * ((a[1] * depth - n[1] * at_u) * above) + aside * ((b[1] * depth - n[1] * at_v) * above)
    first = looks.textures[texture, 0]
    texels_x, texels_y = float(looks.levels[first, 1]), float(looks.levels[first, 2])
    squared_texels = float(0.0)
    if is_cube:
        largest = wp.max(wp.abs(coordinates[0]), wp.max(wp.abs(coordinates[1]), wp.abs(coordinates[2])))
        across_texels = 0.5 * texels_x / largest
        squared_texels = across_texels * across_texels * wp.max(wp.dot(by_x, by_x), wp.dot(by_y, by_y))
    else:
        size = wp.vec3(texels_x, texels_y, 0.0)
        squared_texels = wp.max(wp.length_sq(wp.cw_mul(by_x, size)), wp.length_sq(wp.cw_mul(by_y, size)))
    return wp.cw_mul(shade, texture_at(looks, texture, is_cube, coordinates, squared_texels))
