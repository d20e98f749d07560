"""Geoms as triangles: corners, normals and texture coordinates, as MuJoCo hands them to OpenGL.

The tessellations follow `render_context.c` of MuJoCo 3.3.2 (`mjr_makeContext`), the texture coordinates the texture
generation of `render_gl3.c`; both were compared with MuJoCo's own frames.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco

# A mesh without texture coordinates keeps a vertex normal only where it is this near to the face's (cosine).
_SMOOTH_COSINE = 0.8
# How many lines an infinite plane is drawn with, to each side.
_INFINITE_PLANE_LINES = 21


class Triangles(NamedTuple):
    """N triangles in a geom's own frame; corners run counter-clockwise seen from outside."""

    positions: np.ndarray  # float32 (N, 3 corners, xyz), m
    normals: np.ndarray  # float32 (N, 3 corners, xyz), unit length
    texcoords: np.ndarray  # float32 (N, 3 corners, str); r is used by cube maps alone


class NotDrawnError(NotImplementedError):
    """The scene holds something that this renderer does not draw."""


@dataclass(frozen=True)
class TextureMapping:
    """How texture coordinates come from object coordinates, of a material without coordinates of its own.

    Attributes:
        kind: "2d", "cube", or "none".
        repeat: The material's ``texrepeat``.
        uniform: The material's ``texuniform``.
    """

    kind: str
    repeat: tuple[float, float] = (1.0, 1.0)
    uniform: bool = False


def geom_triangles(model: mujoco.MjModel, geom: Any, mapping: TextureMapping) -> Triangles:
    """The triangles of a geom of an `MjvScene`.

    Args:
        model: The model that the scene is of.
        geom: The ``mjvGeom``.
        mapping: How its texture, if any, lies on it.

    Raises:
        NotDrawnError: If geoms of its type are not drawn.
    """
    kind = mujoco.mjtGeom(geom.type)
    size = np.array(geom.size, np.float32)
    quality = model.vis.quality
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        return _mesh(model, geom, size, mapping)
    if kind == mujoco.mjtGeom.mjGEOM_PLANE:
        positions, normals = _plane(model, geom.objid)
        return Triangles(positions, normals, _generated(positions, size, mapping, has_data=geom.dataid >= 0))
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        parts = [(_box(quality.numquads), size, 0.0)]
    elif kind in (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_ELLIPSOID):
        halves = [_half_sphere(sign, quality.numslices, quality.numstacks) for sign in (1, -1)]
        parts = [(half, size, 0.0) for half in halves]
    elif kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        wall = _cylinder(quality.numslices, quality.numstacks)
        discs = [_disc(sign, quality.numslices, quality.numstacks // 2) for sign in (-1, 1)]
        parts = [(part, size, 0.0) for part in (wall, *discs)]
    elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        cap = np.array([size[0], size[0], size[0]], np.float32)
        parts = [(_cylinder(quality.numslices, quality.numstacks), size, 0.0)]
        parts += [(_half_sphere(sign, quality.numslices, quality.numstacks), cap, sign * size[2]) for sign in (1, -1)]
    else:
        raise NotDrawnError(f"Geoms of type {kind.name} are not drawn by renderer='fast'; use renderer='exact'.")
    return _merged([_scaled(unit, scale, height, mapping, geom.dataid >= 0) for unit, scale, height in parts])


Surface = tuple[np.ndarray, np.ndarray]
"""Corner positions and normals, each float32 (N, 3, 3), of a shape of half-size 1."""


def _scaled(unit: Surface, size: np.ndarray, height: float, mapping: TextureMapping, has_data: bool) -> Triangles:
    """A unit shape scaled and lifted by `height`; normals scale inversely, and texture lies on the unit shape."""
    positions, normals = unit
    stretched = normals / size
    stretched /= np.linalg.norm(stretched, axis=-1, keepdims=True)
    lifted = positions * size + np.array([0.0, 0.0, height], np.float32)
    return Triangles(lifted.astype(np.float32), stretched, _generated(positions, size, mapping, has_data=has_data))


def _merged(parts: list[Triangles]) -> Triangles:
    return Triangles(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _generated(objects: np.ndarray, size: np.ndarray, mapping: TextureMapping, *, has_data: bool) -> np.ndarray:
    """Texture coordinates that OpenGL generates from object coordinates (N, 3, 3): GL_OBJECT_LINEAR."""
    texcoords = np.zeros(objects.shape, np.float32)
    if mapping.kind == "2d":
        scale = np.array(mapping.repeat, np.float64)
        for axis in np.flatnonzero(size[:2] > 0):
            if has_data:
                scale[axis] /= size[axis]
            if mapping.uniform:
                scale[axis] *= size[axis]
        texcoords[..., 0] = 0.5 * scale[0] * objects[..., 0] - 0.5
        texcoords[..., 1] = -0.5 * scale[1] * objects[..., 1] - 0.5
    elif mapping.kind == "cube":
        texcoords[:] = objects * (size if mapping.uniform else 1)
    return texcoords


def _mesh(model: mujoco.MjModel, geom: Any, size: np.ndarray, mapping: TextureMapping) -> Triangles:
    """A mesh as `mjr_uploadMesh` sends it: its own texture coordinates, or flat shading across sharp edges."""
    index = geom.dataid // 2  # odd numbers are convex hulls
    rows = slice(model.mesh_faceadr[index], model.mesh_faceadr[index] + model.mesh_facenum[index])
    corners = model.mesh_vertadr[index] + model.mesh_face[rows]
    positions = model.mesh_vert[corners].astype(np.float32)
    normals = model.mesh_normal[model.mesh_normaladr[index] + model.mesh_facenormal[rows]].astype(np.float32)
    if model.mesh_texcoordadr[index] >= 0:
        texcoords = np.zeros(positions.shape, np.float32)
        if geom.texcoord:
            own = model.mesh_texcoordadr[index] + model.mesh_facetexcoord[rows]
            texcoords[..., :2] = model.mesh_texcoord[own]
        else:
            texcoords = _generated(positions, size, mapping, has_data=True)
        return Triangles(positions, normals, texcoords)
    faces = np.cross(positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0])
    faces /= np.linalg.norm(faces, axis=1, keepdims=True) + 1e-30
    is_sharp = (normals * faces[:, None]).sum(axis=-1) < _SMOOTH_COSINE
    normals = np.where(is_sharp[..., None], faces[:, None], normals)
    return Triangles(positions, normals, _generated(positions, size, mapping, has_data=True))


def _split_quads(quads: Any, normals: Any) -> Surface:
    """Quads (N, 4, 3) as triangles (0, 1, 3) and (1, 2, 3), which is how Mesa draws GL_QUADS."""
    split = []
    for corners in (np.asarray(quads, np.float32), np.asarray(normals, np.float32)):
        split.append(np.stack([corners[:, [0, 1, 3]], corners[:, [1, 2, 3]]], axis=1).reshape(-1, 3, 3))
    return split[0], split[1]


def _box(n_quads: int) -> Surface:
    """A cube from -1 to 1, each side of n_quads by n_quads quads."""
    step = 2.0 / n_quads
    quads: list[Any] = []
    normals: list[Any] = []
    for x in range(n_quads):
        for y in range(n_quads):
            a0, a1, b0, b1 = step * x - 1, step * (x + 1) - 1, step * y - 1, step * (y + 1) - 1
            sides = (
                ([(a0, b0, 1), (a1, b0, 1), (a1, b1, 1), (a0, b1, 1)], (0, 0, 1)),
                ([(a0, b1, -1), (a1, b1, -1), (a1, b0, -1), (a0, b0, -1)], (0, 0, -1)),
                ([(1, a0, b0), (1, a1, b0), (1, a1, b1), (1, a0, b1)], (1, 0, 0)),
                ([(-1, a0, b1), (-1, a1, b1), (-1, a1, b0), (-1, a0, b0)], (-1, 0, 0)),
                ([(a0, -1, b0), (a1, -1, b0), (a1, -1, b1), (a0, -1, b1)], (0, -1, 0)),
                ([(a0, 1, b1), (a1, 1, b1), (a1, 1, b0), (a0, 1, b0)], (0, 1, 0)),
            )
            quads += [quad for quad, _ in sides]
            normals += [[normal] * 4 for _, normal in sides]
    return _split_quads(quads, normals)


def _cylinder(n_slices: int, n_stacks: int) -> Surface:
    """The wall of a cylinder of radius 1 from z = -1 to 1, open at both ends."""
    quads, normals = [], []
    for stack in range(n_stacks):
        low, high = 2 * stack / n_stacks - 1, 2 * (stack + 1) / n_stacks - 1
        for first, second in _slices(n_slices):
            quads.append([(*first, low), (*second, low), (*second, high), (*first, high)])
            normals.append([(*first, 0), (*second, 0), (*second, 0), (*first, 0)])
    return _split_quads(quads, normals)


def _disc(sign: int, n_slices: int, n_rings: int) -> Surface:
    """A disc of radius 1 at z = sign, seen from the side that the sign says."""
    fan, quads = [], []
    for first, second in _slices(n_slices):
        triangle = [(first[0] / n_rings, first[1] / n_rings, sign), (second[0] / n_rings, second[1] / n_rings, sign)]
        fan.append(_turned([*triangle, (0, 0, sign)], sign))
    for ring in range(n_rings - 1):
        inner, outer = (ring + 1) / n_rings, (ring + 2) / n_rings
        for first, second in _slices(n_slices):
            quad = [
                (p[0] * r, p[1] * r, sign)
                for p, r in ((first, outer), (second, outer), (second, inner), (first, inner))
            ]
            quads.append(_turned(quad, sign))
    upward = np.array([0.0, 0.0, sign], np.float32)
    fan_positions = np.array(fan, np.float32)
    positions, normals = _split_quads(quads, np.broadcast_to(upward, (len(quads), 4, 3)))
    fan_normals = np.broadcast_to(upward, fan_positions.shape)
    return np.concatenate([fan_positions, positions]), np.concatenate([fan_normals, normals])


def _half_sphere(sign: int, n_slices: int, n_stacks: int) -> Surface:
    """Half a sphere of radius 1, above z = 0 or below, as the sign says; its positions are its normals."""
    n_rings = n_stacks // 2
    fan, quads = [], []
    top = 0.5 * np.pi * sign * (n_rings - 1) / n_rings
    for first, second in _slices(n_slices):
        fan.append(_turned([_on_sphere(first, top), _on_sphere(second, top), (0, 0, sign)], sign))
    for ring in range(n_rings - 1):
        low, high = (0.5 * np.pi * sign * (ring + up) / n_rings for up in (0, 1))
        for first, second in _slices(n_slices):
            quad = [_on_sphere(first, low), _on_sphere(second, low), _on_sphere(second, high), _on_sphere(first, high)]
            quads.append(_turned(quad, sign))
    positions, _ = _split_quads(quads, quads)
    positions = np.concatenate([np.array(fan, np.float32), positions])
    return positions, positions.copy()


def _slices(n_slices: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The two corners of each slice of the unit circle."""
    angles = [2 * np.pi * slice_ / n_slices for slice_ in range(n_slices + 1)]
    points = [(float(np.cos(angle)), float(np.sin(angle))) for angle in angles]
    return list(itertools.pairwise(points))


def _on_sphere(point: tuple[float, float], elevation: float) -> tuple[float, float, float]:
    return point[0] * np.cos(elevation), point[1] * np.cos(elevation), np.sin(elevation)


def _turned(corners: list[Any], sign: int) -> list[Any]:
    """Corners in the order that makes the side with this sign the front."""
    return corners if sign > 0 else corners[::-1]


def _plane(model: mujoco.MjModel, geom_id: int) -> Surface:
    """A plane's grid, in metres: MuJoCo's lines where its sides have lengths, and as far as can be seen where not."""
    size = model.geom_size[geom_id]
    far = 1.05 * model.vis.map.zfar * model.stat.extent
    lines = [
        _plane_lines(size[k], size[2]) if size[k] > 0 else np.linspace(-far, far, _INFINITE_PLANE_LINES) for k in (0, 1)
    ]
    quads = [
        [(a0, b0, 0), (a1, b0, 0), (a1, b1, 0), (a0, b1, 0)]
        for a0, a1 in zip(lines[0][:-1], lines[0][1:], strict=True)
        for b0, b1 in zip(lines[1][:-1], lines[1][1:], strict=True)
    ]
    normals = np.zeros((len(quads), 4, 3), np.float32)
    normals[..., 2] = 1
    return _split_quads(quads, normals)


def _plane_lines(half_size: float, spacing: float) -> np.ndarray:
    """Where the grid lines of one axis are, by `mjr_render`'s rule for planes."""
    step = max(spacing, half_size / 198)
    n = int(half_size // max(1e-15, step))
    n -= n % 2
    pad = half_size - n * step
    n += 2
    lines = np.zeros(n + 1)
    for i in range(n):
        left = -half_size if i == 0 else -half_size + pad + (i - 1) * step * 2
        right = left + (pad if i in (0, n - 1) else step * 2)
        lines[i], lines[i + 1] = left, max(left, right)
    return np.unique(lines)
