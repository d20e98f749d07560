"""The arguments of LIBERO's environments: what they mean here, and a sentence for what is not offered."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libero_gym.common.checks import as_path, choice, did_you_mean, sequence, whole_number
from libero_gym.common.warn import warn_once
from libero_gym.rendering.egl import DEVICE_VARIABLE
from libero_gym.rendering.renderer import RENDERERS, check_image_size

# LIBERO's defaults, which are ours where another value makes another robot, controller or window.
DEFAULTS: dict[str, Any] = {
    "robots": ["Panda"],
    "controller": "OSC_POSE",
    "gripper_types": "default",
    "initialization_noise": None,
    "use_camera_obs": True,
    "has_renderer": False,
    "has_offscreen_renderer": True,
    "render_camera": "frontview",
    "render_collision_mesh": False,
    "render_visual_mesh": True,
    "render_gpu_device_id": -1,
    "control_freq": 20,
    "horizon": 1000,
    "ignore_done": False,
    "hard_reset": True,
    "camera_names": ["agentview", "robot0_eye_in_hand"],
    "camera_heights": 128,
    "camera_widths": 128,
    "camera_depths": False,
    "camera_segmentations": None,
    "renderer": "mujoco",
    "renderer_config": None,
}
RENDERER_VARIABLE = "LIBERO_GYM_STOCK_RENDERER"
# Of these, LIBERO's default alone is simulated here.
_FIXED = (
    "controller",
    "gripper_types",
    "initialization_noise",
    "has_renderer",
    "render_collision_mesh",
    "render_visual_mesh",
    "control_freq",
    "hard_reset",
    "renderer_config",
)
_SEGMENTATIONS = ("instance", "class", "element")


@dataclass(frozen=True)
class Camera:
    """A camera that observations show.

    Attributes:
        name: LIBERO's, such as ``agentview``.
        height, width: Of its frames, pixels.
        depth: Whether observations hold the depth buffer, too.
        segmentations: By what observations hold segmentations, too: "instance", "class", "element".
    """

    name: str
    height: int
    width: int
    depth: bool
    segmentations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """What an environment was made with, checked.

    Attributes:
        bddl_file: The task's definition.
        cameras: What observations show.
        horizon: Control steps after which an episode is over; None if none is.
        renderer: "exact" or "fast".
    """

    bddl_file: Path
    cameras: tuple[Camera, ...]
    horizon: int | None
    renderer: str


def check_arguments(bddl_file_name: Any, given: Mapping[str, Any]) -> Arguments:
    """The arguments of ``OffScreenRenderEnv``; a warning says if ``render_gpu_device_id`` is ignored.

    Raises:
        TypeError: If a keyword is not LIBERO's.
        ValueError: If a value is not offered here, or means nothing.
        FileNotFoundError: If there is no such BDDL file.
    """
    unknown = [name for name in given if name not in DEFAULTS]
    if unknown:
        hint = did_you_mean(unknown[0], DEFAULTS)
        raise TypeError(f"Unknown argument {unknown[0]!r}.{hint} LIBERO's are: {', '.join(DEFAULTS)}.")
    values = DEFAULTS | dict(given)
    if values["robots"] not in ("Panda", ["Panda"], ("Panda",)):
        raise ValueError(_refusal("robots", values["robots"], "['Panda']"))
    for name in _FIXED:
        if not _are_equal(values[name], DEFAULTS[name]):
            raise ValueError(_refusal(name, values[name], repr(DEFAULTS[name])))
    path = as_path("bddl_file_name", bddl_file_name)
    if not path.is_file():
        raise FileNotFoundError(f"bddl_file_name={str(path)!r} is no file.")
    horizon = whole_number("horizon", values["horizon"], minimum=1)
    cameras = _cameras(values) if values["use_camera_obs"] else ()
    renderer = _renderer(values["renderer"])
    device = values["render_gpu_device_id"]
    if renderer == "exact" and not any(_are_equal(device, usual) for usual in (-1, 0, None)):
        warn_once(f"render_gpu_device_id={device!r} is ignored; ${DEVICE_VARIABLE} chooses the GPU that draws.", 5)
    for name, asked in (("depths", any(each.depth for each in cameras)), ("segmentations", segmented(cameras))):
        if renderer == "fast" and asked:
            given = values[f"camera_{name}"]
            raise ValueError(f"camera_{name}={given!r} needs renderer='exact'; fast frames come without.")
    return Arguments(path.absolute(), cameras, None if values["ignore_done"] else horizon, renderer)


def segmented(cameras: tuple[Camera, ...]) -> bool:
    """Whether any camera shows a segmentation; no camera shows flames then, as in robosuite."""
    return any(camera.segmentations for camera in cameras)


def _cameras(values: Mapping[str, Any]) -> tuple[Camera, ...]:
    names = values["camera_names"]
    names = [names] if isinstance(names, str) else sequence("camera_names", names)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"camera_names={names!r:.200}; expected names of cameras, such as ['agentview'].")
    sizes = {}
    for argument in ("camera_heights", "camera_widths"):
        listed = _per_camera(argument, values[argument], len(names))
        sizes[argument] = [check_image_size(size, argument) for size in listed]
    depths = _per_camera("camera_depths", values["camera_depths"], len(names))
    if not all(depth is None or isinstance(depth, (bool, np.bool_, int)) for depth in depths):
        raise ValueError(f"camera_depths={depths!r:.200}; expected True or False, or one for each camera.")
    with_depth = [bool(depth) for depth in depths]
    segmentations = _segmentations(values["camera_segmentations"], len(names))
    return tuple(Camera(*each) for each in zip(names, *sizes.values(), with_depth, segmentations, strict=True))


def _segmentations(value: Any, n_cameras: int) -> list[tuple[str, ...]]:
    """For each camera its kinds: those of all of them, as robosuite has it, or its own if the list has lists."""
    listed = _per_camera("camera_segmentations", value, n_cameras)
    nested = any(isinstance(kinds, (list, tuple)) for kinds in listed)
    every = [[kinds] if isinstance(kinds, str) else sequence("camera_segmentations", kinds or ()) for kinds in listed]
    together = [kind for kinds in every for kind in kinds]
    for kind in together:
        choice("camera_segmentations", kind, _SEGMENTATIONS)
    chosen = every if nested else [together if kinds else [] for kinds in every]
    return [tuple(dict.fromkeys(kinds)) for kinds in chosen]


def _per_camera(argument: str, value: Any, n: int) -> list[Any]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{argument} has {len(value)} values for {n} cameras; give one, or one each.")
    return list(value)


def _renderer(value: Any) -> str:
    """LIBERO's own name is for whatever ``$LIBERO_GYM_STOCK_RENDERER`` says, which is exact frames if it is not set."""
    if value in ("mujoco", "default"):
        return choice(RENDERER_VARIABLE, os.environ.get(RENDERER_VARIABLE) or "exact", RENDERERS)
    return choice("renderer", value, ("mujoco", *RENDERERS))


def _are_equal(value: Any, other: Any) -> bool:
    """Whether two values are equal; an array, which answers for each of its elements, equals nothing."""
    return not isinstance(value, np.ndarray) and bool(value == other)


def _refusal(name: str, value: Any, offered: str) -> str:
    return (
        f"{name}={value!r} is not offered by libero_gym's stand-in for LIBERO's environments, only {offered}. "
        "libero_gym.uninstall_stock_api() gives LIBERO's own back."
    )
