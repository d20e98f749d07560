"""Frames without OpenGL: a scene's packed triangles drawn by the processor, close to what llvmpipe draws.

A camera that stands still gets what stands still in front of it from a stored background, kept sample by sample, so
that a frame is equal to the byte to one that is drawn whole, whatever was drawn before.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.rendering import mirror, shading, visibility
from libero_gym.rendering.packing import OPAQUE, PackedScene
from libero_gym.rendering.veils import find_layers

# Bytes of stored backgrounds per scene; one of 128 pixels takes 1.6 MB.
_MAX_BACKGROUND_BYTES = 64 * 2**20
# Sizes of frames whose canvases a scene keeps; one of 128 pixels takes 2 MB.
_MAX_CANVASES = 4
_NO_PLANE = np.zeros(4)


class View(NamedTuple):
    """Where a frame is seen from, and by which light."""

    camera: np.ndarray  # (3, 3): rows are the camera's axes in the world; it looks along its negative third
    eye: np.ndarray  # (3,), m
    numbers: np.ndarray  # (4,): focal length of half the height, near plane in m, width, height
    lights: np.ndarray  # (n, `packing.LIGHT_SIZE`)


class Poses(NamedTuple):
    """Where G geoms are in the world."""

    rotations: np.ndarray  # (G, 3, 3)
    places: np.ndarray  # (G, 3), m


class Samples(NamedTuple):
    """Four samples for each of H x W pixels, by row of samples."""

    depth: np.ndarray  # float32 (4 H, W): 1 / distance along the view in 1/m, 0 where nothing is
    ids: np.ndarray  # int32 (4 H, W): `geom << TRIANGLE_BITS | triangle`, -1 where nothing is
    colours: np.ndarray  # uint8 (4 H, W, 3)

    @classmethod
    def of(cls, height: int, width: int) -> Samples:
        """Samples that are not set."""
        shape = 4 * height, width
        return cls(np.empty(shape, np.float32), np.empty(shape, np.int32), np.empty((*shape, 3), np.uint8))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.ids.shape[0] // 4, self.ids.shape[1]

    @property
    def window(self) -> np.ndarray:
        """All pixels: left, bottom, right, top."""
        return np.array([0, 0, self.ids.shape[1], self.ids.shape[0] // 4], np.int64)


class Frame(NamedTuple):
    """What a camera sees, bottom row first. Depth and ids hold until the painter's next frame of this size."""

    image: np.ndarray  # uint8 (H, W, 3)
    depth: np.ndarray  # float32 (H, W, 4), 1/m, by sample, of what is opaque
    ids: np.ndarray  # int32 (H, W, 4), by sample, of what is seen first, transparent or not; see `Samples`


class _Canvas(NamedTuple):
    """What frames of one size are drawn on, kept because new memory costs more than the drawing of a small thing."""

    samples: Samples
    further: Samples  # for what is drawn by itself first: reflections, transparent things
    work: shading.Work

    @classmethod
    def of(cls, height: int, width: int) -> _Canvas:
        return cls(Samples.of(height, width), Samples.of(height, width), shading.Work.of(width))


class _Background(NamedTuple):
    samples: Samples  # their colours with reflections
    plain: np.ndarray  # the colours without, in the mirror's window
    image: np.ndarray
    mirror_window: np.ndarray | None  # pixels that show the mirror
    mirror_depth: np.ndarray  # 1/m of what is reflected there


def _part(window: np.ndarray) -> tuple[slice, slice]:
    """The samples of a window of pixels."""
    left, bottom, right, top = window
    return slice(4 * bottom, 4 * top), slice(left, right)


class Painter:
    """Draws one packed scene. It belongs to one thread at a time.

    Args:
        packed: The scene.
    """

    def __init__(self, packed: PackedScene) -> None:
        self.packed = packed
        n_clusters = len(packed.geometry.cluster_rows) + 1
        self._bounds, self._todo = np.empty((n_clusters, 4), np.float32), np.empty((n_clusters, 4), np.int32)
        self._canvases: dict[tuple[int, int], _Canvas] = {}
        self._backgrounds: OrderedDict[tuple[Any, ...], _Background] = OrderedDict()
        is_flat = np.isin(packed.kind, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
        mirrors = np.flatnonzero(is_flat & (packed.reflectance > 0) & (packed.alpha >= OPAQUE))
        self._mirror = int(mirrors[0]) if len(mirrors) else None  # MuJoCo reflects in the first alone

    def paint(self, view: View, poses: Poses, alpha: np.ndarray, still_key: tuple[Any, ...] | None) -> Frame:
        """One frame.

        Args:
            view: Where it is seen from.
            poses: Where everything is.
            alpha: Opacity of each geom, (G,); one that is hidden has 0 or less.
            still_key: What decides how the still part looks from this view; None draws everything anew.
        """
        opaque = alpha >= OPAQUE
        if still_key is None:
            samples, image = self._canvas(view).samples, self._paint_whole(np.flatnonzero(opaque), view, poses)
        else:
            background = self._background(still_key, np.flatnonzero(opaque & ~self.packed.is_moving), view, poses)
            moving = np.flatnonzero(opaque & self.packed.is_moving)
            samples, image = self._canvas(view).samples, self._paint_moving(moving, background, view, poses)
        self._blend(np.flatnonzero((alpha > 0) & ~opaque), alpha, view, poses, samples, image)
        depth, ids = (array.reshape(image.shape[0], 4, -1).transpose(0, 2, 1) for array in (samples.depth, samples.ids))
        return Frame(image, depth, ids)

    def _canvas(self, view: View) -> _Canvas:
        size = int(view.numbers[3]), int(view.numbers[2])
        if size not in self._canvases:
            if len(self._canvases) >= _MAX_CANVASES:
                self._canvases.clear()
            self._canvases[size] = _Canvas.of(*size)
        return self._canvases[size]

    def _paint_whole(self, geoms: np.ndarray, view: View, poses: Poses) -> np.ndarray:
        """Draws all on the canvas; gives the image."""
        samples = self._canvas(view).samples
        self._paint_still(geoms, view, poses, samples)
        window = self._mirror_window(samples.ids)
        if window is not None:
            reflected = self._reflect(geoms, samples.ids, None, None, window, view, poses)
            if reflected is not None:
                mirror.add_reflection(samples.colours, reflected.colours, reflected.ids, window)
        return self._resolved(samples)

    def _paint_still(self, geoms: np.ndarray, view: View, poses: Poses, samples: Samples) -> None:
        """Draws geoms and what is behind them, without reflections."""
        samples.depth[:], samples.ids[:] = 0, visibility.BACKGROUND
        self._rasterise(geoms, view, poses, samples)
        self._shade(samples, samples.window, -1, view, poses, sky=self.packed.sky)

    def _resolved(self, samples: Samples) -> np.ndarray:
        image = np.empty((*samples.size, 3), np.uint8)
        shading.resolve(samples.colours, samples.ids, -1, samples.window, image)
        return image

    def _background(self, key: tuple[Any, ...], still: np.ndarray, view: View, poses: Poses) -> _Background:
        if key in self._backgrounds:
            self._backgrounds.move_to_end(key)
            return self._backgrounds[key]
        samples = Samples.of(int(view.numbers[3]), int(view.numbers[2]))
        self._paint_still(still, view, poses, samples)
        window, reflected = self._mirror_window(samples.ids), None
        plain = mirror_depth = np.zeros(0)
        if window is not None:
            part = _part(window)
            plain = samples.colours[part].copy()
            reflected = self._reflect(still, samples.ids, None, None, window, view, poses)
            mirror_depth = np.zeros_like(samples.depth[part])
        if window is not None and reflected is not None:
            mirror_depth = reflected.depth[part].copy()
            mirror.add_reflection(samples.colours, reflected.colours, reflected.ids, window)
        background = _Background(samples, plain, self._resolved(samples), window, mirror_depth)
        capacity = max(_MAX_BACKGROUND_BYTES // sum(array.nbytes for array in (*samples, plain, mirror_depth)), 1)
        while len(self._backgrounds) >= capacity:
            self._backgrounds.popitem(last=False)
        self._backgrounds[key] = background
        return background

    def _paint_moving(self, moving: np.ndarray, background: _Background, view: View, poses: Poses) -> np.ndarray:
        """Draws what moves on the canvas, over the background; gives the image."""
        still, samples, image = background.samples, self._canvas(view).samples, background.image.copy()
        np.copyto(samples.depth, still.depth)
        np.copyto(samples.colours, still.colours)
        samples.ids[:] = visibility.BACKGROUND
        self._rasterise(moving, view, poses, samples)
        self._shade(samples, samples.window, 0, view, poses, sky=self.packed.sky)
        window = background.mirror_window
        if window is not None:  # moving things in the mirror replace the still reflection where they are nearer
            part = _part(window)
            reflected = self._reflect(moving, still.ids, samples.ids, background.mirror_depth, window, view, poses)
            if reflected is not None:
                hit = reflected.ids[part] >= 0
                samples.colours[part][hit] = background.plain[hit]
                mirror.add_reflection(samples.colours, reflected.colours, reflected.ids, window)
                shading.resolve(samples.colours, reflected.ids, 0, window, image)
        shading.resolve(samples.colours, samples.ids, 0, samples.window, image)
        np.copyto(samples.ids, still.ids, where=samples.ids < 0)
        return image

    def _mirror_window(self, ids: np.ndarray) -> np.ndarray | None:
        """Pixels that show the mirror; None if none does."""
        if self._mirror is None:
            return None
        window = np.array(visibility.geom_window(ids, self._mirror), np.int64)
        return window if window[0] < window[2] else None

    def _reflect(
        self,
        geoms: np.ndarray,
        front: np.ndarray,
        over: np.ndarray | None,
        depth: np.ndarray | None,
        window: np.ndarray,
        view: View,
        poses: Poses,
    ) -> Samples | None:
        """Samples of what geoms look like in the mirror, where they are nearer than `depth`; None if nothing is.

        Args:
            geoms: What may be reflected.
            front: Ids of what hides the mirror, or is it.
            over: Ids of what hides both; None for nothing.
            depth: 1/m of what is reflected already, in the window; None if nothing is.
            window: Pixels that show the mirror.
            view: Where it is seen from.
            poses: Where everything is.
        """
        assert self._mirror is not None
        geom, packed, behind = self._mirror, self.packed, self._canvas(view).further
        is_box = packed.kind[geom] == mujoco.mjtGeom.mjGEOM_BOX
        height = float(packed.size[geom, 2]) if is_box else 0.0
        faces_eye, rotations, places, lights, plane = mirror.mirror_image(
            poses.rotations[geom], poses.places[geom], height, view.eye, poses.rotations, poses.places, view.lights
        )
        if not faces_eye:
            return None
        part = _part(window)
        behind.ids[part] = visibility.BACKGROUND
        behind.depth[part] = 0 if depth is None else depth
        there, seen = Poses(rotations, places), view._replace(lights=lights)
        if not self._rasterise(geoms[geoms != geom], seen, there, behind, window, plane):
            return None
        hiding = front if over is None else over
        mirror.hide_outside_face(front, hiding, over is not None, behind.ids, packed.geometry, geom, window)
        self._shade(behind, window, 0, seen, there, sky=-1, scale=float(packed.reflectance[geom]))
        return behind

    def _blend(
        self,
        geoms: np.ndarray,
        alpha: np.ndarray,
        view: View,
        poses: Poses,
        samples: Samples,
        image: np.ndarray,
    ) -> None:
        """Draws transparent geoms over what is there, as MuJoCo does: all of them front to back, then back to front."""
        veils = []
        for geom in self._front_to_back(geoms, view, poses):
            layers = []
            for layer in find_layers(
                geom, self.packed.geometry, poses.rotations, poses.places, view.camera, view.eye, view.numbers,
                samples.depth, self._bounds, self._todo,
            ):  # fmt: skip
                veil = samples._replace(ids=layer, colours=np.empty_like(samples.colours))
                window = np.array(visibility.geom_window(layer, geom), np.int64)
                self._shade(veil, window, 0, view, poses, sky=-1)
                layers.append((veil, window))
            veils.append((alpha[geom], layers))
        for opacity, layers in (*veils, *reversed(veils)):
            for veil, window in layers:
                part = _part(window)
                hit = veil.ids[part] >= 0
                mixed = opacity * veil.colours[part][hit] + (1 - opacity) * samples.colours[part][hit]
                samples.colours[part][hit] = (mixed + 0.5).astype(np.uint8)
        for _, layers in reversed(veils):
            for veil, window in reversed(layers):
                np.copyto(samples.ids, veil.ids, where=veil.ids >= 0)
                shading.resolve(samples.colours, veil.ids, 0, window, image)

    def _front_to_back(self, geoms: np.ndarray, view: View, poses: Poses) -> list[int]:
        """Transparent geoms by the distance of their bounding spheres, planes last: `mjr_render`'s order."""
        if len(geoms) < 2:
            return [int(geom) for geom in geoms]
        kind, size = self.packed.kind[geoms], self.packed.size[geoms].astype(np.float64)
        types = mujoco.mjtGeom
        radii = np.linalg.norm(size, axis=1)
        radii = np.where(kind == types.mjGEOM_SPHERE, size[:, 0], radii)
        radii = np.where(kind == types.mjGEOM_ELLIPSOID, size.max(axis=1), radii)
        radii = np.where(kind == types.mjGEOM_CAPSULE, size[:, 0] + size[:, 2], radii)
        radii = np.where(kind == types.mjGEOM_CYLINDER, np.hypot(size[:, 0], size[:, 2]), radii)
        distances = np.linalg.norm(poses.places[geoms] - view.eye, axis=1) - radii
        distances = np.where(kind == types.mjGEOM_PLANE, np.inf, distances)
        return [int(geom) for geom in geoms[np.argsort(distances, kind="stable")]]

    def _rasterise(
        self,
        geoms: np.ndarray,
        view: View,
        poses: Poses,
        samples: Samples,
        window: np.ndarray | None = None,
        mirror_plane: np.ndarray | None = None,
    ) -> int:
        """Draws geoms into depth and ids; gives the number of samples that they won."""
        return int(
            visibility.rasterise(
                geoms,
                self.packed.geometry,
                poses.rotations,
                poses.places,
                view.camera,
                view.eye,
                view.numbers,
                samples.window if window is None else window,
                mirror_plane is not None,
                _NO_PLANE if mirror_plane is None else mirror_plane,
                samples.depth,
                samples.ids,
                self._bounds,
                self._todo,
            )
        )

    def _shade(
        self,
        samples: Samples,
        window: np.ndarray,
        lowest: int,
        view: View,
        poses: Poses,
        *,
        sky: int,
        scale: float = 1.0,
    ) -> None:
        """Colours the samples whose id is at least `lowest`."""
        shading.shade_samples(
            samples.ids, window, lowest, self.packed.geometry, poses.rotations, poses.places, view.lights, view.camera,
            view.eye, view.numbers[0], sky, scale, self._canvas(view).work, samples.colours,
        )  # fmt: skip
