"""Frames that are drawn where worlds are simulated show what the processor draws of the same worlds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import random_actions
from frames import psnr

from libero_gym.compilation.compile import compile_task
from libero_gym.tasks import get_tasks
from libero_gym.vector import LiberoVectorEnv

CAMERAS = ("agentview", "wrist")


@pytest.fixture(scope="module")
def env(device: str) -> Iterator[LiberoVectorEnv]:
    made = gym.make_vec(
        "LIBERO-Goal-v0",
        2,
        vectorization_mode="vector_entry_point",
        **{"backend": "warp", "device": device, "renderer": "fast", "cameras": CAMERAS, "image_size": 48},
        **{"task_id": 7, "settle_steps": 1, "max_episode_steps": 2, "render_mode": "rgb_array"},
    )
    assert isinstance(made, LiberoVectorEnv)
    yield made
    made.close()


def by_processor(env: LiberoVectorEnv, index: int) -> list[np.ndarray]:
    """Frames of an environment's world, drawn by the processor from its state."""
    (state,) = env.call("get_state", indices=[index])
    backend: Any = env.backend
    return list(backend._mirror.frames(backend._episode(index), state, CAMERAS, 48))


def test_they_show_the_last_step_and_then_the_next_episode(env: LiberoVectorEnv) -> None:
    obs, _ = env.reset(seed=0)
    shown = [by_processor(env, index) for index in range(2)]
    obs, *_ = env.step(random_actions(2, seed=0))
    for index in range(2):
        expected = by_processor(env, index)
        for key, frame, before in zip(("image", "wrist_image"), expected, shown[index], strict=True):
            assert psnr(obs[key][index], frame) > 44
            assert not np.array_equal(frame, before)
    rendered = env.render()
    assert rendered is not None
    obs, _, _, truncated, infos = env.step(random_actions(2, seed=1))
    assert truncated.all()
    assert psnr(infos["final_obs"][0]["image"], obs["image"][0]) < 99  # the last one, and the first of the next
    assert psnr(obs["image"][0], by_processor(env, 0)[0]) > 44


def test_a_lit_burner_shows_its_flame(env: LiberoVectorEnv) -> None:
    env.reset(seed=0)
    first, _ = env.call("get_state")
    lit = np.array(first)
    model = compile_task(get_tasks("libero_goal")[7]).physics
    lit[1 + model.joint("flat_stove_1_button").qposadr[0]] = 0.9
    env.call("set_state", lit, indices=[1])
    assert env.call("get_state")[1].memory.burners_shown == (True,)
    frames = [
        env.backend._shown.frames({index: env.backend._episode(index)}, CAMERAS, 48)["agentview"][0]
        for index in range(2)
    ]
    hot = by_processor(env, 1)[0]
    flame = np.abs(hot.astype(int) - by_processor(env, 0)[0]).max(axis=-1) > 8
    assert flame.any()
    assert psnr(frames[1][flame], hot[flame]) > 30 > psnr(frames[0][flame], hot[flame])
