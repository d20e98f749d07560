"""Episodes as videos: what `render()` returns is what Gymnasium's `RecordVideo` needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest

from libero_gym.env import LiberoEnv

SIZE, N_STEPS = 64, 5
KWARGS: dict[str, Any] = {"task_id": 2, "image_size": SIZE, "renderer": "fast"}


def test_record_video_writes_a_readable_mp4_with_a_frame_per_observation(tmp_path: Path) -> None:
    env = gym.make("LIBERO-10-v0", render_mode="rgb_array", max_episode_steps=N_STEPS, **KWARGS)
    env = gym.wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda episode: episode == 0)
    first, _ = env.reset(options={"init_state_id": 0})
    truncated = False
    while not truncated:
        last, _, _, truncated, _ = env.step(np.array([1, 0, 0, 0, 0, 0, -1], dtype=np.float32))
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    frames = iio.imread(video)
    assert frames.shape == (1 + N_STEPS, SIZE, SIZE, 3)
    assert iio.immeta(video)["fps"] == env.metadata["render_fps"] == 20
    for frame, image, other in (
        (frames[0], first["image"], last["image"]),
        (frames[-1], last["image"], first["image"]),
    ):
        assert _difference(frame, image) < 8  # H.264 loses a little
        assert _difference(frame, image) < _difference(frame, other)


def test_render_needs_no_camera_in_the_observation() -> None:
    seeing = LiberoEnv("libero_10", **KWARGS)
    blind = LiberoEnv("libero_10", cameras=(), render_mode="rgb_array", **KWARGS)
    obs, _ = seeing.reset(options={"init_state_id": 0})
    blind_obs, _ = blind.reset(options={"init_state_id": 0})
    assert "image" not in blind_obs
    np.testing.assert_array_equal(blind.render(), obs["image"])
    action = np.array([1, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    obs, *_ = seeing.step(action)
    blind.step(action)
    np.testing.assert_array_equal(blind.render(), obs["image"])


def test_without_a_render_mode_there_is_nothing_to_record(tmp_path: Path) -> None:
    env = gym.make("LIBERO-10-v0", **KWARGS)
    env.reset(seed=0)
    assert env.unwrapped.render() is None
    with pytest.raises(ValueError, match="Render mode is None"):
        gym.wrappers.RecordVideo(env, str(tmp_path))


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two images, in grey levels."""
    return float(np.abs(first.astype(float) - second.astype(float)).mean())
