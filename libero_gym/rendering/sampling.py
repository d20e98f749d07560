"""What colour a texture has at a point, filtered as llvmpipe filters: trilinearly, with weights of eight bits.

Points are sampled many at a time, in three loops: where the texels lie, what they are, how they blend. The first and
the last vectorise; the middle one only reads, so that the processor waits for many cache misses at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from libero_gym.rendering.kernels import f32, inlined, kernel

u32 = np.uint32
# Red and blue are blended in one number of 32 bits: a channel's product with a weight of up to 256 takes 16 of them.
_RED_BLUE, _GREEN = u32(0xFF00FF), u32(0xFF)
_HALF_RED_BLUE, _HALF_GREEN, _EIGHT, _SIXTEEN, _ONE = u32(0x800080), u32(0x80), u32(8), u32(16), u32(256)


class Taps(NamedTuple):
    """Points to sample, up to n, and work space; see `sample_textures`."""

    where: np.ndarray  # float32 (2, n): s and t, in 0 to 1
    levels: np.ndarray  # int32 (2, 3, n): of a mip level and of the next, where it starts, its width and height
    weights: np.ndarray  # int32 (2, n): of the next level, 0 to 256; and 1 if the texture repeats, 0 if it ends
    texels: np.ndarray  # uint32 (4, n): first their indices, then what they are
    fractions: np.ndarray  # uint32 (2, n): weights of the texels to the right and above
    blended: np.ndarray  # uint32 (2, 2, n): of each level, red and blue in one number, and green

    @classmethod
    def of(cls, n: int) -> Taps:
        """Room for n points."""
        return cls(
            where=np.empty((2, n), np.float32),
            levels=np.empty((2, 3, n), np.int32),
            weights=np.empty((2, n), np.int32),
            texels=np.empty((4, n), np.uint32),
            fractions=np.empty((2, n), np.uint32),
            blended=np.empty((2, 2, n), np.uint32),
        )


@inlined
def cube_face(s, t, r):
    """Face of a cube map that a direction meets, and the texture coordinates there (OpenGL 2.1, table 3.19)."""
    x, y, z = abs(s), abs(t), abs(r)
    if x >= y and x >= z:
        face, u, v, major = (0 if s >= 0 else 1), (-r if s >= 0 else r), -t, x
    elif y >= z:
        face, u, v, major = (2 if t >= 0 else 3), s, (r if t >= 0 else -r), y
    else:
        face, u, v, major = (4 if r >= 0 else 5), (s if r >= 0 else -s), -t, z
    return face, u * 0.5 / major + 0.5, v * 0.5 / major + 0.5


@inlined
def level_of_detail(squared_texels, n_levels):
    """Mip level and the 8-bit weight of the next, for so many texels (squared) from one pixel to the next.

    llvmpipe takes the logarithm from the bits of a float: exponent + mantissa - 1.
    """
    if squared_texels <= 1:
        return np.int64(0), np.int64(0)
    bits = f32(squared_texels).view(np.int32)
    mantissa = np.float64(np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(f32))
    detail = 0.5 * ((bits >> 23) - 128 + mantissa)
    level = np.int64(detail)
    if level >= n_levels - 1:
        return n_levels - 1, np.int64(0)
    return level, np.int64((detail - level) * 256)


@inlined
def add_tap(k, textures, table, texture, is_cube, s, t, r, squared_texels, where, taps, weights):
    """Writes the point k of `Taps`: texture coordinates, and how many texels (squared) it is to the next pixel.

    It takes single arrays, since numba counts references of every array that a tuple holds.

    Args:
        k: Number of the point.
        textures, table: `textures.Textures.table` and `levels`.
        texture: Index of the texture.
        is_cube: Whether it is a cube.
        s, t, r: Texture coordinates.
        squared_texels: Texels, squared, from this pixel to the next.
        where, taps, weights: Filled: `Taps.where`, `Taps.levels`, `Taps.weights`.
    """
    face = 0
    if is_cube:
        face, s, t = cube_face(s, t, r)
        if textures[texture, 2] < 6:  # one image for all six
            face = 0
    else:
        s -= np.floor(s)
        t -= np.floor(t)
    first, n_levels = np.int64(textures[texture, 0]), np.int64(textures[texture, 1])
    level, weight = level_of_detail(squared_texels, n_levels)
    where[0, k], where[1, k] = s, t
    weights[0, k], weights[1, k] = weight, 0 if is_cube else 1
    row = first + level
    following = min(row + 1, first + n_levels - 1)
    taps[0, 0, k] = table[row, 0] + face * table[row, 1] * table[row, 2]
    taps[0, 1, k], taps[0, 2, k] = table[row, 1], table[row, 2]
    taps[1, 0, k] = table[following, 0] + face * table[following, 1] * table[following, 2]
    taps[1, 1, k], taps[1, 2, k] = table[following, 1], table[following, 2]


@inlined
def _neighbours(coordinate, size, repeats):
    """The texels on both sides of a coordinate along an axis of `size` texels, and the 8-bit weight of the second."""
    fixed = np.int32(np.floor((coordinate * f32(size) - f32(0.5)) * f32(256)))
    first = np.int32(fixed >> np.int32(8))
    second = np.int32(first + np.int32(1))
    last = np.int32(size - np.int32(1))
    before = last if repeats != 0 else np.int32(0)  # what lies left of the first texel
    first = before if first < 0 else first
    second = np.int32(last - before) if second > last else second
    return first, second, np.int32(fixed & np.int32(255))


@kernel
def _locate_texels(n, where, levels, repeat, texels, fractions):
    ss, ts, starts, widths, heights = where[0], where[1], levels[0], levels[1], levels[2]
    low_left, low_right, high_left, high_right = texels[0], texels[1], texels[2], texels[3]
    across, up = fractions[0], fractions[1]
    for i in range(n):
        width, repeats = widths[i], repeat[i]
        x0, x1, weight_x = _neighbours(ss[i], width, repeats)
        y0, y1, weight_y = _neighbours(ts[i], heights[i], repeats)
        low = np.int32(starts[i] + np.int32(y0 * width))
        high = np.int32(starts[i] + np.int32(y1 * width))
        low_left[i], low_right[i] = u32(low + x0), u32(low + x1)
        high_left[i], high_right[i] = u32(high + x0), u32(high + x1)
        across[i], up[i] = u32(weight_x), u32(weight_y)


@kernel
def _read_texels(n, texture, texels):
    for i in range(n):
        for k in range(4):
            texels[k, i] = texture[texels[k, i]]


@inlined
def _mixed(a, b, weight, half, mask):
    """a and b, channel by channel, with b's weight out of 256, rounded to nearest."""
    return u32(u32(u32(u32(a * u32(_ONE - weight)) + u32(b * weight) + half) >> _EIGHT) & mask)


@kernel
def _blend_texels(n, texels, fractions, blended):
    low_left, low_right, high_left, high_right = texels[0], texels[1], texels[2], texels[3]
    across, up, red_blue, green = fractions[0], fractions[1], blended[0], blended[1]
    for i in range(n):
        a, b, c, d, wx, wy = low_left[i], low_right[i], high_left[i], high_right[i], across[i], up[i]
        low = _mixed(u32(a & _RED_BLUE), u32(b & _RED_BLUE), wx, _HALF_RED_BLUE, _RED_BLUE)
        high = _mixed(u32(c & _RED_BLUE), u32(d & _RED_BLUE), wx, _HALF_RED_BLUE, _RED_BLUE)
        red_blue[i] = _mixed(low, high, wy, _HALF_RED_BLUE, _RED_BLUE)
        low = _mixed(u32(u32(a >> _EIGHT) & _GREEN), u32(u32(b >> _EIGHT) & _GREEN), wx, _HALF_GREEN, _GREEN)
        high = _mixed(u32(u32(c >> _EIGHT) & _GREEN), u32(u32(d >> _EIGHT) & _GREEN), wx, _HALF_GREEN, _GREEN)
        green[i] = _mixed(low, high, wy, _HALF_GREEN, _GREEN)


@kernel
def sample_textures(n, texture, taps, colours):
    """Filters n points.

    Args:
        n: Their number.
        texture: All texels, see `textures.Textures`.
        taps: The points, as `add_tap` wrote them.
        colours: Filled: red, green and blue, 0 to 1, float32 (3, at least n).
    """
    for k in range(2):
        _locate_texels(n, taps.where, taps.levels[k], taps.weights[1], taps.texels, taps.fractions)
        _read_texels(n, texture, taps.texels)
        _blend_texels(n, taps.texels, taps.fractions, taps.blended[k])
    near_rb, near_g, far_rb, far_g = taps.blended[0, 0], taps.blended[0, 1], taps.blended[1, 0], taps.blended[1, 1]
    weights, reds, greens, blues = taps.weights[0], colours[0], colours[1], colours[2]
    for i in range(n):
        weight = u32(weights[i])
        red_blue = _mixed(near_rb[i], far_rb[i], weight, _HALF_RED_BLUE, _RED_BLUE)
        green = _mixed(near_g[i], far_g[i], weight, _HALF_GREEN, _GREEN)
        reds[i] = f32(np.int32(red_blue & _GREEN)) * f32(1 / 255)
        greens[i] = f32(np.int32(green)) * f32(1 / 255)
        blues[i] = f32(np.int32(red_blue >> _SIXTEEN)) * f32(1 / 255)
