"""Environments whose observations are tensors are learned from as those with arrays, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from fakes import FakeConfig, FakeProcessor, FakeVectorEnv, fake_env
from learners import make_model

from vla_agent import VLAPPO, VLAVecEnv
from vla_agent.common.errors import NonFiniteError
from vla_agent.openvla import load_processor

KEYS = ("image", "wrist_image", "state", "privileged")


class TensorVectorEnv(FakeVectorEnv):
    """The same environments, with observations, rewards and flags as tensors of a device."""

    def __init__(self, *args: Any, device: str = "cpu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.device = device
        self.settings["output"] = "torch"

    def reset(self, **kwargs: Any) -> Any:
        obs, infos = super().reset(**kwargs)
        return self._moved(obs), infos

    def restore(self, snapshot: Any) -> Any:
        obs, infos = super().restore(snapshot)
        return self._moved(obs), infos

    def step(self, actions: np.ndarray) -> Any:
        obs, *flags, infos = super().step(actions)
        for i in np.flatnonzero(infos.get("_final_obs", [])):
            infos["final_obs"][i] = self._moved(infos["final_obs"][i])
        return self._moved(obs), *(th.as_tensor(values, device=self.device) for values in flags), infos

    def _moved(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {k: th.as_tensor(np.array(v), device=self.device) if k in KEYS else v for k, v in obs.items()}


def tensor_env(n_envs: int = 2, device: str = "cpu", **kwargs: Any) -> VLAVecEnv:
    return VLAVecEnv(TensorVectorEnv(n_envs, device=device, **kwargs), FakeProcessor(config=FakeConfig()))


def trained(env: VLAVecEnv, **kwargs: Any) -> VLAPPO:
    model = make_model(env, bootstrap_time_limits=True, gradient_accumulation_steps=2, **kwargs)
    return model.learn(96)


@pytest.mark.parametrize("ratio_level", ["token", "action"])
def test_tensors_teach_what_arrays_teach(ratio_level: str) -> None:
    of_arrays = trained(fake_env(2, privileged=True), ratio_level=ratio_level)
    of_tensors = trained(tensor_env(2, privileged=True), ratio_level=ratio_level)
    assert len(of_arrays.ep_info_buffer or ()) == len(of_tensors.ep_info_buffer or ()) > 0
    expected = of_arrays.policy.state_dict()
    for name, value in of_tensors.policy.state_dict().items():
        assert th.equal(value, expected[name]), name


def test_frames_stay_where_they_are() -> None:
    model = make_model(tensor_env(2))
    model.learn(32)
    observations = model.rollout_buffer.observations
    assert isinstance(observations["image"], th.Tensor)
    assert observations["image"].dtype == th.uint8
    assert isinstance(observations["state"], th.Tensor)
    assert isinstance(observations["input_ids"], np.ndarray)  # looked up on the host


@pytest.mark.gpu
def test_frames_of_a_gpu_stay_there() -> None:
    if not th.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = make_model(tensor_env(2, device="cuda"), device="cuda")
    model.learn(32)
    assert model.rollout_buffer.observations["image"].is_cuda


def test_a_run_goes_on_from_a_save(tmp_path: Path) -> None:
    def env() -> VLAVecEnv:
        return VLAVecEnv(TensorVectorEnv(2, size=112), load_processor("tiny"))

    how: dict[str, Any] = {"n_steps": 4, "batch_size": 8}
    whole = make_model(env(), {"model": "tiny"}, **how).learn(24)
    make_model(env(), {"model": "tiny"}, **how).learn(16).save(tmp_path / "run")
    resumed = VLAPPO.load(tmp_path / "run", env(), device="cpu").learn(8, reset_num_timesteps=False)
    expected = whole.policy.state_dict()
    assert all(th.equal(value, expected[name]) for name, value in resumed.policy.state_dict().items())


def test_a_number_that_is_not_finite_is_told() -> None:
    env = tensor_env(2)
    step = env.venv.step

    def broken(actions: np.ndarray) -> Any:
        obs, *rest = step(actions)
        obs["state"][1, 3] = float("nan")
        return obs, *rest

    env.venv.step = broken
    with pytest.raises(NonFiniteError, match="'state' of environment 1"):
        make_model(env).learn(32)


def test_a_transform_of_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="image_transform is a function of NumPy's arrays"):
        VLAVecEnv(TensorVectorEnv(2), FakeProcessor(config=FakeConfig()), image_transform=lambda images: images)
