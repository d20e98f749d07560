"""Frames of many worlds of one scene, drawn on a device without OpenGL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import warp as wp

from libero_gym.common.mujoco_import import mujoco
from libero_gym.gpu import culling, drawing, painting
from libero_gym.gpu.rays import Meshes
from libero_gym.gpu.shading import Lamps, Looks
from libero_gym.rendering.packing import LIGHT_SIZE, OPAQUE, PackedScene
from libero_gym.rendering.posing import camera_ids
from libero_gym.rendering.renderer import check_image_size
from libero_gym.simulation.compiled import CompiledTask

# Pixels that are seen and then painted at a time: what their samples show takes 48 bytes each.
_PIXELS_AT_A_TIME = 2**23
# Threads of a block: measured on an H200, a sixth faster than 256, and as fast as 64.
_BLOCK = 128


class SceneOnDevice:
    """A packed scene's triangles, textures and materials in a device's memory; all worlds and cameras share them.

    Args:
        packed: The scene.
        device: Warp's name of it, such as "cuda:0" or "cpu".
    """

    def __init__(self, packed: PackedScene, device: str) -> None:
        geometry = packed.geometry
        self.packed, self.device = packed, wp.get_device(device)
        firsts, of_geom, groups = _meshes(packed)
        corners = geometry.records[:, :9].reshape(-1, 3, 3)
        lowers, uppers = corners.min(axis=1), corners.max(axis=1)
        # All triangles belong to a group, so that a ray through a geom's frame meets its own alone.
        self._boxes = wp.Bvh(
            self._vectors(lowers), self._vectors(uppers), groups=self._array(groups, wp.int32), constructor="sah"
        )
        roots = wp.empty(len(firsts), dtype=wp.int32, device=self.device)
        wp.launch(_group_roots, len(firsts), [self._boxes.id, roots], device=self.device)
        self.meshes = Meshes()
        self.meshes.records = self._array(geometry.records, wp.float32)
        self.meshes.boxes = self._boxes.id
        self.meshes.roots = self._array(roots.numpy()[of_geom], wp.int32)
        self.spheres = self._array(_bounds(corners, groups)[of_geom], wp.vec4)
        self.looks = Looks()
        self.looks.materials = self._array(geometry.materials, wp.float32)
        self.looks.texels = self._array(geometry.texels, wp.uint32)
        self.looks.levels = self._array(geometry.levels, wp.int32)
        self.looks.textures = self._array(geometry.textures, wp.int32)
        self.looks.lights = self._array(packed.lights.reshape(-1, LIGHT_SIZE), wp.float32)
        self.looks.sky = packed.sky
        self.body = self._array(packed.body, wp.int32)
        self.rotation = self._array(packed.rotation, wp.mat33)
        self.place = self._array(packed.place, wp.vec3)
        self.light_ids = self._array(packed.light_ids, wp.int32)
        self.focals = self._array(packed.cameras, wp.float32)
        self.mirror = _mirror(packed)
        flames = packed.site >= 0  # whose opacity follows a knob
        self.veils = self._array(np.flatnonzero((packed.alpha > 0) & (packed.alpha < OPAQUE) | flames), wp.int32)

    def _array(self, values: Any, dtype: Any) -> wp.array:
        return wp.array(np.ascontiguousarray(values), dtype=dtype, device=self.device)

    def _vectors(self, values: np.ndarray) -> wp.array:
        return self._array(values.astype(np.float32), wp.vec3)


class BatchCamera:
    """Draws W worlds of a scene, each with its own poses.

    What is drawn is what `renderer="fast"` draws, in single precision: see `libero_gym.rendering.software`.

    Args:
        scene: The scene.
        n_worlds: Number of worlds W.
        cameras: Ids of the C cameras.
        image_size: Side of the frames in pixels.
        burners: Sites of the flames of B burners.

    Attributes:
        alpha: float32 (W, G): opacity of each geom, on the device.
    """

    def __init__(
        self,
        scene: SceneOnDevice,
        n_worlds: int,
        cameras: Sequence[int],
        image_size: int,
        burners: Sequence[int] = (),
    ) -> None:
        check_image_size(image_size)
        self.scene, self.n_worlds, self.image_size = scene, n_worlds, image_size
        n_geoms, device = len(scene.packed.body), scene.device
        self._cameras = wp.array(list(cameras), dtype=wp.int32, device=device)
        self._poses = drawing.Poses()
        self._poses.rotations = wp.empty((n_worlds, n_geoms), dtype=wp.mat33, device=device)
        self._poses.places = wp.empty((n_worlds, n_geoms), dtype=wp.vec3, device=device)
        self._poses.spheres = scene.spheres
        alpha = np.tile(scene.packed.alpha.astype(np.float32), (n_worlds, 1))
        self.alpha = self._poses.alpha = wp.array(alpha, dtype=wp.float32, device=device)
        shape = (n_worlds, len(cameras), n_geoms)
        self._seen = drawing.Seen()
        self._seen.rotations = wp.empty(shape, dtype=wp.mat33, device=device)
        self._seen.places = wp.empty(shape, dtype=wp.vec3, device=device)
        self._seen.spheres = wp.empty(shape, dtype=wp.vec4, device=device)
        n_tiles = (-(-image_size // culling.TILE)) ** 2
        self._parts = culling.Parts()
        self._parts.counts = wp.empty((n_worlds, len(cameras), n_tiles), dtype=wp.int32, device=device)
        self._parts.lists = wp.empty((n_worlds, len(cameras), n_tiles, culling.MOST), dtype=wp.int16, device=device)
        self._parts.n_veils = wp.empty((n_worlds, len(cameras)), dtype=wp.int32, device=device)
        self._parts.veils = wp.empty((n_worlds, len(cameras), len(scene.veils)), dtype=wp.int32, device=device)
        self._n_tiles, n_pixels = n_tiles, n_tiles * culling.TILE**2
        self._at_a_time = max(1, min(n_worlds, _PIXELS_AT_A_TIME // (len(cameras) * n_pixels)))
        shape = self._at_a_time, len(cameras), n_pixels
        self._samples = drawing.Samples()
        self._samples.geoms = wp.empty(shape, dtype=wp.vec4i, device=device)
        self._samples.triangles = wp.empty(shape, dtype=wp.vec4i, device=device)
        self._samples.depths = wp.empty(shape, dtype=wp.vec4, device=device)
        frames = (n_worlds * len(cameras), image_size, image_size, 3)
        self._frames = wp.empty(frames, dtype=wp.uint8, device=device)
        flames = [np.flatnonzero(scene.packed.site == site) for site in burners]
        columns = [np.full(len(rows), column) for column, rows in enumerate(flames)]
        self._flames, self._burner_of = (
            wp.array(np.concatenate([*parts, np.zeros(0)]), dtype=wp.int32, device=device)
            for parts in (flames, columns)
        )
        self._everyone = wp.array(np.arange(n_worlds), dtype=wp.int32, device=device)

    @classmethod
    def of_task(
        cls, compiled: CompiledTask, scene: SceneOnDevice, n_worlds: int, cameras: Sequence[str], image_size: int
    ) -> BatchCamera:
        """A camera for worlds of a task, or of another task of its scene.

        Args:
            compiled: The task.
            scene: Its scene.
            n_worlds: Number of worlds.
            cameras: Names of the cameras, as `rendering.renderer.render` takes them.
            image_size: Side of the frames in pixels.
        """
        ids, model = camera_ids(compiled.physics), compiled.physics
        burners = [model.site(burner.site).id for burner in compiled.burners]
        return cls(scene, n_worlds, [ids[camera] for camera in cameras], image_size, burners)

    def show_flames(self, shown: wp.array) -> None:
        """Show the flames of burners that burn, and hide the others.

        Args:
            shown: int32 (W, B) on the device: whether each burns.
        """
        if len(self._flames):
            inputs = [self._flames, self._burner_of, shown, self.alpha]
            wp.launch(drawing.show_flames, (self.n_worlds, len(self._flames)), inputs, device=self.scene.device)

    def draw(self, data: Any, worlds: Sequence[int] | None = None) -> wp.array:
        """One frame of each camera of each world.

        Args:
            data: Where bodies, cameras and lights are, as arrays of the device by MuJoCo Warp's names: ``xpos``
                (W, nbody, 3), ``xmat`` (W, nbody, 3, 3), ``cam_xpos``, ``cam_xmat``, ``light_xpos``, ``light_xdir``.
            worlds: Which worlds, k of them; None for all.

        Returns:
            uint8 (k * C, H, W, 3) on the device, camera by camera for each world, oriented as
            `rendering.renderer.render` orients images. The next call writes into it.
        """
        scene, poses, seen, device = self.scene, self._poses, self._seen, self.scene.device
        chosen = self._everyone if worlds is None else wp.array(list(worlds), dtype=wp.int32, device=device)
        n, n_cameras, n_geoms = len(chosen), len(self._cameras), len(scene.body)
        frames = self._frames[: n * n_cameras]
        if n == 0:
            return frames
        bodies = [data.xmat, data.xpos, scene.body, scene.rotation, scene.place]
        wp.launch(drawing.pose_geoms, (n, n_geoms), [*bodies, chosen, poses], device=device)
        eyes = [data.cam_xpos, data.cam_xmat]
        wp.launch(
            drawing.see_geoms, (n, n_cameras, n_geoms), [poses, self._cameras, *eyes, chosen, seen], device=device
        )
        lens = self._cameras, scene.focals
        tiles = [self.alpha, seen.spheres, *lens, chosen, self.image_size, self._parts]
        wp.launch(culling.list_geoms, (n, n_cameras, self._n_tiles), tiles, device=device)
        wp.launch(
            culling.order_veils,
            (n, n_cameras),
            [scene.veils, self.alpha, seen.spheres, chosen, self._parts],
            device=device,
        )
        lamps = Lamps()
        lamps.ids, lamps.places, lamps.directions = scene.light_ids, data.light_xpos, data.light_xdir
        what = [scene.meshes, scene.looks, lamps, poses, scene.mirror, seen, self._parts]
        eye, how = [*lens, *eyes, scene.packed.near], {"device": device, "block_dim": _BLOCK}
        for first in range(0, n, self._at_a_time):
            shape = min(self._at_a_time, n - first), n_cameras, self._samples.geoms.shape[2]
            where = [*eye, self.image_size, first, chosen, self._samples]
            wp.launch(drawing.see, shape, [scene.meshes, poses, seen, self._parts, *where], **how)
            wp.launch(painting.paint, shape, [*what, *eye, first, chosen, self._samples, frames], **how)
        return frames


@wp.kernel
def _group_roots(boxes: wp.uint64, roots: wp.array(dtype=int)):
    group = wp.tid()
    roots[group] = wp.bvh_get_group_root(boxes, group)


def _meshes(packed: PackedScene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First triangle of each mesh; the mesh of each geom; the mesh of each triangle."""
    firsts, of_geom = np.unique(packed.geometry.geom_triangles, return_inverse=True)
    groups = np.searchsorted(firsts, np.arange(len(packed.geometry.records)), side="right") - 1
    return firsts, of_geom, groups


def _bounds(corners: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Centre and radius of a sphere around each mesh, (n, 4)."""
    spheres = []
    for group in range(groups.max() + 1):
        points = corners[groups == group].reshape(-1, 3)
        centre = 0.5 * (points.min(axis=0) + points.max(axis=0))
        spheres.append((*centre, 1.0001 * np.sqrt(((points - centre) ** 2).sum(axis=1).max())))
    return np.array(spheres, np.float32)


def _mirror(packed: PackedScene) -> painting.Mirror:
    """The first opaque plane or box that reflects, in which alone MuJoCo reflects."""
    is_box = packed.kind == mujoco.mjtGeom.mjGEOM_BOX
    is_flat = is_box | (packed.kind == mujoco.mjtGeom.mjGEOM_PLANE)
    found = np.flatnonzero(is_flat & (packed.reflectance > 0) & (packed.alpha >= OPAQUE))
    mirror = painting.Mirror()
    mirror.geom = int(found[0]) if len(found) else -1
    mirror.height = float(packed.size[found[0], 2]) if len(found) and is_box[found[0]] else 0.0
    mirror.reflectance = float(packed.reflectance[found[0]]) if len(found) else 0.0
    return mirror
