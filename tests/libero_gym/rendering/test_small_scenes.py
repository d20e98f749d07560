"""Small scenes with every kind of geom, material and light look as MuJoCo draws them by OpenGL."""

from __future__ import annotations

import numpy as np
import pytest
from frames import SmallScene, levels_off, psnr, scene_xml

from libero_gym.common.mujoco_import import mujoco
from libero_gym.equivalence.versions import parse
from libero_gym.rendering.packing import TRIANGLE_BITS

FLOOR = '<geom type="plane" size="1 1 0.1" rgba="0.6 0.5 0.4 1"/>'
RED = 'rgba=".8 .3 .2 1"'
ASSETS = """
<mesh name="tetra" vertex="0 0 0  .3 0 0  0 .3 0  0 0 .3"/>
<mesh name="mapped" vertex="-.2 -.2 0  .2 -.2 0  0 .2 0  0 0 .3" face="0 2 1  0 1 3  1 2 3  2 0 3"
      texcoord="0 0  1 0  .5 1  .5 .5"/>
<mesh name="stairs" vertex="-.3 -.3 0  .3 -.3 0  .3 .3 0  -.3 .3 0  -.2 -.2 .1  .2 -.2 .1  .2 .2 .1  -.2 .2 .1"
      face="0 1 2  0 2 3  4 5 6  4 6 7  0 2 1  0 3 2" inertia="shell"/>
<texture name="checks" type="2d" builtin="checker" rgb1=".9 .9 .9" rgb2=".2 .2 .5" width="64" height="64"/>
<texture name="odd" type="2d" builtin="gradient" rgb1=".9 .1 .1" rgb2=".1 .2 .9" width="37" height="51"/>
<texture name="faces" type="cube" builtin="gradient" rgb1=".9 .2 .1" rgb2=".2 .9 .5" width="32" height="192"/>
<texture name="sky" type="skybox" builtin="gradient" rgb1=".9 .9 .9" rgb2=".2 .4 .9" width="64" height="384"/>
<material name="checks" texture="checks" texrepeat="4 4"/>
<material name="uniform" texture="checks" texrepeat="4 4" texuniform="true"/>
<material name="odd" texture="odd" shininess=".9" specular=".8"/>
<material name="faces" texture="faces"/>
<material name="uniform faces" texture="faces" texuniform="true"/>
<material name="glow" rgba=".2 .2 .2 1" emission="1.5"/>
<material name="mirror" reflectance=".5" rgba=".5 .5 .5 1"/>
"""

PLAIN = {
    "finite plane": FLOOR,
    "box": FLOOR + f'<geom type="box" size=".2 .1 .15" pos="0 0 .15" euler="0 0 30" {RED}/>',
    "sphere": FLOOR + f'<geom type="sphere" size=".2" pos="0 0 .2" {RED}/>',
    "ellipsoid": FLOOR + f'<geom type="ellipsoid" size=".2 .1 .15" pos="0 0 .2" {RED}/>',
    "cylinder": FLOOR + f'<geom type="cylinder" size=".2 .15" pos="0 0 .2" euler="20 0 0" {RED}/>',
    "capsule": FLOOR + f'<geom type="capsule" size=".1 .15" pos="0 0 .2" euler="60 0 0" {RED}/>',
    "mesh": FLOOR + f'<geom type="mesh" mesh="tetra" pos="0 0 .2" {RED}/>',
    "site": FLOOR + '<site type="box" size=".1 .1 .1" pos="0 0 .1" rgba="0 1 0 1"/>',
    "emission": FLOOR + '<geom type="sphere" size=".2" pos="0 0 .2" material="glow"/>',
    "directional light": FLOOR + '<light directional="true" dir="1 0 -1" castshadow="false"/>',
    "spot light": FLOOR
    + '<light pos="0 0 1" dir="0 0 -1" cutoff="20" exponent="5" attenuation=".5 .5 1" castshadow="false"/>',
    "behind the near plane": FLOOR
    + f'<geom type="box" size=".3 .02 .3" pos="0 .05 .1" {RED}/><geom type="sphere" size=".1" pos="0 0 .32" {RED}/>',
    "mirror plane": '<geom type="plane" size="1 1 .1" material="mirror"/>'
    + f'<geom type="box" size=".2 .1 .15" pos="0 0 .25" euler="0 0 30" {RED}/>',
    "mirror box": FLOOR
    + '<geom type="box" size=".5 .5 .02" pos="0 0 .02" material="mirror"/>'
    + f'<geom type="box" size=".2 .1 .15" pos="0 0 .25" euler="0 0 30" {RED}/>',
}
TEXTURED = {
    "2D": '<geom type="plane" size="1 1 .1" material="checks"/><geom type="cylinder" size=".1 .1" material="uniform"/>',
    "2D of odd size": '<geom type="plane" size="1 1 .1" material="odd"/>',
    "2D on a mesh": FLOOR + '<geom type="mesh" mesh="mapped" pos="0 0 .1" material="checks"/>',
    "cube": FLOOR + '<geom type="box" size=".2 .1 .15" pos="0 0 .15" material="faces"/>',
    "uniform cube": FLOOR + '<geom type="sphere" size=".2" pos="0 0 .2" material="uniform faces"/>',
}
TRANSPARENT = {
    "one": FLOOR + '<geom type="box" size=".2 .1 .15" pos="0 0 .15" rgba=".8 .3 .2 .5"/>',
    "one behind another": FLOOR
    + '<geom type="sphere" size=".15" pos=".3 -.3 .2" rgba=".2 .8 .2 .3"/>'
    + '<geom type="box" size=".2 .2 .15" pos="0 0 .15" rgba=".2 .3 .8 .7"/>'
    + f'<geom type="box" size=".1 .1 .1" pos="-.3 .3 .1" {RED}/>',
    "one of two layers": FLOOR + '<geom type="mesh" mesh="stairs" pos="0 0 .1" rgba=".8 .3 .2 .3"/>',
}


def make(bodies: str) -> SmallScene:
    return SmallScene(scene_xml(bodies, ASSETS))


def frames(bodies: str, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """A scene's frames by OpenGL and without it."""
    scene = make(bodies)
    return scene.exact(("agentview", "wrist").index(camera)), scene.software(camera).image


@pytest.mark.opengl
@pytest.mark.parametrize("camera", ["agentview", "wrist"])
@pytest.mark.parametrize("kind", PLAIN)
def test_surfaces_without_texture_are_within_one_level(kind: str, camera: str) -> None:
    exact, software = frames(PLAIN[kind], camera)
    assert exact.std() > 10
    off = levels_off(exact, software)
    assert (off > 1).sum() <= 3, "samples on an edge"
    assert psnr(exact, software) > 60


@pytest.mark.opengl
@pytest.mark.parametrize("kind", TEXTURED)
def test_textures_are_within_a_few_levels(kind: str) -> None:
    if parse(mujoco.__version__) >= (3, 12) and kind in ("2D", "2D on a mesh"):
        pytest.skip(f"MuJoCo {mujoco.__version__} lays and repeats 2D textures otherwise")
    exact, software = frames(TEXTURED[kind], "agentview")
    assert psnr(exact, software) > 55
    assert levels_off(exact, software).max() <= 8


@pytest.mark.opengl
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_geoms_are_within_two_levels(kind: str) -> None:
    exact, software = frames(TRANSPARENT[kind], "agentview")
    assert (levels_off(exact, software) > 2).sum() <= 3


@pytest.mark.opengl
@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 57), (96, 160), (160, 96), (512, 512)])
def test_any_size_is_drawn(height: int, width: int) -> None:
    scene = make(PLAIN["box"] + '<geom type="sphere" size=".1" pos=".3 -.3 .1" material="faces"/>')
    exact, software = scene.exact(0, height, width), scene.software("agentview", height, width)
    assert software.image.shape == (height, width, 3)
    assert psnr(exact, software.image) > (55 if min(height, width) > 32 else 46)


@pytest.mark.parametrize("camera", ["agentview", "wrist"])
@pytest.mark.parametrize("kind", [*PLAIN, *TRANSPARENT])
def test_a_stored_background_changes_no_byte(kind: str, camera: str) -> None:
    bodies = (PLAIN | TRANSPARENT)[kind]
    ball = '<body pos="0.1 0 .3"><freejoint/><geom size=".08" rgba=".1 .9 .1 1"/></body>'
    scene = make(bodies + ball)
    for height in (0.3, 0.1, 0.3):
        scene.data.qpos[2] = height
        whole, stored = scene.software(camera, stored=False), scene.software(camera)
        for one, other in zip(whole, stored, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.opengl
@pytest.mark.parametrize(("height", "width"), [(128, 128), (60, 100)])
def test_depth_and_geoms_are_mujocos(height: int, width: int) -> None:
    scene = make(PLAIN["sphere"] + TRANSPARENT["one behind another"].replace(FLOOR, ""))
    frame = scene.software("agentview", height, width)
    depth, geoms = scene.exact_layers(0, height, width)
    is_there = frame.depth[..., 0] > 0
    np.testing.assert_allclose(1 / frame.depth[..., 0][is_there], depth[is_there], rtol=2e-3)
    assert (depth[~is_there] > 25).all(), "MuJoCo draws the sky on a cylinder far away"
    found, _ = scene.scene.named(frame.ids[..., 0])
    # MuJoCo takes ids at the middle of a pixel, we at its first sample: where all samples agree they must, too.
    is_inside = (frame.ids >> TRIANGLE_BITS == frame.ids[..., :1] >> TRIANGLE_BITS).all(axis=-1)
    assert is_inside.mean() > 0.8
    assert (found == geoms)[is_inside].mean() > 0.998
    assert {-1, 0, 1, 2, 3} <= set(np.unique(found))


def test_geoms_and_bodies_are_named_by_their_ids() -> None:
    """A ball over a site over nothing, straight below the camera; another body takes the first ids."""
    bodies = '<body name="a"><geom size=".01" pos="5 5 5"/></body>'
    bodies += '<body name="b" pos="0 0 .1"><geom name="g" size=".05"/></body>'
    scene = make(bodies + '<site type="sphere" size=".2" pos="0 0 -.3" rgba="1 0 0 1"/>')
    geoms, names = scene.scene.named(scene.software("wrist", 65, 65).ids[..., 0])
    ball = scene.model.geom("g").id, scene.model.body("b").id
    assert (geoms[32, 32], names[32, 32]) == ball == (1, 2)
    seen = {(int(geom), int(body)) for geom, body in zip(geoms.ravel(), names.ravel(), strict=True)}
    assert seen == {ball, (-1, 0), (-1, -1)}
