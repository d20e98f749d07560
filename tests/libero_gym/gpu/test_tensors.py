"""With ``output="torch"`` the same numbers come as tensors, and PPO learns from them without a copy of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from batches import assert_as
from comparing import random_actions

from libero_gym.vector import LiberoVectorEnv

ARGUMENTS: dict[str, Any] = {
    **{"backend": "warp", "renderer": "fast", "cameras": ("agentview", "wrist"), "image_size": 24},
    **{"task_id": [0, 5], "settle_steps": 1, "max_episode_steps": 2, "privileged": True},
}


def make(n: int = 2, **kwargs: Any) -> LiberoVectorEnv:
    env = gym.make_vec("LIBERO-Spatial-v0", n, vectorization_mode="vector_entry_point", **ARGUMENTS | kwargs)
    assert isinstance(env, LiberoVectorEnv)
    return env


def assert_same(tensors: dict[str, Any], arrays: dict[str, Any], torch: Any, device: str) -> None:
    """Equal to the bit on the CPU; on a GPU, whose sums have no order, close, and frames in the mean."""
    assert set(tensors) == set(arrays)
    for key, expected in arrays.items():
        if key == "instruction":
            assert tensors[key] == expected
        else:
            assert isinstance(tensors[key], torch.Tensor)
            assert tensors[key].dtype == torch.as_tensor(expected).dtype
            assert tensors[key].device.type == device.split(":")[0]
            if tensors[key].dtype == torch.uint8 and device != "cpu":
                assert np.abs(tensors[key].cpu().numpy().astype(float) - expected).mean() < 1
            else:
                assert_as(tensors[key].cpu().numpy(), expected, device, key, 1e-3)


def test_tensors_hold_what_arrays_hold(device: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    of_arrays, of_tensors = make(device=device), make(device=device, output="torch")
    assert of_tensors.settings["output"] == "torch"
    assert_same(of_tensors.reset(seed=3)[0], of_arrays.reset(seed=3)[0], torch, device)
    first: Any = None
    for step in range(3):  # the second ends an episode
        actions = random_actions(2, seed=step)
        found, expected = of_tensors.step(actions), of_arrays.step(actions)
        assert_same(found[0], expected[0], torch, device)
        for values, wanted in zip(found[1:4], expected[1:4], strict=True):
            assert isinstance(values, torch.Tensor)
            assert_as(values.cpu().numpy(), wanted, device)
        first = first or found[0]
        for index in np.flatnonzero(expected[4].get("_final_obs", [])):
            assert_same(found[4]["final_obs"][index], expected[4]["final_obs"][index], torch, device)
    assert not torch.equal(first["image"], found[0]["image"])  # the earlier ones were not overwritten
    snapshot = of_tensors.snapshot()
    assert_same(of_tensors.restore(snapshot)[0], of_arrays.restore(of_arrays.snapshot())[0], torch, device)
    of_arrays.close()
    of_tensors.close()


def test_ppo_learns_from_them(device: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from vla_agent import VLAPPO, make_vec_env

    how = {key: value for key, value in ARGUMENTS.items() if key not in ("cameras", "image_size", "max_episode_steps")}
    env = make_vec_env(
        "LIBERO-Spatial-v0", 2, model="tiny-libero", output="torch", reward="progress", device=device, **how
    )
    model = VLAPPO(
        "VLAPolicy",
        env,
        n_steps=2,
        batch_size=4,
        critic_warmup_iterations=0,
        policy_kwargs={"model": "tiny-libero", "temperature": 0.5},
        device=device,
        seed=0,
    )
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(8)
    kept = model.rollout_buffer.observations["image"]
    assert isinstance(kept, torch.Tensor)
    assert kept.device.type == device.split(":")[0]
    assert any(not torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    env.close()


class Brightness:
    """Scores a frame by its brightness."""

    def score(self, images: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        return images.mean(axis=(1, 2, 3)) / 255


def test_a_process_reward_scores_frames_of_the_device(device: str) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from vla_agent import make_vec_env

    how = {key: value for key, value in ARGUMENTS.items() if key not in ("cameras", "image_size")}
    scored = {"model": "tiny-libero", "reward": "process", "reward_model": Brightness(), "seed": 4}
    steps = []
    for output in ("numpy", "torch"):
        env: Any = make_vec_env("LIBERO-Spatial-v0", 2, output=output, device=device, **scored, **how)
        env.reset()
        bins = np.random.default_rng(0).integers(0, 256, (3, 2, *env.action_space.shape))
        steps.append([env.step(actions)[1:] for actions in bins])
        env.close()
    assert any(dones.any() for _, dones, _ in steps[0])
    for (rewards, _, infos), (own_rewards, _, own_infos) in zip(*steps, strict=True):
        assert 0 < infos[0]["reward_terms"]["score"] < 1
        assert_as(own_rewards, rewards, device, atol=1e-3)
        for info, own in zip(infos, own_infos, strict=True):
            for name, value in info["reward_terms"].items():
                assert_as(own["reward_terms"][name], value, device, name, 1e-3)


def test_exact_frames_are_not_drawn_there(device: str) -> None:
    with pytest.raises(ValueError, match="output='torch' has its frames drawn on the device, and renderer='exact'"):
        make(output="torch", renderer="exact", device=device)
    with pytest.raises(ValueError, match="Unknown output 'jax'"):
        make(output="jax", device=device)
