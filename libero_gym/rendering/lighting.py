"""How much light meets a corner: OpenGL's fixed-function lighting, compiled by numba into loops that vectorise."""

from __future__ import annotations

import numpy as np

from libero_gym.rendering.kernels import f32, inlined, kernel


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
