"""What colour the samples have: OpenGL's fixed-function lighting and textures as llvmpipe computes them, in numba.

Each distinct triangle of a pixel is shaded once, at the pixel's centre even where that lies outside of the triangle, as
multisampling does without centroid sampling. Corners are lit (Gouraud), colours interpolated in perspective, textures
filtered trilinearly with weights of eight bits.
"""

from __future__ import annotations

import numpy as np

from libero_gym.rendering.kernels import f32, inlined, kernel
from libero_gym.rendering.packing import TRIANGLE_BITS, TRIANGLE_MASK

# Corners of the triangles seen last are found again in a table of so many entries, so that large ones are lit once.
TABLE_SIZE = 4096
# A fragment's pixel and mask of samples in one number: (y << 12 | x) << 4 | mask.
PIXEL_BITS = 12
MAX_SIDE = 1 << PIXEL_BITS

u64 = np.uint64
_RED_BLUE, _GREEN = u64(0xFF00FF), u64(0xFF)
_HALF_RED_BLUE, _HALF_GREEN, _EIGHT, _SIXTEEN, _ONE = u64(0x800080), u64(0x80), u64(8), u64(16), u64(256)


@inlined
def _power(x, y):
    """x ** y for x in (0, 1], float32 and without branches, so that loops over it vectorise."""
    bits = f32(x).view(np.int32)
    exponent = f32((bits >> 23) - 127)
    mantissa = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(f32)
    t = (mantissa - f32(1)) / (mantissa + f32(1))
    t2 = t * t
    # log2 by the series of the inverse hyperbolic tangent, 2 / ln 2 * (t + t^3 / 3 + ...).
    series = f32(1 / 3) + t2 * (f32(1 / 5) + t2 * (f32(1 / 7) + t2 * f32(1 / 9)))
    log2 = exponent + f32(2.8853900817779268) * t * (f32(1) + t2 * series)
    product = max(log2 * y, f32(-126))
    whole = np.floor(product)
    rest = product - whole
    # 2 ** rest by its Taylor polynomial.
    cubic = f32(0.05550411) + rest * (f32(0.00961813) + rest * f32(0.00133336))
    power = f32(1) + rest * (f32(0.69314718) + rest * (f32(0.2402265) + rest * cubic))
    return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(f32)


@kernel
def collect_fragments(
    ids, window, lowest, geometry, rotations, places, tags, slots, names, pixels, first_corners, corner_geoms, corners
):
    """Lists what has to be shaded.

    Args:
        ids: As `visibility.rasterise` fills them.
        window: left, bottom, right, top in pixels.
        lowest: Ids below this are left as they are: 0 shades triangles alone, -1 the background too.
        geometry: The scene.
        rotations, places: Poses of all geoms.
        tags, slots: Work space, int32 (TABLE_SIZE,).
        names: Filled by fragment: id of the triangle, int32.
        pixels: Filled by fragment: pixel and mask of samples, see `PIXEL_BITS`.
        first_corners: Filled by fragment: index of the first of its triangle's three lit corners.
        corner_geoms: Filled by corner: its geom.
        corners: Filled by corner: place (3) and normal (3) in the world, specular, shininess; float32 (8, n).

    Returns:
        Number of fragments and of corners.
    """
    n, n_corners = 0, 0
    records, materials = geometry.records, geometry.materials
    tags[:] = -1
    for y in range(window[1], window[3]):
        for x in range(window[0], window[2]):
            a, b, c, d = ids[y, x, 0], ids[y, x, 1], ids[y, x, 2], ids[y, x, 3]
            if a < lowest and b < lowest and c < lowest and d < lowest:
                continue
            for sample in range(4):
                name = ids[y, x, sample]
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
                names[n] = name
                pixels[n] = ((y << PIXEL_BITS | x) << 4) | mask
                if name >= 0:
                    entry = (name ^ (name >> TRIANGLE_BITS)) & (TABLE_SIZE - 1)
                    if tags[entry] != name:
                        tags[entry], slots[entry] = name, n_corners
                        geom = name >> TRIANGLE_BITS
                        triangle = (name & TRIANGLE_MASK) + geometry.geom_triangles[geom]
                        for k in range(3):
                            for axis in range(3):
                                place, normal = places[geom, axis], 0.0
                                for j in range(3):
                                    place += rotations[geom, axis, j] * records[triangle, 3 * k + j]
                                    normal += rotations[geom, axis, j] * records[triangle, 9 + 3 * k + j]
                                corners[axis, n_corners] = place
                                corners[3 + axis, n_corners] = normal
                            corners[6, n_corners], corners[7, n_corners] = materials[geom, 5], materials[geom, 6]
                            corner_geoms[n_corners] = geom
                            n_corners += 1
                    first_corners[n] = slots[entry]
                n += 1
    return n, n_corners


@kernel
def light_corners(n, corners, lights, eye, sums):
    """Sums the lights at each corner: `sums` (6, n) is filled with what the colour multiplies, and the specular part.

    OpenGL's lighting with a local viewer (specification 2.1, section 2.14.1); a light behind the surface gives neither
    diffuse nor specular light. The corners' normals become unit vectors.
    """
    one, zero, tiny = f32(1), f32(0), f32(1e-20)
    eye_x, eye_y, eye_z = f32(eye[0]), f32(eye[1]), f32(eye[2])
    xs, ys, zs, nxs, nys, nzs, gloss, shine = (
        corners[0], corners[1], corners[2], corners[3], corners[4], corners[5], corners[6], corners[7],
    )  # fmt: skip
    s0, s1, s2, s3, s4, s5 = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    for i in range(n):
        scale = one / np.sqrt(nxs[i] * nxs[i] + nys[i] * nys[i] + nzs[i] * nzs[i] + tiny)
        nxs[i] *= scale
        nys[i] *= scale
        nzs[i] *= scale
        s0[i], s1[i], s2[i], s3[i], s4[i], s5[i] = zero, zero, zero, zero, zero, zero
    for k in range(lights.shape[0]):
        light = lights[k]
        px, py, pz = f32(light[1]), f32(light[2]), f32(light[3])
        dx, dy, dz = f32(light[4]), f32(light[5]), f32(light[6])
        ambient0, ambient1, ambient2 = f32(light[7]), f32(light[8]), f32(light[9])
        diffuse0, diffuse1, diffuse2 = f32(light[10]), f32(light[11]), f32(light[12])
        specular0, specular1, specular2 = f32(light[13]), f32(light[14]), f32(light[15])
        constant, linear, quadratic = f32(light[16]), f32(light[17]), f32(light[18])
        cutoff, exponent = f32(light[19]), f32(light[20])
        is_directional = light[0] > 0
        for i in range(n):
            x, y, z, nx, ny, nz = xs[i], ys[i], zs[i], nxs[i], nys[i], nzs[i]
            lx, ly, lz, strength = -dx, -dy, -dz, one
            if not is_directional:
                lx, ly, lz = px - x, py - y, pz - z
                squared = lx * lx + ly * ly + lz * lz + tiny
                inverse = one / np.sqrt(squared)
                lx *= inverse
                ly *= inverse
                lz *= inverse
                strength = one / (constant + linear * squared * inverse + quadratic * squared)
                spot = -(lx * dx + ly * dy + lz * dz)
                strength = strength * _power(max(spot, f32(1e-6)), exponent) if spot >= cutoff else zero
            vx, vy, vz = eye_x - x, eye_y - y, eye_z - z
            inverse = one / np.sqrt(vx * vx + vy * vy + vz * vz + tiny)
            facing = nx * lx + ny * ly + nz * lz
            hx, hy, hz = lx + vx * inverse, ly + vy * inverse, lz + vz * inverse
            half = (nx * hx + ny * hy + nz * hz) / np.sqrt(hx * hx + hy * hy + hz * hz + tiny)
            shining = _power(min(max(half, f32(1e-6)), one), shine[i]) * gloss[i] * strength
            shining = shining if (facing > zero) and (half > zero) else zero
            lit = max(facing, zero) * strength
            s0[i] += strength * ambient0 + lit * diffuse0
            s1[i] += strength * ambient1 + lit * diffuse1
            s2[i] += strength * ambient2 + lit * diffuse2
            s3[i] += shining * specular0
            s4[i] += shining * specular1
            s5[i] += shining * specular2


@kernel
def colour_corners(n, corner_geoms, materials, scale, corners, sums, camera, eye, lit):
    """Fills `lit`, float32 (n, 6), with each corner's place in the camera's frame and its clamped colour.

    `scale` multiplies what the material's colour gives, as a mirror's reflectance does; highlights are not multiplied.
    """
    for i in range(n):
        geom = corner_geoms[i]
        emission = materials[geom, 4]
        x, y, z = corners[0, i] - eye[0], corners[1, i] - eye[1], corners[2, i] - eye[2]
        for k in range(3):
            lit[i, k] = camera[k, 0] * x + camera[k, 1] * y + camera[k, 2] * z
            colour = (sums[k, i] + emission) * materials[geom, k] * scale + sums[3 + k, i]
            lit[i, 3 + k] = min(max(colour, 0.0), 1.0)


@inlined
def _cube_face(s, t, r):
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
def _level_of_detail(squared_texels, n_levels):
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
def _bilinear(texels, start, width, height, s, t, repeats):
    """Filtered texel of a level: red and blue in one number, and green; 8-bit weights, each step rounded."""
    u, v = np.int64((s * width - 0.5) * 256 + 65536) - 65536, np.int64((t * height - 0.5) * 256 + 65536) - 65536
    x0, y0 = u >> 8, v >> 8
    x1, y1 = x0 + 1, y0 + 1
    if repeats:
        x0, y0 = (x0 + width if x0 < 0 else x0), (y0 + height if y0 < 0 else y0)
        x1, y1 = (x1 - width if x1 >= width else x1), (y1 - height if y1 >= height else y1)
    else:
        x0, x1 = min(max(x0, 0), width - 1), min(max(x1, 0), width - 1)
        y0, y1 = min(max(y0, 0), height - 1), min(max(y1, 0), height - 1)
    row0, row1 = start + y0 * width, start + y1 * width
    a, b = u64(texels[u64(row0 + x0)]), u64(texels[u64(row0 + x1)])
    c, d = u64(texels[u64(row1 + x0)]), u64(texels[u64(row1 + x1)])
    wu, wv = u64(u & 255), u64(v & 255)
    vu, vv = _ONE - wu, _ONE - wv
    low = (((a & _RED_BLUE) * vu + (b & _RED_BLUE) * wu + _HALF_RED_BLUE) >> _EIGHT) & _RED_BLUE
    high = (((c & _RED_BLUE) * vu + (d & _RED_BLUE) * wu + _HALF_RED_BLUE) >> _EIGHT) & _RED_BLUE
    low_green = (((a >> _EIGHT) & _GREEN) * vu + ((b >> _EIGHT) & _GREEN) * wu + _HALF_GREEN) >> _EIGHT
    high_green = (((c >> _EIGHT) & _GREEN) * vu + ((d >> _EIGHT) & _GREEN) * wu + _HALF_GREEN) >> _EIGHT
    red_blue = ((low * vv + high * wv + _HALF_RED_BLUE) >> _EIGHT) & _RED_BLUE
    return red_blue, (low_green * vv + high_green * wv + _HALF_GREEN) >> _EIGHT


@inlined
def _texture(geometry, texture, is_cube, s, t, r, squared_texels):
    """Trilinearly filtered colour of a texture, each channel 0 to 255."""
    face = 0
    if is_cube:
        face, s, t = _cube_face(s, t, r)
        if geometry.textures[texture, 2] < 6:  # one image for all six
            face = 0
    else:
        s -= np.floor(s)
        t -= np.floor(t)
    level, weight = _level_of_detail(squared_texels, np.int64(geometry.textures[texture, 1]))
    row = geometry.textures[texture, 0] + level
    start, width, height = geometry.levels[row, 0], geometry.levels[row, 1], geometry.levels[row, 2]
    red_blue, green = _bilinear(geometry.texels, start + face * width * height, width, height, s, t, not is_cube)
    if weight > 0:
        start, width, height = geometry.levels[row + 1, 0], geometry.levels[row + 1, 1], geometry.levels[row + 1, 2]
        next_rb, next_g = _bilinear(geometry.texels, start + face * width * height, width, height, s, t, not is_cube)
        far, near = u64(weight), _ONE - u64(weight)
        red_blue = ((red_blue * near + next_rb * far + _HALF_RED_BLUE) >> _EIGHT) & _RED_BLUE
        green = (green * near + next_g * far + _HALF_GREEN) >> _EIGHT
    return np.int64(red_blue & _GREEN), np.int64(green), np.int64(red_blue >> _SIXTEEN)


@kernel
def shade_fragments(n, names, pixels, first_corners, lit, geometry, camera, focal, sky, colours):
    """Colours the samples of each fragment, uint8 (H, W, 4, 3).

    A ray through the pixel's centre meets the triangle's plane at corner 0 + u * edge 1 + v * edge 2, where u = ray . a
    / ray . n and v = ray . b / ray . n: perspective-correct, and right outside of the triangle, too.

    Args:
        n: Number of fragments.
        names, pixels, first_corners: As `collect_fragments` fills them.
        lit: As `colour_corners` fills it.
        geometry: The scene.
        camera: float64 (3, 3), rows are the camera's axes in the world.
        focal: Focal length of half the image's height.
        sky: Texture of the background, -1 for black.
        colours: Written to where the fragments' samples are.
    """
    height, width = colours.shape[0], colours.shape[1]
    step = 2.0 / (height * focal)  # from one pixel to the next, at distance 1
    middle_x, middle_y = (width - 1) * 0.5, (height - 1) * 0.5
    records, materials, per_255 = geometry.records, geometry.materials, 1.0 / 255
    for i in range(n):
        name, mask = names[i], pixels[i] & 15
        y, x = (pixels[i] >> 4) >> PIXEL_BITS, (pixels[i] >> 4) & (MAX_SIDE - 1)
        ray_x, ray_y = (x - middle_x) * step, (y - middle_y) * step
        red, green, blue = 1.0, 1.0, 1.0
        texture, is_cube = np.int64(-1), False
        s, t, r, squared_texels = 0.0, 0.0, 0.0, 0.0
        if name < 0:
            if sky < 0:
                red, green, blue = 0.0, 0.0, 0.0
            else:  # the sky's cube has its axes turned: direction (x, z, -y)
                texture, is_cube = np.int64(sky), True
                s = camera[0, 0] * ray_x + camera[1, 0] * ray_y - camera[2, 0]
                r = -(camera[0, 1] * ray_x + camera[1, 1] * ray_y - camera[2, 1])
                t = camera[0, 2] * ray_x + camera[1, 2] * ray_y - camera[2, 2]
        else:
            k0 = first_corners[i]
            k1, k2 = k0 + 1, k0 + 2
            x0, y0, z0 = np.float64(lit[k0, 0]), np.float64(lit[k0, 1]), np.float64(lit[k0, 2])
            ax, ay, az = lit[k1, 0] - x0, lit[k1, 1] - y0, lit[k1, 2] - z0
            bx, by, bz = lit[k2, 0] - x0, lit[k2, 1] - y0, lit[k2, 2] - z0
            n0, n1, n2 = by * az - bz * ay, bz * ax - bx * az, bx * ay - by * ax
            u0, u1, u2 = bz * y0 - by * z0, bx * z0 - bz * x0, by * x0 - bx * y0
            v0, v1, v2 = ay * z0 - az * y0, az * x0 - ax * z0, ax * y0 - ay * x0
            inverse = 1.0 / (ray_x * n0 + ray_y * n1 - n2)
            u, v = (ray_x * u0 + ray_y * u1 - u2) * inverse, (ray_x * v0 + ray_y * v1 - v2) * inverse
            w = 1 - u - v
            red = w * lit[k0, 3] + u * lit[k1, 3] + v * lit[k2, 3]
            green = w * lit[k0, 4] + u * lit[k1, 4] + v * lit[k2, 4]
            blue = w * lit[k0, 5] + u * lit[k1, 5] + v * lit[k2, 5]
            geom = name >> TRIANGLE_BITS
            if materials[geom, 8] > 0:
                texture, is_cube = np.int64(materials[geom, 7]), materials[geom, 8] > 1
                triangle = (name & TRIANGLE_MASK) + geometry.geom_triangles[geom]
                s0, t0, r0 = records[triangle, 18], records[triangle, 19], records[triangle, 20]
                su, tu, ru = records[triangle, 21] - s0, records[triangle, 22] - t0, records[triangle, 23] - r0
                sv, tv, rv = records[triangle, 24] - s0, records[triangle, 25] - t0, records[triangle, 26] - r0
                s, t, r = s0 + u * su + v * sv, t0 + u * tu + v * tv, r0 + u * ru + v * rv
                # Differences to the right and upward in the pixel's 2 x 2 block, from its even pixel.
                even_x, even_y = ((x & ~1) - middle_x) * step, ((y & ~1) - middle_y) * step
                depth0 = even_x * n0 + even_y * n1 - n2
                at_u, at_v = even_x * u0 + even_y * u1 - u2, even_x * v0 + even_y * v1 - v2
                inverse = 1.0 / depth0
                here_u, here_v = at_u * inverse, at_v * inverse
                inverse = 1.0 / (depth0 + step * n0)
                right_u, right_v = (at_u + step * u0) * inverse - here_u, (at_v + step * v0) * inverse - here_v
                inverse = 1.0 / (depth0 + step * n1)
                up_u, up_v = (at_u + step * u1) * inverse - here_u, (at_v + step * v1) * inverse - here_v
                right_s, right_t = su * right_u + sv * right_v, tu * right_u + tv * right_v
                up_s, up_t = su * up_u + sv * up_v, tu * up_u + tv * up_v
                first = geometry.textures[texture, 0]
                texels_x, texels_y = np.float64(geometry.levels[first, 1]), np.float64(geometry.levels[first, 2])
                if is_cube:
                    right_r, up_r = ru * right_u + rv * right_v, ru * up_u + rv * up_v
                    scale = 0.5 * texels_x / max(abs(s), max(abs(t), abs(r)))
                    squared_right = right_s * right_s + right_t * right_t + right_r * right_r
                    squared_up = up_s * up_s + up_t * up_t + up_r * up_r
                    squared_texels = scale * scale * max(squared_right, squared_up)
                else:
                    squared_right = (right_s * texels_x) ** 2 + (right_t * texels_y) ** 2
                    squared_up = (up_s * texels_x) ** 2 + (up_t * texels_y) ** 2
                    squared_texels = max(squared_right, squared_up)
        if texture >= 0:
            texel_red, texel_green, texel_blue = _texture(geometry, texture, is_cube, s, t, r, squared_texels)
            red *= texel_red * per_255
            green *= texel_green * per_255
            blue *= texel_blue * per_255
        final_red = np.uint8(min(max(red, 0.0), 1.0) * 255 + 0.5)
        final_green = np.uint8(min(max(green, 0.0), 1.0) * 255 + 0.5)
        final_blue = np.uint8(min(max(blue, 0.0), 1.0) * 255 + 0.5)
        for sample in range(4):
            if mask & (1 << sample):
                colours[y, x, sample, 0] = final_red
                colours[y, x, sample, 1] = final_green
                colours[y, x, sample, 2] = final_blue


@kernel
def resolve(colours, ids, lowest, window, image):
    """Averages the samples of pixels that have an id of at least `lowest` into `image`, uint8 (H, W, 3)."""
    for y in range(window[1], window[3]):
        for x in range(window[0], window[2]):
            a, b, c, d = ids[y, x, 0], ids[y, x, 1], ids[y, x, 2], ids[y, x, 3]
            if a < lowest and b < lowest and c < lowest and d < lowest:
                continue
            for k in range(3):
                total = np.int32(colours[y, x, 0, k]) + colours[y, x, 1, k] + colours[y, x, 2, k] + colours[y, x, 3, k]
                image[y, x, k] = (total + 2) >> 2
