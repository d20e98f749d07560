"""The instruction as text, as a number or left out; who can read it, and what a copy of zeros shows."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO

from libero_gym.env import LiberoEnv
from libero_gym.observations import INSTRUCTION_CHARSET
from libero_gym.wrappers import InstructionToId
from vla_agent.envs.vec_env import VLAVecEnv

KWARGS: dict[str, Any] = {"cameras": (), "task_id": [4, 7], "settle_steps": 0}


@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
@pytest.mark.parametrize("kind", ["text", "id", "none"])
def test_observations_and_space_agree(kind: str) -> None:
    env = LiberoEnv("libero_goal", instruction=kind, **KWARGS)
    check_env(env, skip_render_check=True)
    obs, info = env.reset(seed=0, options={"task_id": 7})
    assert env.observation_space.contains(obs)
    assert obs.get("instruction") == {"text": info["instruction"], "id": 7, "none": None}[kind]
    assert ("instruction" in obs) == (kind != "none")
    assert info["instruction"] == env.tasks[7].instruction


@pytest.mark.parametrize("kind", ["id", "none"])
def test_sb3s_own_policy_trains_on_the_environment(kind: str) -> None:
    env = gym.make("LIBERO-Goal-v0", instruction=kind, **KWARGS)
    model = PPO("MultiInputPolicy", env, n_steps=4, batch_size=4, n_epochs=1)
    model.learn(4)
    obs, _ = env.reset()
    assert model.predict(obs)[0].shape == (7,)
    n_features = 8 + (10 if kind == "id" else 0)  # a task's index is one of ten, and so ten numbers
    assert model.policy.features_extractor.features_dim == n_features


def test_sb3s_own_policy_is_made_from_frames() -> None:
    model = PPO("MultiInputPolicy", gym.make("LIBERO-Goal-v0", instruction="none", image_size=64))
    assert set(model.observation_space.spaces) == {"image", "state"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["id", "none"])
def test_the_vector_environment_shows_the_same(kind: str) -> None:
    envs = gym.make_vec("LIBERO-Goal-v0", num_envs=2, instruction=kind, **KWARGS)
    obs, infos = envs.reset(seed=0, options={"task_id": [7, 4]})
    assert envs.observation_space.contains(obs)
    if kind == "id":
        np.testing.assert_array_equal(obs["instruction"], [7, 4])
    assert ("instruction" in obs) == (kind == "id")
    assert list(infos["task_id"]) == [7, 4]
    with pytest.raises(ValueError, match="VLAVecEnv needs a Dict of observations with 'instruction', a Text"):
        VLAVecEnv(envs, processor=None)  # which would have tokenised words
    envs.close()


def test_zeroed_shared_memory_is_seen_and_is_no_instruction() -> None:
    """Gymnasium 1.4's AsyncVectorEnv reads `Text` once, from zeros, before the workers write theirs."""
    space = LiberoEnv("libero_goal", **KWARGS).observation_space["instruction"]
    assert isinstance(space, spaces.Text)
    shown = spaces.unflatten(space, np.zeros(space.max_length, dtype=np.int32))
    assert shown.strip()
    assert set(shown) == {"\ufffd"}
    assert INSTRUCTION_CHARSET.count("\ufffd") == 1


def test_the_manual_names_the_ways_around_gymnasiums_async_vectorisation() -> None:
    manual = LiberoEnv.__doc__
    assert manual is not None
    for way in ("vector_entry_point", "shared_memory=False", 'instruction="id"'):
        assert way in manual


class _Talking(gym.Env[dict[str, Any], int]):
    """Says two things in turn."""

    observation_space = spaces.Dict({"order": spaces.Text(20), "place": spaces.Box(0, 1, (2,))})
    action_space = spaces.Discrete(2)
    said = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        self.said += 1
        return {"order": ("left", "right", "up")[self.said % 3], "place": np.zeros(2, np.float32)}, {}


def test_a_text_becomes_its_place_in_the_list() -> None:
    env = InstructionToId(_Talking(), ["right", "up", "left"], key="order")
    seen = [env.reset()[0] for _ in range(3)]
    assert [int(obs["order"]) for obs in seen] == [0, 1, 2]
    assert all(env.observation_space.contains(obs) for obs in seen)
    PPO("MultiInputPolicy", env)


def test_what_the_wrapper_cannot_do_is_named() -> None:
    with pytest.raises(ValueError, match="no Text under 'instruction'"):
        InstructionToId(_Talking(), ["left"])
    for wrong in (5, None, "left", [], [["left"]], [5]):
        with pytest.raises(ValueError, match=r"^instructions=.*; expected (a sequence|several different texts)"):
            InstructionToId(_Talking(), wrong, key="order")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected several different texts"):
        InstructionToId(_Talking(), ["left", "left"], key="order")
    with pytest.raises(ValueError, match="shows 'right', which is none of the 1 instructions given"):
        InstructionToId(_Talking(), ["left"], key="order").reset()


def test_a_vla_vec_env_is_not_copied() -> None:
    with pytest.raises(TypeError, match=r"A VLAVecEnv cannot be copied or pickled: .*snapshot\(\) with restore\(\)"):
        copy.deepcopy(object.__new__(VLAVecEnv))


def test_render_has_a_size_of_its_own() -> None:
    env = LiberoEnv(
        "libero_spatial", task_id=0, image_size=32, render_size=96, render_mode="rgb_array", renderer="fast"
    )
    obs, _ = env.reset(seed=0)
    frame = env.render()
    assert frame is not None
    assert frame.shape == (96, 96, 3)
    assert obs["image"].shape == (32, 32, 3)
    same = LiberoEnv("libero_spatial", task_id=0, image_size=96, renderer="fast")
    same.reset(seed=0)
    np.testing.assert_array_equal(same.set_state(env.get_state())["image"], frame)
    np.testing.assert_array_equal(env.set_state(env.get_state())["image"], obs["image"])  # and frames are as before
