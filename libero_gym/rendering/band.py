"""A band of a frame's rows, which one thread draws: every step from triangles to colours, sample by sample.

What a sample becomes depends on its own row alone, so a frame is the same to the byte however it is cut into bands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from libero_gym.common.mujoco_import import mujoco
from libero_gym.rendering import mirror, shading, visibility
from libero_gym.rendering.packing import PackedScene
from libero_gym.rendering.veils import find_layers, mix

_NO_PLANE = np.zeros(4)


class View(NamedTuple):
    """Where a frame is seen from, and by which light."""

    camera: np.ndarray  # (3, 3): rows are the camera's axes in the world; it looks along its negative third
    eye: np.ndarray  # (3,), m
    numbers: np.ndarray  # (4,): focal length of half the height, near plane in m, width, height
    lights: np.ndarray  # (n, `packing.LIGHT_SIZE`)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.numbers[3]), int(self.numbers[2])


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


class Space(NamedTuple):
    """Work space of one thread."""

    bounds: np.ndarray  # see `visibility.seen_clusters`
    todo: np.ndarray
    work: shading.Work


class Reflection(NamedTuple):
    """The scene as it stands behind a mirror."""

    geom: int  # the mirror
    window: np.ndarray  # pixels that show it: left, bottom, right, top
    plane: np.ndarray  # (4,), normal and offset: what is in front of it is reflected
    lights: np.ndarray
    poses: Poses


def part_of(window: np.ndarray) -> tuple[slice, slice]:
    """The samples of a window of pixels."""
    left, bottom, right, top = window
    return slice(4 * bottom, 4 * top), slice(left, right)


def reflect(packed: PackedScene, geom: int, window: np.ndarray, view: View, poses: Poses) -> Reflection | None:
    """What stands behind a mirror; None if its face looks away.

    Args:
        packed: The scene.
        geom: The mirror.
        window: Pixels that show it.
        view: Where it is seen from.
        poses: Where everything is.
    """
    is_box = packed.kind[geom] == mujoco.mjtGeom.mjGEOM_BOX
    height = float(packed.size[geom, 2]) if is_box else 0.0
    faces_eye, rotations, places, lights, plane = mirror.mirror_image(
        poses.rotations[geom], poses.places[geom], height, view.eye, poses.rotations, poses.places, view.lights
    )
    return Reflection(geom, window, plane, lights, Poses(rotations, places)) if faces_eye else None


class Band(NamedTuple):
    """Rows of one frame, or a window in them."""

    packed: PackedScene
    view: View
    poses: Poses
    window: np.ndarray  # int64 (4,): left, bottom, right, top in pixels
    space: Space

    def draw(self, geoms: np.ndarray, samples: Samples) -> None:
        """Draws geoms and what is behind them, without reflections."""
        part = part_of(self.window)
        samples.depth[part], samples.ids[part] = 0, visibility.BACKGROUND
        self.rasterise(geoms, samples)
        self.shade(samples, -1, sky=self.packed.sky)

    def rasterise(self, geoms: np.ndarray, samples: Samples, mirror_plane: np.ndarray | None = None) -> int:
        """Draws geoms into depth and ids; gives the number of samples that they won."""
        view, poses = self.view, self.poses
        is_mirrored, plane = (False, _NO_PLANE) if mirror_plane is None else (True, mirror_plane)
        return int(
            visibility.rasterise(
                geoms, self.packed.geometry, poses.rotations, poses.places, view.camera, view.eye, view.numbers,
                self.window, is_mirrored, plane, samples.depth, samples.ids, self.space.bounds, self.space.todo,
            )
        )  # fmt: skip

    def shade(self, samples: Samples, lowest: int, *, sky: int, scale: float = 1.0) -> None:
        """Colours the samples whose id is at least `lowest`."""
        view, poses = self.view, self.poses
        shading.shade_samples(
            samples.ids, self.window, lowest, self.packed.geometry, poses.rotations, poses.places, view.lights,
            view.camera, view.eye, view.numbers[0], sky, scale, self.space.work, samples.colours,
        )  # fmt: skip

    def resolve(self, samples: Samples, lowest: int, image: np.ndarray) -> None:
        """Averages the samples of pixels that have an id of at least `lowest` into the image."""
        shading.resolve(samples.colours, samples.ids, lowest, self.window, image)

    def inside(self, window: np.ndarray) -> Band:
        """The part of the band in a window, which has no rows if they do not meet."""
        left, bottom, right, top = window
        bottom, top = max(bottom, self.window[1]), min(top, self.window[3])
        return self._replace(window=np.array([left, bottom, right, max(bottom, top)], np.int64))

    def reflect(
        self,
        geoms: np.ndarray,
        reflection: Reflection,
        front: np.ndarray,
        over: np.ndarray | None,
        depth: np.ndarray | None,
        behind: Samples,
    ) -> bool:
        """Draws what geoms look like in a mirror, where they are nearer than `depth`; whether there is anything.

        Args:
            geoms: What may be reflected.
            reflection: The scene behind the mirror, whose window the band's is in.
            front: Ids of what hides the mirror, or is it.
            over: Ids of what hides both; None for nothing.
            depth: 1/m of what is reflected already, in the band's window; None if nothing is.
            behind: Filled in the band's window.
        """
        part, geom = part_of(self.window), reflection.geom
        behind.ids[part] = visibility.BACKGROUND
        behind.depth[part] = 0 if depth is None else depth
        there = self._replace(view=self.view._replace(lights=reflection.lights), poses=reflection.poses)
        if not there.rasterise(geoms[geoms != geom], behind, reflection.plane):
            return False
        hiding = front if over is None else over
        mirror.hide_outside_face(
            front, hiding, over is not None, behind.ids, self.packed.geometry, geom, self.window
        )  # fmt: skip
        there.shade(behind, 0, sky=-1, scale=float(self.packed.reflectance[geom]))
        return True

    def blend(self, geoms: list[int], alpha: np.ndarray, samples: Samples, further: Samples, image: np.ndarray) -> None:
        """Draws transparent geoms over what is there, as MuJoCo does: all of them front to back, then back to front.

        Args:
            geoms: Which, nearest first.
            alpha: Opacity of all geoms.
            samples: What is there; changed.
            further: Work space.
            image: Changed, too.
        """
        view, poses = self.view, self.poses
        veils = []
        for geom in geoms:
            window, found = find_layers(
                geom, self.packed.geometry, poses.rotations, poses.places, view.camera, view.eye, view.numbers,
                self.window, samples.depth, further.depth, further.ids, self.space.bounds, self.space.todo,
            )  # fmt: skip
            band = self._replace(window=window)
            layers = [samples._replace(ids=layer, colours=np.empty_like(samples.colours)) for layer in found]
            for veil in layers:
                band.shade(veil, 0, sky=-1)
            veils.append((alpha[geom], band, layers))
        for opacity, band, layers in (*veils, *reversed(veils)):
            for veil in layers:
                mix(veil.ids, veil.colours, opacity, band.window, samples.colours)
        for _, band, layers in reversed(veils):
            part = part_of(band.window)
            for veil in reversed(layers):
                np.copyto(samples.ids[part], veil.ids[part], where=veil.ids[part] >= 0)
                band.resolve(samples._replace(ids=veil.ids), 0, image)
