"""A lighter look at the same scene: visual meshes with a tenth to a fifth of the faces, textures of at most 512 pixels.

Software OpenGL spends its time on transforming some 300,000 triangles, whatever the image's size, so fewer triangles
make a frame cheaper. Physics has a model of its own and does not change.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from libero_gym.common.mujoco_import import mujoco

# Raise it when decimated models change, for they are cached.
VERSION = 3
# Share of the faces to keep. The robot's many small parts bear more than bowls and stove rings, which the wrist camera
# sees from close by.
FACE_SHARE, ROBOT_FACE_SHARE = 0.2, 0.1
_ROBOT_PREFIXES = ("robot0_", "gripper0_", "mount0_")
MIN_FACES = 150
MAX_TEXTURE = 512
# The distance that separates texture charts when a new face's corner looks for its nearest old one, in units of the
# mesh's size: farther than any real distance.
_CHART_DISTANCE = 10.0
# The weight of a corner's direction against its place, in units of the mesh's size.
_NORMAL_WEIGHT = 0.05
# Number of points that stand for an old surface when the part under a new face is searched.
_SURFACE_POINTS = 20_000


def decimated_model(xml: str, full: mujoco.MjModel) -> mujoco.MjModel:
    """A model of the same bodies, geoms, sites and cameras, by id, with lighter visual meshes and textures.

    Args:
        xml: The scene's MJCF.
        full: The model compiled from it.
    """
    spec = mujoco.MjSpec.from_string(xml)
    for index in sorted(_visual_meshes(full)):
        if full.mesh_facenum[index] > MIN_FACES:
            _decimate(spec.meshes[index], full, index)
    for index in range(full.ntex):
        _shrink_texture(spec.textures[index], full, index)
    light = spec.compile()
    light.body_pos[:], light.body_quat[:] = full.body_pos, full.body_quat
    light.site_rgba[:] = full.site_rgba
    if [light.geom(i).name for i in range(light.ngeom)] != [full.geom(i).name for i in range(full.ngeom)]:
        raise RuntimeError("The decimated scene differs from the full one in its geoms; please report this task.")
    return light


def _visual_meshes(model: mujoco.MjModel) -> set[int]:
    """Meshes that are only looked at: used by geoms of group 1 and by no other."""
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    seen = set(model.geom_dataid[is_mesh & (model.geom_group == 1)].tolist())
    return seen - set(model.geom_dataid[is_mesh & (model.geom_group != 1)].tolist())


def _decimate(mesh: mujoco.MjsMesh, model: mujoco.MjModel, index: int) -> None:
    """Replace a mesh of the spec by its decimation, normals and texture coordinates carried over."""
    import fast_simplification

    vertices, faces, normals, texcoords = _mesh_arrays(model, index)
    welded, inverse = np.unique(vertices.round(7), axis=0, return_inverse=True)
    welded_faces = inverse.reshape(-1)[faces]
    solid = (welded_faces[:, 0] != welded_faces[:, 1]) & (welded_faces[:, 1] != welded_faces[:, 2])
    solid &= welded_faces[:, 0] != welded_faces[:, 2]
    share = ROBOT_FACE_SHARE if model.mesh(index).name.startswith(_ROBOT_PREFIXES) else FACE_SHARE
    keep = max(MIN_FACES, int(share * len(faces)))
    points, new_faces = fast_simplification.simplify(
        welded.astype(np.float32), welded_faces[solid].astype(np.int32), target_count=keep, agg=3
    )
    if len(new_faces) < 4 or len(new_faces) >= len(faces):
        return
    sources = _nearest_corners(points, new_faces, vertices, faces)
    mesh.file = ""
    mesh.uservert = points[new_faces.reshape(-1)].astype(np.float32).reshape(-1)
    mesh.userface = np.arange(3 * len(new_faces), dtype=np.int32)
    mesh.usernormal = normals.reshape(-1, 3)[sources].astype(np.float32).reshape(-1)
    if texcoords is not None:
        mesh.usertexcoord = texcoords.reshape(-1, 2)[sources].astype(np.float32).reshape(-1)
    mesh.scale = np.ones(3)
    mesh.refpos, mesh.refquat = np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0])
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # thin meshes have no volume; none of them has mass


def _mesh_arrays(model: mujoco.MjModel, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Vertices (n, 3) and faces (m, 3), per-corner normals (m, 3, 3) and texture coordinates (m, 3, 2), file frame."""
    first, count = model.mesh_vertadr[index], model.mesh_vertnum[index]
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[index])
    matrix = rotation.reshape(3, 3)
    vertices = model.mesh_vert[first : first + count] @ matrix.T + model.mesh_pos[index]
    rows = slice(model.mesh_faceadr[index], model.mesh_faceadr[index] + model.mesh_facenum[index])
    normals = model.mesh_normal[model.mesh_normaladr[index] + model.mesh_facenormal[rows]] @ matrix.T
    texcoords = None
    if model.mesh_texcoordadr[index] >= 0:
        texcoords = model.mesh_texcoord[model.mesh_texcoordadr[index] + model.mesh_facetexcoord[rows]]
    return vertices, model.mesh_face[rows], normals, texcoords


def _nearest_corners(points: np.ndarray, new_faces: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """For each corner of the new faces, the old corner whose normal and texture coordinates it takes, (3 * m',).

    A new face takes all three from one texture chart (faces connected by shared vertices), that of the old face nearest
    to its centre and alike in direction: else the texture would smear across seams.
    """
    size = np.ptp(vertices, axis=0).max() + 1e-9
    charts = _connected_components(faces, len(vertices))[faces[:, 0]]
    normals, new_normals = _unit_normals(vertices, faces), _unit_normals(points, new_faces)
    # Points all over the old surface: of a large face next to many small ones, the centre alone would lose.
    samples, owners = _surface_points(vertices, faces)
    surface = np.hstack([samples / size, _NORMAL_WEIGHT * normals[owners]])
    centres = np.hstack([points[new_faces].mean(axis=1) / size, _NORMAL_WEIGHT * new_normals])
    nearest_face = owners[cKDTree(surface).query(centres)[1]]

    def corners(p: np.ndarray, f: np.ndarray, chart: np.ndarray, direction: np.ndarray) -> np.ndarray:
        far = np.repeat(chart * _CHART_DISTANCE, 3)[:, None]
        return np.hstack([p[f.reshape(-1)] / size, np.repeat(_NORMAL_WEIGHT * direction, 3, axis=0), far])

    old_corners = corners(vertices, faces, charts, normals)
    new_corners = corners(points, new_faces, charts[nearest_face], new_normals)
    return np.asarray(cKDTree(old_corners).query(new_corners)[1])


def _unit_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    normals = np.cross(b - a, c - a)
    return np.asarray(normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12))


def _surface_points(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly over a surface, every face's centre among them, (n, 3); and the face of each, (n,)."""
    corners = vertices[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(faces), size=_SURFACE_POINTS, p=areas / areas.sum())
    weights = rng.dirichlet(np.ones(3), size=_SURFACE_POINTS)
    points = np.concatenate([corners.mean(axis=1), np.einsum("nc,ncd->nd", weights, corners[drawn])])
    return points, np.concatenate([np.arange(len(faces)), drawn])


def _connected_components(faces: np.ndarray, n_vertices: int) -> np.ndarray:
    """Label of each vertex's connected component, (n_vertices,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n_vertices, n_vertices))
    return np.asarray(connected_components(graph, directed=False)[1])


def _shrink_texture(texture: mujoco.MjsTexture, model: mujoco.MjModel, index: int) -> None:
    """Cap a flat texture's size. Cube maps and skies are small already."""
    from PIL import Image

    height, width, channels = model.tex_height[index], model.tex_width[index], model.tex_nchannel[index]
    factor = MAX_TEXTURE / max(height, width)
    if factor >= 1 or model.tex_type[index] != mujoco.mjtTexture.mjTEXTURE_2D or channels != 3:
        return
    first = model.tex_adr[index]
    pixels = model.tex_data[first : first + height * width * channels].reshape(height, width, channels)
    small = Image.fromarray(pixels).resize((round(width * factor), round(height * factor)), Image.Resampling.BOX)
    texture.file = ""
    texture.hflip = texture.vflip = 0  # done already
    texture.width, texture.height, texture.nchannel = small.width, small.height, channels
    texture.data = small.tobytes()
