"""What the stand-in offers and what it refuses, in a sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libero_gym.common.warn import warn_once
from libero_gym.stock_api.arguments import Camera, check_arguments
from libero_gym.stock_api.environment import OffScreenRenderEnv
from libero_gym.tasks import Task


def test_cameras_have_sizes_of_their_own(spatial_task: Task) -> None:
    given = {"camera_names": ["agentview", "frontview"], "camera_heights": [64, 32], "camera_widths": 48}
    arguments = check_arguments(str(spatial_task.bddl_file), given | {"camera_depths": [False, True]})
    assert arguments.cameras == (Camera("agentview", 64, 48, False), Camera("frontview", 32, 48, True))
    assert arguments.horizon == 1000
    assert check_arguments(spatial_task.bddl_file, {"use_camera_obs": False, "ignore_done": True}).cameras == ()


def test_arrays_say_what_lists_say(spatial_task: Task) -> None:
    given = {"camera_heights": [64, 32], "camera_depths": [False, True], "camera_segmentations": ["instance", "class"]}
    expected = check_arguments(spatial_task.bddl_file, given)
    assert check_arguments(spatial_task.bddl_file, {name: np.array(each) for name, each in given.items()}) == expected


def test_a_gpu_that_is_not_taken_is_told_once(spatial_task: Task) -> None:
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"render_gpu_device_id=7 is ignored; \$MUJOCO_EGL_DEVICE_ID") as told:
        OffScreenRenderEnv(spatial_task.bddl_file, render_gpu_device_id=7)
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OffScreenRenderEnv(spatial_task.bddl_file, render_gpu_device_id=7)
        for usual in ({}, {"render_gpu_device_id": 0}, {"render_gpu_device_id": 6, "renderer": "fast"}):
            check_arguments(spatial_task.bddl_file, usual)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ((), ())),
        ("instance", (("instance",), ("instance",))),
        (["instance", "class"], (("instance", "class"), ("instance", "class"))),  # robosuite's way
        ([["instance"], None], (("instance",), ())),
    ],
)
def test_segmentations_are_those_that_robosuite_reads(given: Any, expected: Any, spatial_task: Task) -> None:
    cameras = check_arguments(spatial_task.bddl_file, {"camera_segmentations": given}).cameras
    assert tuple(camera.segmentations for camera in cameras) == expected


def test_the_renderer_is_a_keyword_or_a_variable(spatial_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_arguments(spatial_task.bddl_file, {}).renderer == "exact"
    assert check_arguments(spatial_task.bddl_file, {"renderer": "fast"}).renderer == "fast"
    monkeypatch.setenv("LIBERO_GYM_STOCK_RENDERER", "fast")
    assert check_arguments(spatial_task.bddl_file, {"renderer": "mujoco"}).renderer == "fast"
    monkeypatch.setenv("LIBERO_GYM_STOCK_RENDERER", "slow")
    with pytest.raises(ValueError, match="Unknown LIBERO_GYM_STOCK_RENDERER 'slow'"):
        check_arguments(spatial_task.bddl_file, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"camera_hights": 64}, "Unknown argument 'camera_hights'. Did you mean 'camera_heights'"),
        ({"controller": "JOINT_VELOCITY"}, "controller='JOINT_VELOCITY' is not offered"),
        ({"robots": ["Sawyer"]}, r"robots=\['Sawyer'\] is not offered"),
        ({"control_freq": 10}, "control_freq=10 is not offered"),
        ({"camera_segmentations": "colour"}, "Unknown camera_segmentations 'colour'"),
        ({"renderer": "fast", "camera_segmentations": "class"}, "camera_segmentations='class' needs renderer='exact'"),
        ({"camera_heights": [64]}, "camera_heights has 1 values for 2 cameras"),
        ({"camera_widths": 4}, "camera_widths=4 cannot be rendered"),
        ({"horizon": 0}, "horizon=0"),
        ({"renderer": "igibson"}, "Unknown renderer 'igibson'"),
        ({"renderer": "fast", "camera_depths": True}, "camera_depths=True needs renderer='exact'"),
        ({"camera_names": ["agentview", "nonsense"]}, "Unknown camera_names 'nonsense'. Choices: .*'frontview'"),
        ({"camera_names": "agentveiw"}, r"Unknown camera_names 'agentveiw'\. Did you mean 'agentview'\?"),
        ({"camera_names": None}, "camera_names=None; expected a sequence"),
        ({"camera_names": [1]}, r"camera_names=\[1\]; expected names of cameras"),
        (
            {"camera_depths": np.array([[True], [False]])},
            r"camera_depths=\[\[True\], \[False\]\]; expected True or False",
        ),
        ({"camera_depths": "no"}, r"camera_depths=\['no', 'no'\]; expected True or False"),
        ({"camera_segmentations": 5}, "camera_segmentations=5; expected a sequence"),
        ({"initialization_noise": np.zeros(7)}, "initialization_noise=array.* is not offered"),
    ],
)
def test_what_is_not_offered_is_named(given: dict[str, Any], message: str, spatial_task: Task) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        OffScreenRenderEnv(spatial_task.bddl_file, **given)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.bddl' is no file"):
        OffScreenRenderEnv(tmp_path / "nothing.bddl")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"depth": True}, "depth=True needs renderer='exact'; fast frames come without"),
        ({"width": 4200}, "width=4200 cannot be rendered; expected an integer from 8 to 2048 pixels"),
        ({"height": 0}, "height=0 cannot be rendered"),
    ],
)
def test_a_fast_frame_that_cannot_be_drawn_is_refused(given: dict[str, Any], sentence: str, spatial_task: Task) -> None:
    env = OffScreenRenderEnv(bddl_file_name=spatial_task.bddl_file, use_camera_obs=False, renderer="fast")
    try:
        env.reset()
        with pytest.raises(ValueError, match=sentence):
            env.sim.render(**({"width": 16, "height": 16, "camera_name": "agentview"} | given))
    finally:
        env.close()
