"""Small learners on fake environments, and one on the tiny model."""

from typing import Any

from fakes import FakeBackbone, FakeVectorEnv, fake_env

from vla_agent import VLAPPO, VLAVecEnv
from vla_agent.openvla import load_processor


def make_model(env: VLAVecEnv | None = None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> VLAPPO:
    """A fake model on two fake environments, ready to be trained at once."""
    settings: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "seed": 0, "device": "cpu", "learning_rate": 1e-3}
    settings |= {"critic_warmup_iterations": 0}
    return VLAPPO(
        "VLAPolicy",
        env or fake_env(2),
        policy_kwargs={"model": FakeBackbone()} | (policy_kwargs or {}),
        **settings | kwargs,
    )


def tiny_model(**kwargs: Any) -> VLAPPO:
    env = VLAVecEnv(FakeVectorEnv(2, size=112), load_processor("tiny"))
    policy_kwargs = {"model": "tiny"} | kwargs.pop("policy_kwargs", {})
    return make_model(env, policy_kwargs, n_steps=4, **{"batch_size": 8} | kwargs)
