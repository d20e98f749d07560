"""Models that are saved and loaded: a fake one, and the tiny one."""

from typing import Any

from fakes import FakeBackbone, FakeVectorEnv, fake_env

from vla_agent import VLAPPO, VLAVecEnv
from vla_agent.openvla import load_processor


def fake_model(**kwargs: Any) -> VLAPPO:
    policy_kwargs = {"model": FakeBackbone()} | kwargs.pop("policy_kwargs", {})
    settings: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "seed": 0, "device": "cpu", "learning_rate": 1e-3}
    settings |= {"critic_warmup_iterations": 0}
    return VLAPPO("VLAPolicy", fake_env(2), policy_kwargs=policy_kwargs, **settings | kwargs)


def tiny_env(n_envs: int = 2) -> VLAVecEnv:
    return VLAVecEnv(FakeVectorEnv(n_envs, size=112), load_processor("tiny"))


def tiny_model(**policy_kwargs: Any) -> VLAPPO:
    return VLAPPO(
        "VLAPolicy",
        tiny_env(),
        n_steps=4,
        batch_size=8,
        seed=0,
        device="cpu",
        learning_rate=1e-3,
        critic_warmup_iterations=0,
        policy_kwargs={"model": "tiny"} | policy_kwargs,
    )


def fake() -> dict[str, Any]:
    """Arguments of `load` for a run that was made with a model object."""
    return {"policy_kwargs": {"model": FakeBackbone(seed=1)}}
