"""Geoms become closed surfaces that face outward, and planes get the grid lines of MuJoCo."""

from __future__ import annotations

import io
import math

import mujoco
import numpy as np
import pytest
from frames import scene_xml
from PIL import Image

from libero_gym.rendering.packing import pack_scene
from libero_gym.rendering.textures import _halved, _mip_chain
from libero_gym.rendering.triangles import NotDrawnError, _plane_lines


def records(bodies: str, assets: str = "") -> np.ndarray:
    """Packed triangles of a scene, (N, 3 arrays, 3 corners, 3): positions, normals, texture coordinates."""
    grey = io.BytesIO()
    Image.new("RGBA", (8, 8), "grey").save(grey, "png")
    model = mujoco.MjModel.from_xml_string(scene_xml(bodies, assets), {"grey.png": grey.getvalue()})
    return pack_scene(model).geometry.records.reshape(-1, 3, 3, 3).astype(float)


VOLUMES = {
    '<geom type="box" size=".2 .3 .4"/>': 8 * 0.2 * 0.3 * 0.4,
    '<geom type="sphere" size=".5"/>': 4 / 3 * math.pi * 0.5**3,
    '<geom type="ellipsoid" size=".2 .3 .4"/>': 4 / 3 * math.pi * 0.2 * 0.3 * 0.4,
    '<geom type="cylinder" size=".2 .3"/>': math.pi * 0.2**2 * 0.6,
    '<geom type="capsule" size=".2 .3"/>': math.pi * 0.2**2 * 0.6 + 4 / 3 * math.pi * 0.2**3,
}


@pytest.mark.parametrize("geom", VOLUMES)
def test_a_geom_is_a_closed_surface_that_faces_outward(geom: str) -> None:
    """By Gauss's theorem its triangles enclose its volume, a little less where it is round, and no net area."""
    positions, normals = np.moveaxis(records(geom), 1, 0)[:2]
    faces = np.cross(positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0]) / 2
    np.testing.assert_allclose(faces.sum(axis=0), 0, atol=1e-6)
    volume = (faces * positions.mean(axis=1)).sum() / 3
    assert 0.97 * VOLUMES[geom] < volume < 1.0001 * VOLUMES[geom]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    assert ((normals * faces[:, None]).sum(axis=-1) > 0).all()


def test_a_sphere_lies_on_its_radius() -> None:
    positions, normals = np.moveaxis(records('<geom type="sphere" size=".5"/>'), 1, 0)[:2]
    np.testing.assert_allclose(positions, 0.5 * normals, atol=1e-6)


def test_planes_have_lines_at_multiples_of_twice_their_spacing_and_at_their_edges() -> None:
    np.testing.assert_allclose(_plane_lines(1.0, 0.5), [-1, 0, 1])
    np.testing.assert_allclose(_plane_lines(1.1, 0.5), [-1.1, -1, 0, 1, 1.1])
    np.testing.assert_allclose(_plane_lines(2.0, 0.5), [-2, -1, 0, 1, 2])
    assert len(_plane_lines(1000.0, 0.001)) - 1 <= 200  # cells of MuJoCo's largest grid


def test_mip_levels_round_up_at_one_half_across_and_then_down() -> None:
    image = np.array([[1, 2], [3, 6]], np.uint8)[..., None].repeat(3, axis=-1)
    # Across: (1 + 2 + 1) >> 1 = 2 and (3 + 6 + 1) >> 1 = 5; down: (2 + 5 + 1) >> 1 = 4. The mean is 3.
    assert _halved(image).tolist() == [[[4, 4, 4]]]


def test_mip_levels_of_odd_sizes_are_sampled_between_texels() -> None:
    row = np.array([[0, 40, 80, 120, 200]], np.uint8)[..., None].repeat(3, axis=-1)
    # Two texels at (0.5, 1.5) * 5 / 2 - 0.5 = 0.75 and 3.25.
    assert _halved(row)[0, :, 0].tolist() == [30, 140]
    assert [level[0].shape[:2] for level in _mip_chain([np.zeros((6, 9, 3), np.uint8)])] == [
        (6, 9), (3, 4), (1, 2), (1, 1),
    ]  # fmt: skip


FLEX = '<flexcomp name="cloth" type="grid" count="3 3 1" spacing=".1 .1 .1" dim="2"/>'
HFIELD = '<hfield name="hills" nrow="4" ncol="4" size="1 1 .1 .1" elevation="0 0 0 0 0 1 1 0 0 1 1 0 0 0 0 0"/>'
GREY = (
    '<texture name="grey" type="2d" file="grey.png" nchannel="4"/>'  # newer versions refuse it of builtin ones
    '<material name="grey" texture="grey"/>'
)
FLAT = 'projection="orthographic"' if hasattr(mujoco.MjsCamera, "proj") else 'orthographic="true"'


@pytest.mark.parametrize(
    ("bodies", "assets", "message"),
    [
        (FLEX, "", "The scene has flexible bodies; renderer='fast' draws none. Use renderer='exact'."),
        (
            '<geom type="hfield" hfield="hills"/>',
            HFIELD,
            "The scene has height fields; renderer='fast'",
        ),
        ('<geom type="plane" size="0 1 1"/>', "", "The scene has infinite planes; renderer='fast' draws none."),
        ('<camera resolution="4 4" sensorsize="1 1" focal="1 1"/>', "", "The scene has cameras with sensors"),
        (f"<camera {FLAT}/>", "", "The scene has cameras with sensors or without perspective; renderer="),
        ('<light castshadow="true"/>', "", "The scene has lights that cast shadows; renderer='fast' draws none."),
        (
            '<geom size="1" material="grey"/>',
            GREY,
            "Texture 'grey' has 4 channels; renderer='fast'",
        ),
    ],
)
def test_what_is_not_drawn_is_named(bodies: str, assets: str, message: str) -> None:
    with pytest.raises(NotDrawnError) as caught:
        records(bodies, assets)
    assert message in str(caught.value)
    assert str(caught.value).endswith("Use renderer='exact'.")


def test_tendons_are_not_drawn() -> None:
    bodies = '<body><freejoint/><geom size=".1"/><site name="a" pos="0 0 .2"/></body><site name="b" pos="1 0 0"/>'
    tendon = '<tendon><spatial><site site="a"/><site site="b"/></spatial></tendon>'
    with pytest.raises(NotDrawnError, match="shows more than geoms and sites, such as tendons"):
        pack_scene(mujoco.MjModel.from_xml_string(scene_xml(bodies, options=tendon)))
