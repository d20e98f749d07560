"""What colour the samples have: OpenGL's fixed-function lighting and textures as llvmpipe computes them, in numba.

Each distinct triangle of a pixel is shaded once, at the pixel's centre even where that lies outside of the triangle, as
multisampling does without centroid sampling: a fragment. Corners are lit (Gouraud), colours interpolated in
perspective, textures filtered trilinearly. Fragments are shaded in bands of rows, so that work space is small and stays
in the processor's cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from libero_gym.rendering.kernels import inlined, kernel
from libero_gym.rendering.lighting import light_corners
from libero_gym.rendering.packing import TRIANGLE_BITS, TRIANGLE_MASK
from libero_gym.rendering.sampling import Taps, add_tap, sample_textures

# Triangles seen last are found again in a table of so many entries, so that large ones are lit once a band.
TABLE_SIZE = 4096
# A band of rows ends when it has this many fragments.
_BAND = 2048
# A fragment's pixel and mask of samples in one number: (y << 12 | x) << 4 | mask.
PIXEL_BITS = 12
MAX_SIDE = 1 << PIXEL_BITS


class Work(NamedTuple):
    """Work space for a band of rows: n fragments of at most n triangles."""

    tags: np.ndarray  # int32 (TABLE_SIZE,): ids of triangles
    slots: np.ndarray  # int32 (TABLE_SIZE,): their places among the band's triangles
    names: np.ndarray  # int32 (n,): id of each triangle, by triangle
    pixels: np.ndarray  # int32 (n,): pixel and mask of samples, see `PIXEL_BITS`, by fragment
    triangles: np.ndarray  # int32 (n,): place among the band's triangles, -1 for the background, by fragment
    textured: np.ndarray  # int32 (n,): which fragments have a texture
    records: np.ndarray  # float32 (n, 27): `packing.Geometry.records` of each triangle
    corners: np.ndarray  # float32 (8, 3 n): place (3) and normal (3) in the world, specular, shininess
    sums: np.ndarray  # float32 (6, 3 n): see `lighting.light_corners`
    planes: np.ndarray  # float64 (n, 9): see `prepare_triangles`
    colours: np.ndarray  # float32 (n, 9): likewise
    shades: np.ndarray  # float32 (3, n): colour, by fragment
    texels: np.ndarray  # float32 (3, n): colour of the texture, by textured fragment
    taps: Taps

    @classmethod
    def of(cls, width: int) -> Work:
        """Work space for images of a width."""
        n = _BAND + 4 * width
        return cls(
            tags=np.empty(TABLE_SIZE, np.int32),
            slots=np.empty(TABLE_SIZE, np.int32),
            names=np.empty(n, np.int32),
            pixels=np.empty(n, np.int32),
            triangles=np.empty(n, np.int32),
            textured=np.empty(n, np.int32),
            records=np.empty((n, 27), np.float32),
            corners=np.empty((8, 3 * n), np.float32),
            sums=np.empty((6, 3 * n), np.float32),
            planes=np.empty((n, 9), np.float64),
            colours=np.empty((n, 9), np.float32),
            shades=np.empty((3, n), np.float32),
            texels=np.empty((3, n), np.float32),
            taps=Taps.of(n),
        )


@kernel
def collect_fragments(ids, first_row, window, lowest, work):
    """Lists what has to be shaded in rows from `first_row` on, until the band is full.

    Args:
        ids: As `visibility.rasterise` fills them.
        first_row: Where the band begins.
        window: left, bottom, right, top in pixels.
        lowest: Ids below this are left as they are: 0 shades triangles alone, -1 the background too.
        work: Its names, pixels and triangles are filled.

    Returns:
        The row after the band's last, number of fragments, number of triangles.
    """
    n, n_triangles = 0, 0
    tags, slots, names, pixels, triangles = work.tags, work.slots, work.names, work.pixels, work.triangles
    tags[:] = -1
    y = first_row
    while y < window[3] and n < _BAND:
        for x in range(window[0], window[2]):
            a, b, c, d = ids[4 * y, x], ids[4 * y + 1, x], ids[4 * y + 2, x], ids[4 * y + 3, x]
            if a < lowest and b < lowest and c < lowest and d < lowest:
                continue
            for sample in range(4):
                name = ids[4 * y + sample, x]
                is_repeated = (sample > 0 and name == a) or (sample > 1 and name == b) or (sample > 2 and name == c)
                if name < lowest or is_repeated:
                    continue
                mask = 1 << sample
                if sample < 1 and b == name:
                    mask |= 2
                if sample < 2 and c == name:
                    mask |= 4
                if sample < 3 and d == name:
                    mask |= 8
                pixels[n] = ((y << PIXEL_BITS | x) << 4) | mask
                if name >= 0:
                    entry = (name ^ (name >> TRIANGLE_BITS)) & (TABLE_SIZE - 1)
                    if tags[entry] != name:
                        tags[entry], slots[entry] = name, n_triangles
                        names[n_triangles] = name
                        n_triangles += 1
                    triangles[n] = slots[entry]
                else:
                    triangles[n] = -1
                n += 1
        y += 1
    return y, n, n_triangles


@kernel
def gather_records(n, geometry, names, records):
    """Copies the records of n triangles. It does nothing else, so that many cache misses are waited for at once."""
    source, starts = geometry.records, geometry.geom_triangles
    for i in range(n):
        triangle = (names[i] & TRIANGLE_MASK) + starts[names[i] >> TRIANGLE_BITS]
        for k in range(source.shape[1]):
            records[i, k] = source[triangle, k]


@kernel
def place_corners(n, materials, rotations, places, names, records, corners):
    """Fills the three corners of each of n triangles: place and normal in the world, specular, shininess."""
    for i in range(n):
        geom = names[i] >> TRIANGLE_BITS
        for axis in range(3):
            x, y, z = rotations[geom, axis, 0], rotations[geom, axis, 1], rotations[geom, axis, 2]
            for k in range(3):
                at = x * records[i, 3 * k] + y * records[i, 3 * k + 1] + z * records[i, 3 * k + 2]
                corners[axis, 3 * i + k] = places[geom, axis] + at
                normal = x * records[i, 9 + 3 * k] + y * records[i, 10 + 3 * k] + z * records[i, 11 + 3 * k]
                corners[3 + axis, 3 * i + k] = normal
        for k in range(3):
            corners[6, 3 * i + k], corners[7, 3 * i + k] = materials[geom, 5], materials[geom, 6]


@kernel
def prepare_triangles(n, materials, scale, camera, eye, work):
    """Fills what interpolation needs of n triangles.

    A ray through a pixel meets the triangle's plane at corner 0 + u * edge 1 + v * edge 2, where u = ray . a / ray . n
    and v = ray . b / ray . n: perspective-correct, and right outside of the triangle, too. `work.planes` gets n, a and
    b; `work.colours` the colour of corner 0, and by how much corners 1 and 2 differ from it.

    Args:
        n: Their number.
        materials: `packing.Geometry.materials`.
        scale: Multiplies what the material's colour gives, as a mirror's reflectance does; highlights are not
            multiplied.
        camera, eye: Axes (rows) and place of the camera.
        work: With names, lit corners and sums of lights.
    """
    names, corners, sums, planes, colours = work.names, work.corners, work.sums, work.planes, work.colours
    lit = np.empty((3, 6))
    for i in range(n):
        geom = names[i] >> TRIANGLE_BITS
        emission = materials[geom, 4]
        for k in range(3):
            c = 3 * i + k
            x, y, z = corners[0, c] - eye[0], corners[1, c] - eye[1], corners[2, c] - eye[2]
            for j in range(3):
                lit[k, j] = camera[j, 0] * x + camera[j, 1] * y + camera[j, 2] * z
                colour = (sums[j, c] + emission) * materials[geom, j] * scale + sums[3 + j, c]
                lit[k, 3 + j] = min(max(colour, 0.0), 1.0)
        x0, y0, z0 = lit[0, 0], lit[0, 1], lit[0, 2]
        ax, ay, az = lit[1, 0] - x0, lit[1, 1] - y0, lit[1, 2] - z0
        bx, by, bz = lit[2, 0] - x0, lit[2, 1] - y0, lit[2, 2] - z0
        planes[i, 0], planes[i, 1], planes[i, 2] = by * az - bz * ay, bz * ax - bx * az, bx * ay - by * ax
        planes[i, 3], planes[i, 4], planes[i, 5] = bz * y0 - by * z0, bx * z0 - bz * x0, by * x0 - bx * y0
        planes[i, 6], planes[i, 7], planes[i, 8] = ay * z0 - az * y0, az * x0 - ax * z0, ax * y0 - ay * x0
        for j in range(3):
            colours[i, j] = lit[0, 3 + j]
            colours[i, 3 + j] = lit[1, 3 + j] - lit[0, 3 + j]
            colours[i, 6 + j] = lit[2, 3 + j] - lit[0, 3 + j]


@inlined
def _at(planes, place, first, x, y):
    """One of a triangle's three linear functions for the ray (x, y, -1)."""
    return x * planes[place, first] + y * planes[place, first + 1] - planes[place, first + 2]


@inlined
def _texel_steps(planes, place, su, tu, ru, sv, tv, rv, x, y, step, largest, texels_x, texels_y, is_cube):
    """Texels, squared, from one pixel to the next along the longer way, in the 2 x 2 block whose even pixel has a ray.

    Args:
        planes, place: The triangle, as `prepare_triangles` fills it.
        su, tu, ru, sv, tv, rv: Differences of texture coordinates along the triangle's edges.
        x, y: The even pixel's ray.
        step: From one pixel to the next, at distance 1.
        largest: Largest texture coordinate of the fragment itself, by which a cube's are divided.
        texels_x, texels_y: Texels across and up.
        is_cube: Whether the texture is a cube.
    """
    depth, at_u, at_v = _at(planes, place, 0, x, y), _at(planes, place, 3, x, y), _at(planes, place, 6, x, y)
    n0, n1 = planes[place, 0], planes[place, 1]
    # (U + du) / (D + dD) - U / D in one fraction, which saves a division and does not cancel.
    right, up = step / (depth * (depth + step * n0)), step / (depth * (depth + step * n1))
    right_u, right_v = (planes[place, 3] * depth - n0 * at_u) * right, (planes[place, 6] * depth - n0 * at_v) * right
    up_u, up_v = (planes[place, 4] * depth - n1 * at_u) * up, (planes[place, 7] * depth - n1 * at_v) * up
    right_s, right_t = su * right_u + sv * right_v, tu * right_u + tv * right_v
    up_s, up_t = su * up_u + sv * up_v, tu * up_u + tv * up_v
    if is_cube:
        right_r, up_r = ru * right_u + rv * right_v, ru * up_u + rv * up_v
        scale = 0.5 * texels_x / largest
        squared_right = right_s * right_s + right_t * right_t + right_r * right_r
        squared_up = up_s * up_s + up_t * up_t + up_r * up_r
        return scale * scale * max(squared_right, squared_up)
    squared_right = (right_s * texels_x) ** 2 + (right_t * texels_y) ** 2
    squared_up = (up_s * texels_x) ** 2 + (up_t * texels_y) ** 2
    return max(squared_right, squared_up)


@kernel
def interpolate(n, geometry, camera, focal, sky, height, width, work):
    """Fills the shades of n fragments, and the taps of those with a texture; gives the number of these.

    Args:
        n: Number of fragments.
        geometry: The scene.
        camera: float64 (3, 3), rows are the camera's axes in the world.
        focal: Focal length of half the image's height.
        sky: Texture of the background, -1 for black.
        height, width: Of the image.
        work: With fragments and prepared triangles.
    """
    step = 2.0 / (height * focal)
    middle_x, middle_y = (width - 1) * 0.5, (height - 1) * 0.5
    # Names of single arrays: numba would count references of a tuple's arrays for each fragment.
    names, pixels, triangles, textured, shades = work.names, work.pixels, work.triangles, work.textured, work.shades
    planes, colours = work.planes, work.colours
    where, taps, weights = work.taps.where, work.taps.levels, work.taps.weights
    records, materials = work.records, geometry.materials
    textures, levels = geometry.textures, geometry.levels
    n_textured = 0
    for i in range(n):
        y, x = (pixels[i] >> 4) >> PIXEL_BITS, (pixels[i] >> 4) & (MAX_SIDE - 1)
        ray_x, ray_y = (x - middle_x) * step, (y - middle_y) * step
        place = triangles[i]
        if place < 0:
            shades[0, i], shades[1, i], shades[2, i] = (0.0, 0.0, 0.0) if sky < 0 else (1.0, 1.0, 1.0)
            if sky < 0:
                continue
            # The sky's cube has its axes turned: direction (x, z, -y).
            s = camera[0, 0] * ray_x + camera[1, 0] * ray_y - camera[2, 0]
            r = -(camera[0, 1] * ray_x + camera[1, 1] * ray_y - camera[2, 1])
            t = camera[0, 2] * ray_x + camera[1, 2] * ray_y - camera[2, 2]
            texture, is_cube, squared_texels = np.int64(sky), True, 0.0
        else:
            inverse = 1.0 / _at(planes, place, 0, ray_x, ray_y)
            u, v = _at(planes, place, 3, ray_x, ray_y) * inverse, _at(planes, place, 6, ray_x, ray_y) * inverse
            for k in range(3):
                shades[k, i] = colours[place, k] + u * colours[place, 3 + k] + v * colours[place, 6 + k]
            geom = names[place] >> TRIANGLE_BITS
            if materials[geom, 8] <= 0:
                continue
            texture, is_cube = np.int64(materials[geom, 7]), materials[geom, 8] > 1
            s0, t0, r0 = records[place, 18], records[place, 19], records[place, 20]
            su, tu, ru = records[place, 21] - s0, records[place, 22] - t0, records[place, 23] - r0
            sv, tv, rv = records[place, 24] - s0, records[place, 25] - t0, records[place, 26] - r0
            s, t, r = s0 + u * su + v * sv, t0 + u * tu + v * tv, r0 + u * ru + v * rv
            even_x, even_y = ((x & ~1) - middle_x) * step, ((y & ~1) - middle_y) * step
            largest = max(abs(s), max(abs(t), abs(r)))
            first = textures[texture, 0]
            texels_x, texels_y = np.float64(levels[first, 1]), np.float64(levels[first, 2])
            squared_texels = _texel_steps(
                planes, place, su, tu, ru, sv, tv, rv, even_x, even_y, step, largest, texels_x, texels_y, is_cube
            )
        add_tap(n_textured, textures, levels, texture, is_cube, s, t, r, squared_texels, where, taps, weights)
        textured[n_textured] = i
        n_textured += 1
    return n_textured


@kernel
def write_samples(n, n_textured, work, colours):
    """Writes the shades of n fragments, times their textures' colours, to their samples."""
    shades, texels, textured, pixels = work.shades, work.texels, work.textured, work.pixels
    for k in range(n_textured):
        i = textured[k]
        for channel in range(3):
            shades[channel, i] *= texels[channel, k]
    for i in range(n):
        mask, y, x = pixels[i] & 15, (pixels[i] >> 4) >> PIXEL_BITS, (pixels[i] >> 4) & (MAX_SIDE - 1)
        for channel in range(3):
            level = np.uint8(min(max(shades[channel, i], 0.0), 1.0) * 255 + 0.5)
            for sample in range(4):
                if mask & (1 << sample):
                    colours[4 * y + sample, x, channel] = level


@kernel
def shade_samples(
    ids, window, lowest, geometry, rotations, places, lights, camera, eye, focal, sky, scale, work, colours
):
    """Colours the samples whose id is at least `lowest`.

    Args:
        ids: As `visibility.rasterise` fills them, (4 H, W).
        window: int64 (4,): left, bottom, right, top in pixels.
        lowest: 0 shades triangles alone, -1 the background too.
        geometry: The scene.
        rotations, places: Poses of all geoms.
        lights: Rows of `packing.LIGHT_SIZE` numbers.
        camera, eye: float64 (3, 3) and (3,): axes (rows) and place of the camera.
        focal: Focal length of half the image's height.
        sky: Texture of the background, -1 for black.
        scale: See `prepare_triangles`.
        work: Work space for the image's width.
        colours: uint8 (4 H, W, 3), changed there.
    """
    row = window[1]
    while row < window[3]:
        row, n, n_triangles = collect_fragments(ids, row, window, lowest, work)
        gather_records(n_triangles, geometry, work.names, work.records)
        place_corners(
            n_triangles, geometry.materials, rotations, places, work.names, work.records, work.corners
        )  # fmt: skip
        light_corners(3 * n_triangles, work.corners, lights, eye, work.sums)
        prepare_triangles(n_triangles, geometry.materials, scale, camera, eye, work)
        n_textured = interpolate(n, geometry, camera, focal, sky, ids.shape[0] >> 2, ids.shape[1], work)
        sample_textures(n_textured, geometry.texels, work.taps, work.texels)
        write_samples(n, n_textured, work, colours)


@kernel
def resolve(colours, ids, lowest, window, image):
    """Averages the samples of pixels that have an id of at least `lowest` into `image`, uint8 (H, W, 3)."""
    for y in range(window[1], window[3]):
        for x in range(window[0], window[2]):
            a, b, c, d = ids[4 * y, x], ids[4 * y + 1, x], ids[4 * y + 2, x], ids[4 * y + 3, x]
            if a < lowest and b < lowest and c < lowest and d < lowest:
                continue
            for k in range(3):
                low = np.int32(colours[4 * y, x, k]) + colours[4 * y + 1, x, k]
                image[y, x, k] = (low + colours[4 * y + 2, x, k] + colours[4 * y + 3, x, k] + 2) >> 2
