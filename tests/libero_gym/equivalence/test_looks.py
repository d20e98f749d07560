"""Cameras and lights are told apart under any version's names."""

from __future__ import annotations

from libero_gym.common.mujoco_import import mujoco
from libero_gym.equivalence.looks import directional_lights, orthographic_cameras


def test_kinds_of_cameras_and_lights_are_read() -> None:
    spec = mujoco.MjSpec()
    spec.worldbody.add_light()
    directional = spec.worldbody.add_light()
    if hasattr(directional, "type"):
        directional.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    else:
        directional.directional = True
    spec.worldbody.add_camera()
    flat = spec.worldbody.add_camera()
    if hasattr(flat, "proj"):
        flat.proj = mujoco.mjtProjection.mjPROJ_ORTHOGRAPHIC
    else:
        flat.orthographic = True
    model = spec.compile()
    assert directional_lights(model).tolist() == [False, True]
    assert orthographic_cameras(model).tolist() == [False, True]
