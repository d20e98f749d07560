"""Each sample of a pixel belongs to one triangle: the fill rule, clipping, and the loops that have to agree."""

from __future__ import annotations

import numpy as np
import pytest

from libero_gym.rendering import filling, visibility
from libero_gym.rendering.packing import TRIANGLE_MASK, _Packer
from libero_gym.rendering.textures import Textures
from libero_gym.rendering.triangles import Triangles

# Where the four samples of a pixel lie, in 1/256 pixel, y up (llvmpipe's `lp_sample_pos_4x`).
SAMPLES = ((96, 32), (224, 96), (32, 160), (160, 224))
SIDE = 16  # pixels

Corner = tuple[int, int]


def by_pixel(samples: np.ndarray) -> np.ndarray:
    """Rows of samples, (4 SIDE, SIDE), as (SIDE, SIDE, 4)."""
    return samples.reshape(SIDE, 4, SIDE).transpose(0, 2, 1)


def fill(*corners: Corner, name: int = 0) -> np.ndarray:
    """Which samples a triangle of nearness 1 covers, bool (SIDE, SIDE, 4); corners in 1/256 pixel."""
    (x0, y0), (x1, y1), (x2, y2) = corners
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    assert area > 0
    depth, ids = np.zeros((4 * SIDE, SIDE), np.float32), np.full((4 * SIDE, SIDE), -1, np.int32)
    one = np.float32(1)
    won = filling.fill_triangle(
        x0, y0, one, x1, y1, one, x2, y2, one, area, name, depth, ids, 0, 0, SIDE, SIDE
    )  # fmt: skip
    assert won == (ids == name).sum()
    return by_pixel(ids) == name


def expected(*corners: Corner) -> np.ndarray:
    """The same by exact integers: strictly inside, or on an edge that runs down or, level, to the right."""
    covered = np.ones((SIDE, SIDE, 4), bool)
    pixel = 256 * np.arange(SIDE)
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        owns = y1 < y0 or (y1 == y0 and x1 > x0)
        for sample, (dx, dy) in enumerate(SAMPLES):
            x, y = pixel[None, :] + dx, pixel[:, None] + dy
            side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
            covered[..., sample] &= side >= 0 if owns else side > 0
    return covered


def random_triangles(n: int, extent: int, seed: int) -> np.ndarray:
    """Counter-clockwise triangles with whole corners, int64 (n, 3, 2), at most `extent` wide."""
    rng = np.random.default_rng(seed)
    found = rng.integers(-300, 256 * SIDE + 300, (n, 1, 2)) + rng.integers(0, extent, (n, 3, 2))
    edges = found[:, 1:] - found[:, :1]
    areas = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]
    found[areas < 0] = found[areas < 0][:, ::-1]
    return found[areas != 0]


def test_a_rectangle_owns_the_samples_on_its_left_and_bottom_edges() -> None:
    """One from a pixel's first sample to that of the next pixel in the diagonal: four samples in three pixels."""
    low, high = (96, 32), (352, 288)
    covered = fill(low, (352, 32), high) | fill(low, high, (96, 288))
    assert {(int(x), int(y), int(sample)) for y, x, sample in np.argwhere(covered)} == {
        (0, 0, 0),  # on the corner of the left and bottom edges
        (0, 0, 1),
        (0, 0, 3),
        (1, 0, 2),  # (1, 0, 0) and (0, 1, 0) lie on the right and top edges
    }


@pytest.mark.parametrize("extent", [200, 900, 6000])
def test_triangles_cover_what_exact_arithmetic_says(extent: int) -> None:
    for corners in random_triangles(100, extent, seed=extent):
        triangle = [(int(x), int(y)) for x, y in corners]
        np.testing.assert_array_equal(fill(*triangle), expected(*triangle))


def test_two_triangles_that_share_an_edge_own_each_sample_once() -> None:
    """Convex quadrilaterals split either way cover the same samples, none of them twice, for every edge's slope."""
    rng = np.random.default_rng(0)
    n_on_edge = 0
    for _ in range(100):
        # Corners on samples, so that edges pass through samples often.
        steps = np.sort(rng.integers(0, SIDE, 2)), np.sort(rng.integers(0, SIDE, 2))
        if steps[0][0] == steps[0][1] or steps[1][0] == steps[1][1]:
            continue
        (left, right), (bottom, top) = steps[0] * 256 + 96, steps[1] * 256 + 32
        a, b, c, d = ((int(x), int(y)) for x, y in ((left, bottom), (right, bottom), (right, top), (left, top)))
        one, two = fill(a, b, c), fill(a, c, d)
        three, four = fill(a, b, d), fill(b, c, d)
        assert not (one & two).any()
        assert not (three & four).any()
        np.testing.assert_array_equal(one | two, three | four)
        n_on_edge += int((one ^ three).any())
    assert n_on_edge > 10


def packed(positions: np.ndarray) -> tuple[object, int]:
    """Geometry of one geom with these triangles, (n, 3, 3), and the number of its clusters."""
    packer = _Packer()
    corners = positions.astype(np.float32)
    mesh = packer.add(Triangles(corners, np.zeros_like(corners), np.zeros_like(corners)))
    textures = Textures(np.zeros(1, np.uint32), np.array([(0, 1, 1)], np.int64), np.zeros((1, 4), np.int32))
    geometry = packer.geometry([mesh], np.zeros((1, 9), np.float32), textures)
    return geometry, len(geometry.cluster_rows)


def rasterised(positions: np.ndarray, near: float = 0.01, clip: np.ndarray | None = None) -> np.ndarray:
    """Ids of samples, (SIDE, SIDE, 4), as a camera at the origin that looks along -z sees triangles; 90 degrees wide.

    Ids are numbers of rows of the packed records; triangles' order changes when they are packed.
    """
    geometry, n_clusters = packed(positions)
    depth, ids = np.zeros((4 * SIDE, SIDE), np.float32), np.full((4 * SIDE, SIDE), -1, np.int32)
    bounds, todo = np.empty((n_clusters + 1, 4), np.float32), np.empty((n_clusters + 1, 4), np.int32)
    view = np.array([1.0, near, SIDE, SIDE])
    window = np.array([0, 0, SIDE, SIDE], np.int64)
    visibility.rasterise(
        np.array([0]), geometry, np.eye(3)[None], np.zeros((1, 3)), np.eye(3), np.zeros(3), view, window,
        clip is not None, np.zeros(4) if clip is None else clip, depth, ids, bounds, todo,
    )  # fmt: skip
    return by_pixel(np.where(ids < 0, -1, ids & TRIANGLE_MASK))


def test_small_triangles_tested_many_at_a_time_cover_what_exact_arithmetic_says() -> None:
    """They stand at z = -1, where x from -1 to 1 is the image's width: 256 * SIDE / 2 units of 1/256 pixel."""
    half = 128 * SIDE
    for extent in (60, 150, 400):
        corners = random_triangles(60, extent, seed=extent)
        for triangle in corners:
            positions = np.concatenate([triangle / half - 1, np.full((3, 1), -1.0)], axis=1)
            found = rasterised(positions[None]) >= 0
            np.testing.assert_array_equal(found, expected(*((int(x), int(y)) for x, y in triangle)))


def test_the_back_of_a_triangle_is_not_seen() -> None:
    triangle = np.array([[-0.5, -0.5, -1], [0.5, -0.5, -1], [0, 0.5, -1]])
    assert (rasterised(triangle[None]) >= 0).any()
    assert (rasterised(triangle[None, ::-1]) < 0).all()


def test_the_nearer_triangle_is_seen_whatever_the_order() -> None:
    far = np.array([[-1, -1, -2.0], [3, -1, -2], [-1, 3, -2]])
    for others in (np.stack([far, far / 2]), np.stack([far / 2, far])):
        geometry, _ = packed(others)
        nearest = int(np.argmax(geometry.records[:, 2]))  # type: ignore[attr-defined]
        assert set(np.unique(rasterised(others))) <= {-1, nearest}


def test_a_triangle_that_passes_the_camera_is_cut_at_the_near_plane() -> None:
    """A floor 1 m below the eye, from 1 m behind it to 100 m ahead, fills the lower half of the image."""
    corners = [(-500, -1, 1), (500, -1, 1), (500, -1, -100), (-500, -1, -100)]
    floor = np.array([[corners[i] for i in (0, 1, 2)], [corners[i] for i in (0, 2, 3)]], float)
    covered = rasterised(floor) >= 0
    assert covered[: SIDE // 2 - 1].all()
    assert not covered[SIDE // 2 :].any()


def test_a_polygon_is_cut_where_its_edges_meet_the_plane() -> None:
    """One corner of three behind the plane leaves four corners; two behind leave three."""
    polygon, other = np.zeros((8, 4)), np.zeros((8, 4))
    polygon[:3, :3] = [(0, 0, 1), (4, 0, 1), (0, 4, -1)]
    assert filling.clipped_polygon(polygon, 3, 2, other) == 4
    np.testing.assert_allclose(polygon[:4, :3], [(0, 0, 1), (4, 0, 1), (2, 2, 0), (0, 2, 0)])
    polygon[:3, :3] = [(0, 0, 3), (4, 0, -1), (0, 4, -3)]
    assert filling.clipped_polygon(polygon, 3, 2, other) == 3
    np.testing.assert_allclose(polygon[:3, :3], [(0, 0, 3), (3, 0, 0), (0, 2, 0)], atol=1e-12)
    polygon[:3, 2] = -1
    assert filling.clipped_polygon(polygon, 3, 2, other) == 0
