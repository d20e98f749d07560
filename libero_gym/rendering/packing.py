"""A scene packed for drawing: clusters of triangles, materials and textures in flat arrays.

Packing takes seconds and happens once per scene; the arrays are plain numbers, so that a file of them can be mapped by
every process that draws the scene.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.equivalence.looks import directional_lights, orthographic_cameras
from libero_gym.rendering.posing import MAX_SCENE_GEOMS, visual_option
from libero_gym.rendering.textures import Textures, pack_textures
from libero_gym.rendering.triangles import NotDrawnError, TextureMapping, Triangles, geom_triangles

CLUSTER = 64
"""Triangles of a cluster: what is culled together, and projected in one vectorised loop."""
# A triangle is called `geom << TRIANGLE_BITS | its number in the geom`.
TRIANGLE_BITS = 20
TRIANGLE_MASK = (1 << TRIANGLE_BITS) - 1
MAX_GEOMS = 1 << (31 - TRIANGLE_BITS)

LIGHT_SIZE = 21
"""Numbers of a light: is directional (1), place (3), direction (3), ambient (3), diffuse (3), specular (3), attenuation
(3), cosine of the cut-off angle (-2 for none), exponent."""

# An opaque geom has at least this alpha (MuJoCo's own threshold is the same for its sorting).
OPAQUE = 0.995
# Cosine of a cluster's cone of normals that is too wide to be culled by.
_WIDE_CONE = 2.0


class Geometry(NamedTuple):
    """What the compiled kernels read. G geoms, C clusters, N triangles.

    Attributes:
        cluster_rows: int32 (C, 2): first triangle, and the one after the last, among all.
        cluster_bounds: float32 (C, 8): centre (3), radius, axis of the cone of normals (3), sine of its half angle.
        positions: float32 (C, 9, 64): corner coordinates, coordinate by coordinate, for vectorised projection.
        records: float32 (N, 27): corner positions (9), normals (9), texture coordinates (9).
        geom_clusters: int32 (G, 2): first cluster, and the one after the last.
        geom_triangles: int32 (G,): first triangle.
        materials: float32 (G, 9): rgba, emission, specular, shininess, texture or -1, its kind (0 none, 1 2D, 2 cube).
        texels, levels, textures: see `textures.Textures`.
    """

    cluster_rows: np.ndarray
    cluster_bounds: np.ndarray
    positions: np.ndarray
    records: np.ndarray
    geom_clusters: np.ndarray
    geom_triangles: np.ndarray
    materials: np.ndarray
    texels: np.ndarray
    levels: np.ndarray
    textures: np.ndarray


class PackedScene(NamedTuple):
    """A scene's geometry, and what a frame needs to know of its G geoms (flames of burners among them), L lights.

    Attributes:
        geometry: What the kernels read.
        body: int64 (G,): the body that a geom moves with.
        rotation: float64 (G, 3, 3): from its own frame to its body's.
        place: float64 (G, 3): its place in its body's frame, m.
        site: int64 (G,): the site that it is; -1 for a geom.
        name: int64 (G,): its geom's or site's id in the visual model, for segmentation.
        is_moving: bool (G,): whether its body moves.
        kind: int64 (G,): MuJoCo's type of geom.
        size: float32 (G, 3): MuJoCo's, m.
        alpha: float64 (G,): opacity; 0 or less is hidden.
        reflectance: float64 (G,).
        cameras: float64 (n_cameras,): focal length of half the image's height, by the camera's id.
        lights: float64 (L, `LIGHT_SIZE`), place and direction left open; the first one is
            the headlight if `numbers` says so.
        light_ids: int64 (L,): ids of the lights; -1 for the headlight.
        numbers: float64 (2,): near plane in m, and the index of the sky's texture (-1 for none).
    """

    geometry: Geometry
    body: np.ndarray
    rotation: np.ndarray
    place: np.ndarray
    site: np.ndarray
    name: np.ndarray
    is_moving: np.ndarray
    kind: np.ndarray
    size: np.ndarray
    alpha: np.ndarray
    reflectance: np.ndarray
    cameras: np.ndarray
    lights: np.ndarray
    light_ids: np.ndarray
    numbers: np.ndarray

    @property
    def near(self) -> float:
        """Distance of the near plane, m."""
        return float(self.numbers[0])

    @property
    def sky(self) -> int:
        """Index of the sky's texture, -1 if there is none."""
        return int(self.numbers[1])


def pack_scene(model: mujoco.MjModel, max_texture_side: int | None = None) -> PackedScene:
    """Packs the visual geoms and the sites of a model into arrays that cannot be written; no OpenGL is needed.

    Raises:
        NotDrawnError: If the scene has something that is not drawn.
        ValueError: If it has more geoms or triangles than ids can name.
    """
    geoms = _visible_geoms(model)
    if len(geoms) > MAX_GEOMS:
        raise ValueError(f"The scene has {len(geoms)} geoms; at most {MAX_GEOMS} can be drawn.")
    mappings = [_mapping(model, geom) for geom in geoms]
    packer = _Packer()
    meshes: dict[Any, int] = {}
    geom_mesh = []
    for index, (geom, (mapping, _)) in enumerate(zip(geoms, mappings, strict=True)):
        is_mesh = geom.type == mujoco.mjtGeom.mjGEOM_MESH
        shares_texcoords = bool(geom.texcoord) or mapping.kind == "none"
        key = ("mesh", geom.dataid // 2, None if shares_texcoords else geom.matid) if is_mesh else ("geom", index)
        if key not in meshes:
            meshes[key] = packer.add(geom_triangles(model, geom, mapping))
        geom_mesh.append(meshes[key])
    skies = [index for index in range(model.ntex) if model.tex_type[index] == mujoco.mjtTexture.mjTEXTURE_SKYBOX]
    used = {texture for _, texture in mappings if texture >= 0} | set(skies[:1])
    kinds = ("none", "2d", "cube")
    materials = [
        (*geom.rgba, geom.emission, geom.specular, 128.0 * geom.shininess, texture, kinds.index(mapping.kind))
        for geom, (mapping, texture) in zip(geoms, mappings, strict=True)
    ]
    is_site = np.array([geom.objtype == mujoco.mjtObj.mjOBJ_SITE for geom in geoms])
    name = np.array([geom.objid for geom in geoms], np.int64)
    body, rotation, place = _local_poses(model, is_site, name)
    lights, light_ids = _lights(model)
    textures = pack_textures(model, used, max_texture_side)
    packed = PackedScene(
        geometry=packer.geometry(geom_mesh, np.array(materials, np.float32), textures),
        body=body,
        rotation=rotation,
        place=place,
        site=np.where(is_site, name, -1),
        name=name,
        is_moving=np.array([geom.category == mujoco.mjtCatBit.mjCAT_DYNAMIC for geom in geoms]),
        kind=np.array([geom.type for geom in geoms], np.int64),
        size=np.array([geom.size for geom in geoms], np.float32),
        alpha=np.array([geom.rgba[3] for geom in geoms], np.float64),
        reflectance=np.array([geom.reflectance for geom in geoms], np.float64),
        cameras=1 / np.tan(np.radians(model.cam_fovy) / 2),
        lights=lights,
        light_ids=light_ids,
        numbers=np.array([np.float32(model.vis.map.znear * model.stat.extent), skies[0] if skies else -1], np.float64),
    )
    # Mapped arrays cannot be written; numba would compile everything again for arrays that can.
    for array in (*packed.geometry, *packed[1:]):
        array.flags.writeable = False
    return packed


def _check_drawable(model: mujoco.MjModel) -> None:
    """Refuses what MuJoCo draws and this renderer does not.

    Raises:
        NotDrawnError: If the scene has such a thing; the message names it.
    """
    infinite = (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (model.geom_size[:, :2].min(axis=1) <= 0)
    has_other_cameras = bool(model.cam_sensorsize.any() or orthographic_cameras(model).any())
    is_shadowed = model.vis.quality.shadowsize > 0
    found = {
        "skins": model.nskin > 0,
        "height fields": model.nhfield > 0,
        "flexible bodies": model.nflex > 0,
        "infinite planes": bool(infinite.any()),
        "cameras with sensors or without perspective": has_other_cameras,
        "lights that cast shadows": is_shadowed and bool((model.light_castshadow * model.light_active).any()),
    }
    named = [name for name, is_there in found.items() if is_there]
    if named:
        raise NotDrawnError(f"The scene has {', '.join(named)}; renderer='fast' draws none. Use renderer='exact'.")


def _visible_geoms(model: mujoco.MjModel) -> list[Any]:
    """The geoms and sites of a model that cameras see, with their looks resolved, as `MjvScene` lists them.

    Raises:
        NotDrawnError: If there is something else to be seen.
    """
    _check_drawable(model)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    scene = mujoco.MjvScene(model, maxgeom=MAX_SCENE_GEOMS)
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    mujoco.mjv_updateScene(model, data, visual_option(), mujoco.MjvPerturb(), camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
    geoms = [scene.geoms[index] for index in range(scene.ngeom)]
    if any(geom.objtype not in (mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtObj.mjOBJ_SITE) for geom in geoms):
        raise NotDrawnError(
            "The scene shows more than geoms and sites, such as tendons; renderer='fast' draws those alone. Use "
            "renderer='exact'."
        )
    return geoms


def _local_poses(
    model: mujoco.MjModel, is_site: np.ndarray, name: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each geom or site: its body, its rotation (3, 3) and its place (3,) in that body's frame."""
    geom, site = np.where(is_site, 0, name), np.where(is_site, name, 0)

    def either(of_sites: np.ndarray, of_geoms: np.ndarray) -> np.ndarray:
        if not model.nsite:
            return of_geoms[geom]
        mask = is_site.reshape(-1, *(1,) * (of_geoms.ndim - 1))
        return np.where(mask, of_sites[site], of_geoms[geom])

    body = either(model.site_bodyid, model.geom_bodyid).astype(np.int64)
    rotations = np.empty((len(name), 9))
    for row, quat in zip(rotations, either(model.site_quat, model.geom_quat), strict=True):
        mujoco.mju_quat2Mat(row, quat)
    return body, rotations.reshape(-1, 3, 3), either(model.site_pos, model.geom_pos)


def _lights(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the lights that burn, the headlight first, and their ids; place and direction are 0."""
    nowhere = (0.0,) * 6
    rows: list[tuple[float, ...]] = []
    ids = []
    head = model.vis.headlight
    if head.active:
        rows.append((1, *nowhere, *head.ambient, *head.diffuse, *head.specular, 1, 0, 0, -2, 0))
        ids.append(-1)
    directional = directional_lights(model)
    for index in np.flatnonzero(model.light_active):
        is_directional = bool(directional[index])
        has_cutoff = not is_directional and model.light_cutoff[index] < 180
        cosine = math.cos(math.radians(model.light_cutoff[index])) if has_cutoff else -2.0
        colours = (*model.light_ambient[index], *model.light_diffuse[index], *model.light_specular[index])
        attenuation = (1, 0, 0) if is_directional else tuple(model.light_attenuation[index])
        rows.append((is_directional, *nowhere, *colours, *attenuation, cosine, model.light_exponent[index]))
        ids.append(int(index))
    return np.array(rows, np.float64).reshape(len(rows), LIGHT_SIZE), np.array(ids, np.int64)


def _mapping(model: mujoco.MjModel, geom: Any) -> tuple[TextureMapping, int]:
    """How a geom's texture lies on it, and which one it is (-1 for none)."""
    material = geom.matid
    texture = int(model.mat_texid[material][mujoco.mjtTextureRole.mjTEXROLE_RGB]) if material >= 0 else -1
    if texture < 0:
        return TextureMapping("none"), -1
    is_2d = model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_2D
    repeat = tuple(float(value) for value in model.mat_texrepeat[material])
    return TextureMapping("2d" if is_2d else "cube", repeat, bool(model.mat_texuniform[material])), texture  # type: ignore[arg-type]


class _Packer:
    """Collects meshes, cut into clusters."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._records: list[np.ndarray] = []
        self._rows: list[tuple[int, int]] = []
        self._bounds: list[np.ndarray] = []
        self._meshes: list[tuple[int, int, int]] = []  # first cluster, the one after the last, first triangle
        self._n_triangles = 0

    def add(self, triangles: Triangles) -> int:
        """Takes a mesh in, and gives its number."""
        first_cluster, first_triangle = len(self._rows), self._n_triangles
        faces = np.cross(
            triangles.positions[:, 1] - triangles.positions[:, 0], triangles.positions[:, 2] - triangles.positions[:, 0]
        )
        areas = np.linalg.norm(faces, axis=1)
        seen = areas > 0
        positions, normals, texcoords = (array[seen] for array in triangles)
        faces = faces[seen] / areas[seen, None]
        if len(positions) > TRIANGLE_MASK:
            raise ValueError(f"A mesh has {len(positions)} triangles; at most {TRIANGLE_MASK} can be drawn.")
        groups = _clusters(positions, faces)
        for group in groups:
            self._add_cluster(positions[group], faces[group])
        order = np.concatenate(groups) if groups else np.zeros(0, int)
        parts = [array[order].reshape(-1, 9) for array in (positions, normals, texcoords)]
        self._records.append(np.concatenate(parts, axis=1).astype(np.float32))
        self._meshes.append((first_cluster, len(self._rows), first_triangle))
        return len(self._meshes) - 1

    def _add_cluster(self, positions: np.ndarray, faces: np.ndarray) -> None:
        n = len(positions)
        block = np.zeros((9, CLUSTER), np.float32)
        block[:, :n] = positions.reshape(-1, 9).T
        self._blocks.append(block)
        corners = positions.reshape(-1, 3)
        centre = 0.5 * (corners.min(axis=0) + corners.max(axis=0))
        radius = 1.0001 * math.sqrt(((corners - centre) ** 2).sum(axis=1).max())
        axis = faces.sum(axis=0)
        length = float(np.linalg.norm(axis))
        axis = axis / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])
        cosine = float((faces @ axis).min()) if length > 1e-6 else -1.0
        sine = math.sqrt(max(0.0, 1 - cosine * cosine)) if cosine > 0 else _WIDE_CONE
        self._bounds.append(np.array([*centre, radius, *axis, sine], np.float32))
        self._rows.append((self._n_triangles, self._n_triangles + n))
        self._n_triangles += n

    def geometry(self, geom_mesh: list[int], materials: np.ndarray, textures: Textures) -> Geometry:
        """The arrays, with a mesh for each geom."""
        meshes = np.array([self._meshes[mesh] for mesh in geom_mesh], np.int32).reshape(-1, 3)
        return Geometry(
            cluster_rows=np.array(self._rows, np.int32).reshape(-1, 2),
            cluster_bounds=np.stack(self._bounds),
            positions=np.stack(self._blocks),
            records=np.concatenate(self._records),
            geom_clusters=np.ascontiguousarray(meshes[:, :2]),
            geom_triangles=np.ascontiguousarray(meshes[:, 2]),
            materials=materials,
            texels=textures.texels,
            levels=textures.levels,
            textures=textures.table,
        )


def _clusters(positions: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """Indices of triangles that lie together and face the same way: median splits of place and normal."""
    extent = float(np.ptp(positions.reshape(-1, 3), axis=0).max()) + 1e-9 if len(positions) else 1.0
    features = np.hstack([positions.mean(axis=1) / extent * 4, faces])
    done, todo = [], [np.arange(len(positions))]
    while todo:
        indices = todo.pop()
        if len(indices) <= CLUSTER:
            if len(indices):
                done.append(indices)
            continue
        chosen = features[indices]
        axis = int(np.argmax(np.ptp(chosen, axis=0)))
        middle = -(-(len(indices) // 2) // CLUSTER) * CLUSTER  # full clusters on one side
        order = np.argpartition(chosen[:, axis], middle)
        todo += [indices[order[middle:]], indices[order[:middle]]]
    return done
