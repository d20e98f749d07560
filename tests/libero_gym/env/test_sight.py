"""What cameras show: five of them, and for each on request its depth and which bodies it sees."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from frames import psnr

from libero_gym.demonstrations import LeRobotReader, record
from libero_gym.dimensions import IMAGE_KEYS
from libero_gym.env import LiberoEnv
from libero_gym.vector import LiberoVectorEnv

ALL = {"cameras": tuple(IMAGE_KEYS), "layers": ("depth", "segmentation"), "image_size": 48}


def start(renderer: str, **kwargs: Any) -> tuple[LiberoEnv, dict[str, Any]]:
    env = LiberoEnv("libero_spatial", task_id=0, renderer=renderer, settle_steps=0, **{**ALL, **kwargs})
    obs, _ = env.reset(options={"init_state_id": 0})
    assert env.observation_space.contains(obs)
    return env, obs


def test_every_camera_shows_its_depth_and_the_bodies_before_it() -> None:
    env, obs = start("fast")
    pictures = [obs[key] for key in IMAGE_KEYS.values()]
    assert all((a != b).mean() > 0.5 for i, a in enumerate(pictures) for b in pictures[:i])
    names = {env.simulator.model.body(body).name for body in np.unique(obs["birdview_segmentation"]) if body >= 0}
    assert {"plate_1_main", "robot0_link0", "wooden_cabinet_1_base"} <= names
    table = obs["birdview_segmentation"][30, 10]  # straight below: the floor is deeper by the table's height
    on_it = obs["birdview_depth"][obs["birdview_segmentation"] == table]
    height = env.simulator.data.cam("birdview").xpos[2] - 0.9
    assert np.median(on_it) == pytest.approx(height, abs=0.02)
    plain, same = start("fast", layers=())
    assert set(obs) - set(same) == {
        key.replace("image", layer) for key in IMAGE_KEYS.values() for layer in ALL["layers"]
    }
    for key, image in zip(IMAGE_KEYS.values(), pictures, strict=True):
        np.testing.assert_array_equal(image, same[key])
    assert "layers" not in plain.settings, "what is seen decides nothing"


@pytest.mark.opengl
def test_both_renderers_see_the_same() -> None:
    _, exact = start("exact")
    _, fast = start("fast")
    for key in IMAGE_KEYS.values():
        depth, segmentation = key.replace("image", "depth"), key.replace("image", "segmentation")
        assert psnr(exact[key], fast[key]) > 35
        assert (exact[segmentation] == fast[segmentation]).mean() > 0.9  # edges fall into one pixel or the next
        assert (np.isfinite(exact[depth]) == np.isfinite(fast[depth])).mean() > 0.99
        inside = (exact[segmentation] == fast[segmentation]) & np.isfinite(exact[depth]) & np.isfinite(fast[depth])
        assert np.quantile(np.abs(exact[depth] - fast[depth])[inside], 0.95) < 0.001


def test_vector_environments_show_them_too() -> None:
    _, alone = start("fast")
    arguments: dict[str, Any] = {"task_id": 0, "renderer": "fast", "settle_steps": 0, **ALL}
    envs = LiberoVectorEnv(2, suite="libero_spatial", n_workers=1, **arguments)
    obs, _ = envs.reset(options={"init_state_id": [0, 1]})
    for key in set(alone) - {"instruction"}:
        np.testing.assert_array_equal(obs[key][0], alone[key])
    envs.close()


def test_a_further_camera_is_recorded(tmp_path: Any) -> None:
    options: dict[str, Any] = {"task_ids": 0, "init_state_ids": [0], "max_steps": 2, "keep_failures": True}
    options |= {"cameras": ("frontview",), "image_size": 32, "renderer": "fast", "n_workers": 0}
    record(tmp_path, "libero_spatial", "libero_gym.demonstrations:expert_policy", **options)
    (episode,) = LeRobotReader(tmp_path)
    assert episode.images["frontview_image"].shape[1:] == (32, 32, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layers": ("dept",)}, r"Unknown layer 'dept'\. Did you mean 'depth'\? Choices: 'depth', 'segmentation'"),
        ({"layers": "depth"}, r"layers='depth'; expected a sequence, such as layers=\('depth',\)"),
        ({"layers": ("depth",), "cameras": ()}, r"layers=\('depth',\) are of cameras, and cameras=\(\) draws none"),
        ({"cameras": ("frontveiw",)}, r"Unknown camera 'frontveiw'\. Did you mean 'frontview'\?"),
        ({"cameras": ("galleryview",)}, r"Unknown camera 'galleryview'.* Choices: 'agentview', 'wrist', 'frontview'"),
    ],
)
def test_what_no_camera_shows_is_told(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("LIBERO-Spatial-v0", **kwargs)


def test_worlds_on_a_device_refuse_what_they_do_not_draw() -> None:
    with pytest.raises(ValueError, match=r"layers=\('depth',\): backend='warp' draws images alone; take backend='proc"):
        LiberoVectorEnv(1, suite="libero_spatial", backend="warp", layers=("depth",))
