"""A run whose policy cannot learn says so; one that learns, or has nothing to learn from, stays silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch as th
from fakes import FakeBackbone, fake_env
from learners import make_model, tiny_model
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from vla_agent import VLAPPO
from vla_agent.policy.lora import merge_lora


def warnings_of(run: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in seen if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize("make", [make_model, tiny_model], ids=["fake", "tiny"])
def test_learning_rate_zero_is_noticed_once_though_the_ratio_is_off_by_rounding(make: Any) -> None:
    model = make(learning_rate=0.0, value_learning_rate=1e-3, n_epochs=2)
    seen = warnings_of(lambda: model.learn(3 * model.n_steps * model.n_envs))
    assert [text[:50] for text in seen if "did not move" in text] == [
        "The policy's weights did not move in a whole updat"
    ]


def test_learning_rate_zero_is_noticed_with_sb3s_policies() -> None:
    model = VLAPPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu", learning_rate=0.0)
    assert any("the learning rate is 0." in text for text in warnings_of(lambda: model.learn(64)))


def test_steps_lost_in_the_weights_type_are_noticed() -> None:
    """Steps of 1e-20 change no float32 weight that is not smaller than 1e-12."""
    model = make_model(learning_rate=1e-20, n_epochs=2)
    assert any("the learning rate is 1e-20" in text for text in warnings_of(lambda: model.learn(32)))


def test_a_policy_that_learns_gives_no_warning() -> None:
    for model in (make_model(n_epochs=2), make_model(n_epochs=2, policy_kwargs={"lora": {"r": 2}})):
        assert warnings_of(lambda model=model: model.learn(96)) == []  # type: ignore[misc]


def test_critic_warmup_and_a_schedule_that_ends_at_zero_give_no_warning() -> None:
    model = make_model(critic_warmup_iterations=1, learning_rate=LinearSchedule(1e-3, 0.0, 1.0))
    assert warnings_of(lambda: model.learn(96)) == []
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0


def test_rewards_that_are_all_zero_give_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """No success yet is no fault: advantages and gradients are zero."""
    env = fake_env(2)
    step = env.venv.step
    monkeypatch.setattr(env.venv, "step", lambda actions: (lambda out: (out[0], out[1] * 0, *out[2:]))(step(actions)))
    model = make_model(env, n_epochs=2)
    assert warnings_of(lambda: model.learn(64)) == []


def test_a_policy_without_a_trainable_weight_is_noticed_before_the_first_rollout() -> None:
    children = [name for name, _ in FakeBackbone().named_children()]
    model = make_model(policy_kwargs={"frozen": children})
    assert any("no weight that is trained" in text for text in warnings_of(lambda: model._setup_learn(32)))


def test_training_on_after_merge_lora_is_noticed() -> None:
    model = make_model(policy_kwargs={"lora": {"r": 2}})
    model.learn(32)
    merge_lora(cast(nn.Module, model.policy.backbone))
    before = [parameter.detach().clone() for parameter in cast(nn.Module, model.policy.backbone).parameters()]
    seen = warnings_of(lambda: model.learn(32))
    assert sum("merge_lora removed the adapters" in text for text in seen) == 1
    after = cast(nn.Module, model.policy.backbone).parameters()
    assert all(th.equal(one, other) for one, other in zip(before, after, strict=True))
