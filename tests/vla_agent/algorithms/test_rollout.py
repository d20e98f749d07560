"""`collect` plays and reports; nothing of a learner, a policy or what came before changes."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from fakes import fake_env
from learners import make_model
from stable_baselines3.common.callbacks import BaseCallback

from vla_agent import VLAPPO
from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.algorithms.rollout import Rollout, RolloutHooks, collect


class Decided(NamedTuple):
    actions: th.Tensor
    token_log_probs: th.Tensor
    values: None = None
    value_inputs: None = None


class Dice:
    """A policy without a critic or weights: every bin is as likely as any other."""

    device = th.device("cpu")

    def set_training_mode(self, mode: bool) -> None: ...

    def act(self, obs: dict[str, th.Tensor]) -> Decided:
        bins = th.randint(256, (len(obs["input_ids"]), 7))
        return Decided(bins, th.full(bins.shape, -math.log(256)))

    def predict_values(self, obs: dict[str, th.Tensor]) -> th.Tensor:
        raise AssertionError("it has no values")


def play(policy: Any, env: Any, n_steps: int, **kwargs: Any) -> Rollout:
    rollout = collect(policy, env, n_steps, **kwargs)
    assert rollout is not None
    return rollout


def test_no_learner_changes() -> None:
    model = make_model()
    before = {name: value for name, value in vars(model).items() if name != "policy"}
    weights = {name: value.clone() for name, value in model.policy.state_dict().items()}
    env = fake_env(2)
    rollout = play(model.policy, env, 6, time_limit_gamma=0.9, keep_value_inputs=True)
    assert all(vars(model)[name] is value for name, value in before.items())
    assert (model.num_timesteps, len(model.ep_info_buffer or ()), model._last_obs) == (0, 0, None)
    assert not model.rollout_buffer.full
    assert all(th.equal(value, weights[name]) for name, value in model.policy.state_dict().items())
    assert rollout.actions.shape == rollout.log_probs.shape == (6, 2, 7)
    assert rollout.rewards.shape == rollout.episode_starts.shape == (6, 2)
    assert rollout.values is not None
    assert rollout.values.shape == (6, 2)
    assert rollout.value_inputs is not None
    assert rollout.value_inputs.shape[:2] == (6, 2)
    assert set(rollout.seconds) == {"decode", "env"}


def test_a_policy_without_a_critic_is_collected() -> None:
    env = fake_env(3, max_episode_steps=4)
    rollout = play(Dice(), env, 9)
    assert rollout.values is rollout.last_values is rollout.value_inputs is None
    np.testing.assert_allclose(rollout.log_probs, -math.log(256))
    with pytest.raises(ValueError, match="time_limit_gamma needs the values of a critic"):
        collect(Dice(), env, 1, time_limit_gamma=0.9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep_value_inputs needs a critic"):
        collect(Dice(), env, 1, keep_value_inputs=True)  # type: ignore[arg-type]


def test_ended_episodes_and_terms_are_those_of_the_rewards() -> None:
    """An episode has three steps after a success and four otherwise; the only term is the reward."""
    rollout = play(Dice(), fake_env(3, max_episode_steps=4), 12)
    assert rollout.reward_terms == {"success": rollout.rewards.sum()}
    starts = np.vstack([rollout.episode_starts[1:], rollout.dones[None]]).astype(bool)
    assert [(ended.step, ended.env) for ended in rollout.episodes] == list(zip(*np.nonzero(starts), strict=True))
    for ended in rollout.episodes:
        first = ended.step - ended.info["episode"]["l"] + 1
        assert rollout.episode_starts[first, ended.env] == 1
        assert ended.info["episode"]["r"] == pytest.approx(rollout.rewards[first : ended.step + 1, ended.env].sum())
        assert ended.info["episode"]["l"] == (3 if ended.info["is_success"] else 4)
        assert "terminal_observation" not in ended.info  # it would keep a frame of every episode


def test_two_halves_are_one_whole() -> None:
    policy = make_model().policy
    parts = []
    for sizes in ([10], [4, 6]):
        th.manual_seed(1)
        env = fake_env(2)
        last: dict[str, Any] = {}
        done = []
        for size in sizes:
            done.append(play(policy, env, size, **last))
            last = {"last_obs": done[-1].last_obs, "episode_starts": done[-1].dones}
        parts.append(done)
    (whole,), halves = parts
    for name in ("actions", "rewards", "episode_starts", "values"):
        joined = np.concatenate([getattr(half, name) for half in halves])
        np.testing.assert_array_equal(getattr(whole, name), joined, err_msg=name)


@pytest.mark.parametrize("ratio_level", ["action", "token"])
def test_a_learner_s_buffer_holds_what_collect_gives(ratio_level: str) -> None:
    def make() -> VLAPPO:
        return make_model(ratio_level=ratio_level, n_steps=8, batch_size=16)

    model, other = make(), make()
    model.train = lambda: None  # type: ignore[method-assign]
    other.train = lambda: None  # type: ignore[method-assign]
    th.manual_seed(7)
    model.learn(16)
    assert other.env is not None
    th.manual_seed(7)
    rollout = play(other.policy, other.env, 8, time_limit_gamma=0.99)
    buffer = model.rollout_buffer
    assert isinstance(buffer, TokenRolloutBuffer) == (ratio_level == "token")
    expected = rollout.log_probs if ratio_level == "token" else rollout.log_probs.sum(-1)
    np.testing.assert_allclose(buffer.log_probs, expected, rtol=1e-6)
    np.testing.assert_array_equal(buffer.rewards, rollout.rewards)
    np.testing.assert_array_equal(buffer.values, rollout.values)
    np.testing.assert_array_equal(buffer.observations["image"], rollout.observations["image"])


def test_one_rollout_is_in_memory_at_a_time() -> None:
    """Callbacks keep the locals that they are given, and frames of a rollout take gigabytes."""
    frames: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            if self.model.rollout_buffer.pos == 0:
                gc.collect()
                alive.append(sum(ref() is not None for ref in frames))
            return True

        def _on_rollout_end(self) -> None:
            frames.append(weakref.ref(self.model.rollout_buffer.observations["image"]))
            assert self.locals["n_steps"] == 8  # as SB3's
            np.testing.assert_array_equal(self.locals["dones"], self.model._last_episode_starts)

    model = make_model(n_steps=8, batch_size=16)
    update = model.train

    def train() -> None:
        update()
        frames.append(weakref.ref(model.rollout_buffer.observations["image"]))  # flattened

    model.train = train  # type: ignore[method-assign]
    model.learn(48, callback=Look())
    assert alive == [0, 0, 0]


def test_a_hook_sees_every_step_and_stops() -> None:
    class StopAtThird(RolloutHooks):
        def __init__(self) -> None:
            self.seen: list[int] = []
            self.stored = 0

        def on_step(self, step: dict[str, Any]) -> bool:
            self.seen.append(step["n_steps"])
            assert {"infos", "dones", "rewards", "new_obs", "actions", "values", "log_probs"} <= step.keys()
            return len(self.seen) < 3

        def on_stored(self, obs: dict[str, np.ndarray], dones: np.ndarray) -> None:
            self.stored += 1

    hooks = StopAtThird()
    assert collect(Dice(), fake_env(2), 9, hooks=hooks) is None  # type: ignore[arg-type]
    assert hooks.seen == [0, 1, 2]
    assert hooks.stored == 2


def test_a_rollout_that_is_stopped_is_timed() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 10

    model = make_model(n_steps=8, batch_size=16)
    logged: dict[str, Any] = {}
    model.dump_logs = lambda *_: logged.update(model.logger.name_to_value)  # type: ignore[method-assign]
    model.learn(48, callback=Stop())
    assert model.num_timesteps == 10
    assert 0 < logged["time/decode_s"] + logged["time/env_s"] <= logged["time/rollout_s"]


def test_a_buffer_that_is_handed_in_is_filled() -> None:
    env = fake_env(2)
    buffer = TokenRolloutBuffer(5, env.observation_space, env.action_space, "cpu", n_envs=2)  # type: ignore[arg-type]
    rollout = play(Dice(), env, 5, buffer=buffer)
    assert buffer.full
    assert all(rollout.observations[key] is values for key, values in buffer.observations.items())
    assert rollout.actions is buffer.actions
    next(iter(buffer.get(10)))  # flattens its arrays, and must not change the rollout
    assert rollout.observations["image"].shape[:2] == rollout.actions.shape[:2] == (5, 2)
    with pytest.raises(ValueError, match="n_steps=0 is out of range"):
        collect(Dice(), env, 0)  # type: ignore[arg-type]
