"""Frames without OpenGL: a scene's packed triangles drawn by the processor, close to what llvmpipe draws.

A camera that stands still gets what stands still in front of it from a stored background, kept sample by sample, so
that a frame is equal to the byte to one that is drawn whole, whatever was drawn before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.rendering import mirror, shading, visibility
from libero_gym.rendering.band import Band, Poses, Reflection, Samples, Space, View, part_of, reflect
from libero_gym.rendering.packing import OPAQUE, PackedScene
from libero_gym.rendering.threads import Cuts, run_together

# Bytes of stored backgrounds per scene; one of 128 pixels takes 1.6 MB.
_MAX_BACKGROUND_BYTES = 64 * 2**20
# Sizes of frames whose canvases a scene keeps; one of 128 pixels takes 2 MB.
_MAX_CANVASES = 4


class Frame(NamedTuple):
    """What a camera sees, bottom row first. Depth and ids hold until the painter's next frame of this size."""

    image: np.ndarray  # uint8 (H, W, 3)
    depth: np.ndarray  # float32 (H, W, 4), 1/m, by sample, of what is opaque
    ids: np.ndarray  # int32 (H, W, 4), by sample, of what is seen first, transparent or not; see `Samples`


class _Canvas(NamedTuple):
    """What frames of one size are drawn on, kept because new memory costs more than the drawing of a small thing."""

    samples: Samples
    further: Samples  # for what is drawn by itself first: reflections, transparent things
    work: list[shading.Work]  # by thread
    cuts: dict[tuple[int, bool], Cuts]  # by number of bands, and whether there is a stored background


class _Background(NamedTuple):
    samples: Samples  # their colours with reflections
    plain: np.ndarray  # the colours without, in the mirror's window
    image: np.ndarray
    mirror_window: np.ndarray | None  # pixels that show a mirror's face
    mirror_depth: np.ndarray  # 1/m of what is reflected in the mirror's window


class Painter:
    """Draws one packed scene. It belongs to one thread at a time.

    Args:
        packed: The scene.
    """

    def __init__(self, packed: PackedScene) -> None:
        self.packed = packed
        self._lists: list[tuple[np.ndarray, np.ndarray]] = []  # of clusters, by thread
        self._canvases: dict[tuple[int, int], _Canvas] = {}
        self._backgrounds: OrderedDict[tuple[Any, ...], _Background] = OrderedDict()
        is_flat = np.isin(packed.kind, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
        mirrors = np.flatnonzero(is_flat & (packed.reflectance > 0) & (packed.alpha >= OPAQUE))
        self._mirror = int(mirrors[0]) if len(mirrors) else None  # MuJoCo reflects in the first alone

    def paint(
        self, view: View, poses: Poses, alpha: np.ndarray, still_key: tuple[Any, ...] | None, n_threads: int = 1
    ) -> Frame:
        """One frame.

        Args:
            view: Where it is seen from.
            poses: Where everything is.
            alpha: Opacity of each geom, (G,); one that is hidden has 0 or less.
            still_key: What decides how the still part looks from this view; None draws everything anew.
            n_threads: How many threads draw it; the frame is the same.
        """
        opaque, samples = alpha >= OPAQUE, self._canvas(view).samples
        veils = self._front_to_back(np.flatnonzero((alpha > 0) & ~opaque), view, poses)
        background = None
        if still_key is not None:
            still = np.flatnonzero(opaque & ~self.packed.is_moving)
            background = self._background(still_key, still, view, poses)
        geoms = np.flatnonzero(opaque if background is None else opaque & self.packed.is_moving)
        image = np.empty((*view.size, 3), np.uint8)
        self._paint(geoms, veils, alpha, background, image, view, poses, n_threads)
        depth, ids = (array.reshape(image.shape[0], 4, -1).transpose(0, 2, 1) for array in (samples.depth, samples.ids))
        return Frame(image, depth, ids)

    def _paint(
        self,
        geoms: np.ndarray,
        veils: list[int],
        alpha: np.ndarray,
        background: _Background | None,
        image: np.ndarray,
        view: View,
        poses: Poses,
        n_threads: int,
    ) -> None:
        """Draws opaque geoms and veils on the canvas and the image, over the background if there is one."""
        canvas = self._canvas(view)
        samples, further = canvas.samples, canvas.further
        cuts = canvas.cuts.setdefault((n_threads, background is not None), Cuts(view.size[0], n_threads))
        bands = [self._band(i, rows, view, poses) for i, rows in enumerate(cuts.rows)]
        reflection = None
        if background is not None and background.mirror_window is not None:
            reflection = self._reflection(background.mirror_window, view, poses)

        def draw(band: Band) -> None:
            if background is None:
                band.draw(geoms, samples)
            else:
                _draw_moving(band, geoms, background, samples, image)

        def finish(band: Band) -> None:
            if background is None:
                if reflection is not None:
                    _add_reflection(band.inside(reflection.window), geoms, reflection, samples, further)
                band.resolve(samples, -1, image)
            else:
                _finish_moving(band, geoms, background, reflection, samples, further, image)
            band.blend(veils, alpha, samples, further, image)

        def draw_and_finish(band: Band) -> None:
            draw(band)
            finish(band)

        if background is None and self._mirror is not None:  # all bands decide where the mirror is seen
            first = _run(draw, bands)
            reflection = self._reflection(self._mirror_window(samples.ids), view, poses)
            cuts.learn([a + b for a, b in zip(first, _run(finish, bands), strict=True)])
        else:
            cuts.learn(_run(draw_and_finish, bands))

    def _canvas(self, view: View) -> _Canvas:
        size = view.size
        if size not in self._canvases:
            if len(self._canvases) >= _MAX_CANVASES:
                self._canvases.clear()
            self._canvases[size] = _Canvas(Samples.of(*size), Samples.of(*size), [], {})
        return self._canvases[size]

    def _band(self, thread: int, rows: tuple[int, int], view: View, poses: Poses) -> Band:
        """Rows that a thread draws with its own work space."""
        work, width = self._canvas(view).work, view.size[1]
        while len(work) <= thread:
            work.append(shading.Work.of(width))
        while len(self._lists) <= thread:
            n = len(self.packed.geometry.cluster_rows) + 1
            self._lists.append((np.empty((n, 4), np.float32), np.empty((n, 4), np.int32)))
        window = np.array([0, rows[0], width, rows[1]], np.int64)
        return Band(self.packed, view, poses, window, Space(*self._lists[thread], work[thread]))

    def _background(self, key: tuple[Any, ...], still: np.ndarray, view: View, poses: Poses) -> _Background:
        if key in self._backgrounds:
            self._backgrounds.move_to_end(key)
            return self._backgrounds[key]
        samples, image = Samples.of(*view.size), np.empty((*view.size, 3), np.uint8)
        band = self._band(0, (0, view.size[0]), view, poses)
        band.draw(still, samples)
        reflection = self._reflection(self._mirror_window(samples.ids), view, poses)
        plain = mirror_depth = np.zeros(0)
        if reflection is not None:
            part, further = part_of(reflection.window), self._canvas(view).further
            plain = samples.colours[part].copy()
            has_any = _add_reflection(band.inside(reflection.window), still, reflection, samples, further)
            mirror_depth = further.depth[part].copy() if has_any else np.zeros_like(samples.depth[part])
        band.resolve(samples, -1, image)
        window = None if reflection is None else reflection.window
        background = _Background(samples, plain, image, window, mirror_depth)
        capacity = max(_MAX_BACKGROUND_BYTES // sum(array.nbytes for array in (*samples, plain, mirror_depth)), 1)
        while len(self._backgrounds) >= capacity:
            self._backgrounds.popitem(last=False)
        self._backgrounds[key] = background
        return background

    def _mirror_window(self, ids: np.ndarray) -> np.ndarray | None:
        """Pixels that show the mirror; None if none does."""
        if self._mirror is None:
            return None
        window = np.array(visibility.geom_window(ids, self._mirror), np.int64)
        return window if window[0] < window[2] else None

    def _reflection(self, window: np.ndarray | None, view: View, poses: Poses) -> Reflection | None:
        """What stands behind the mirror that a window shows; None if its face looks away, or there is no window."""
        if self._mirror is None or window is None:
            return None
        return reflect(self.packed, self._mirror, window, view, poses)

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


def _run(draw: Callable[[Band], None], bands: list[Band]) -> list[float]:
    """Draws bands at the same time; CPU seconds of each."""
    return run_together([lambda band=band: draw(band) for band in bands])  # type: ignore[misc]


def _add_reflection(band: Band, geoms: np.ndarray, reflection: Reflection, samples: Samples, further: Samples) -> bool:
    """Adds what a mirror shows of geoms to the samples in its window; whether there is anything."""
    if not band.reflect(geoms, reflection, samples.ids, None, None, further):
        return False
    mirror.add_reflection(samples.colours, further.colours, further.ids, band.window)
    return True


def _draw_moving(band: Band, moving: np.ndarray, background: _Background, samples: Samples, image: np.ndarray) -> None:
    """Draws what moves over the background, without reflections."""
    still, part, rows = background.samples, part_of(band.window), slice(band.window[1], band.window[3])
    np.copyto(samples.depth[part], still.depth[part])
    np.copyto(samples.colours[part], still.colours[part])
    np.copyto(image[rows], background.image[rows])
    samples.ids[part] = visibility.BACKGROUND
    band.rasterise(moving, samples)
    band.shade(samples, 0, sky=band.packed.sky)


def _finish_moving(
    band: Band,
    moving: np.ndarray,
    background: _Background,
    reflection: Reflection | None,
    samples: Samples,
    further: Samples,
    image: np.ndarray,
) -> None:
    """Moving things in the mirror replace the still reflection where they are nearer; then the image is resolved."""
    if reflection is not None:
        there = band.inside(reflection.window)
        part = part_of(there.window)
        first, last = 4 * (there.window[[1, 3]] - reflection.window[1])
        depth = background.mirror_depth[first:last]
        if there.reflect(moving, reflection, background.samples.ids, samples.ids, depth, further):
            hit = further.ids[part] >= 0
            samples.colours[part][hit] = background.plain[first:last][hit]
            mirror.add_reflection(samples.colours, further.colours, further.ids, there.window)
            there.resolve(samples._replace(ids=further.ids), 0, image)
    band.resolve(samples, 0, image)
    part = part_of(band.window)
    np.copyto(samples.ids[part], background.samples.ids[part], where=samples.ids[part] < 0)
