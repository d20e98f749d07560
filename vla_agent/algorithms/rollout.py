"""Rollouts of a `VLAPolicy`: SB3's loop with time limits bootstrapped in one batch; and minibatches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from libero_gym.checks import whole_number
from vla_agent.algorithms.finite import check_observations, check_rewards, check_values
from vla_agent.algorithms.health import Stopwatch
from vla_agent.policy.policy import VLAPolicy

if TYPE_CHECKING:
    from vla_agent.algorithms.ppo import VLAPPO

Batch = RolloutBufferSamples | DictRolloutBufferSamples


class TokenRolloutBuffer(DictRolloutBuffer):
    """SB3's buffer with one log-probability per action token: `old_log_prob` has shape (batch, N)."""

    def reset(self) -> None:
        super().reset()
        self.log_probs = np.zeros((self.buffer_size, self.n_envs, self.action_dim), dtype=np.float32)

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> DictRolloutBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(old_log_prob=samples.old_log_prob.view(-1, self.action_dim))


def collect_rollouts(
    model: VLAPPO,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: DictRolloutBuffer,
    n_rollout_steps: int,
    stopwatch: Stopwatch,
) -> bool:
    """`OnPolicyAlgorithm.collect_rollouts` for a `VLAPolicy`.

    It differs in what is added: the values that stand in for what a time limit cut off come from one batch per step,
    the buffer may hold a log-probability per token, the critic's returns may have a lambda of their own, what the value
    head read may be kept, the phases "decode" and "env" are timed, and the terms of the reward are logged.

    Returns:
        False if the callback stopped it.

    Raises:
        NonFiniteError: If a reward, an observation or a value is no finite number.
    """
    policy = cast(VLAPolicy, model.policy)
    last_obs = cast(dict[str, np.ndarray], model._last_obs)
    assert last_obs is not None, "No previous observation was provided"
    per_token = isinstance(rollout_buffer, TokenRolloutBuffer)
    policy.set_training_mode(False)
    n_steps = 0
    rollout_buffer.reset()
    callback.on_rollout_start()
    dones = np.zeros(env.num_envs, dtype=bool)
    reward_terms: Counter[str] = Counter()
    value_inputs = []
    check_observations(last_obs, None, model.num_timesteps)

    while n_steps < n_rollout_steps:
        with stopwatch("decode"), th.no_grad():
            decision = policy.act(_to_tensors(last_obs, policy))
            actions = decision.actions.cpu().numpy()  # waits for the device
        values = decision.values
        check_values(values.flatten().cpu().numpy(), range(env.num_envs), model.num_timesteps)
        if model.n_value_epochs:
            value_inputs.append(decision.value_inputs)
        log_probs = decision.token_log_probs if per_token else decision.token_log_probs.sum(dim=1)
        with stopwatch("env"):
            new_obs, rewards, dones, infos = env.step(actions)
        model.num_timesteps += env.num_envs
        check_rewards(rewards, infos, model.num_timesteps)
        check_observations(cast(dict[str, np.ndarray], new_obs), infos, model.num_timesteps)
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        model._update_info_buffer(infos, dones)
        for info in infos:
            reward_terms.update(info.get("reward_terms", {}))
        n_steps += 1
        if model.bootstrap_time_limits:
            with stopwatch("decode"):
                bootstrap_time_limits(policy, model.gamma, rewards, dones, infos, model.num_timesteps)
        rollout_buffer.add(
            last_obs,
            actions,
            rewards,
            model._last_episode_starts,  # type: ignore[arg-type]
            values,
            log_probs,
        )
        model._last_obs = last_obs = cast(dict[str, np.ndarray], new_obs)
        model._last_episode_starts = dones

    with stopwatch("decode"), th.no_grad():
        values = policy.predict_values(_to_tensors(last_obs, policy))
    compute_targets(rollout_buffer, values, dones, model.value_gae_lambda)
    model.rollout_value_inputs = th.stack(value_inputs) if value_inputs else None
    for name, total in reward_terms.items():
        model.logger.record(f"rollout/reward_{name}", total / (n_rollout_steps * env.num_envs))
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def compute_targets(
    buffer: DictRolloutBuffer, last_values: th.Tensor, dones: np.ndarray, value_gae_lambda: float | None
) -> None:
    """Fills in the buffer's advantages and returns, each by its own lambda.

    Args:
        buffer: A full one, whose ``gae_lambda`` is that of the advantages.
        last_values: Of the observations after it, (n_envs, 1).
        dones: Of its last step, (n_envs,).
        value_gae_lambda: Of the returns; None for the buffer's.
    """
    buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
    if value_gae_lambda is None:
        return
    advantages, gae_lambda = buffer.advantages.copy(), buffer.gae_lambda
    buffer.gae_lambda = value_gae_lambda
    buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
    buffer.gae_lambda = gae_lambda
    buffer.advantages[:] = advantages


def bootstrap_time_limits(
    policy: VLAPolicy,
    gamma: float,
    rewards: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
    num_timesteps: int = 0,
) -> None:
    """Adds gamma * V(last observation) to the reward of each episode that a time limit ended, in place.

    A time limit is not part of the task: the value of going on belongs to the return (SB3, GH issue 633).

    Args:
        policy: Gives the values, of all such episodes at once.
        gamma: Discount factor.
        rewards: Of this step, (n_envs,).
        dones: Of this step, (n_envs,).
        infos: Of this step, with `TimeLimit.truncated` and `terminal_observation`.
        num_timesteps: Environment steps of the run so far, for messages.

    Raises:
        NonFiniteError: If such a value is none.
    """
    cut = [
        i
        for i, (done, info) in enumerate(zip(dones, infos, strict=True))
        if done and info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None
    ]
    if not cut:
        return
    last = [infos[i]["terminal_observation"] for i in cut]
    batch = {key: np.stack([obs[key] for obs in last]) for key in last[0]}
    with th.no_grad():
        values = policy.predict_values(_to_tensors(batch, policy)).flatten().cpu().numpy()
    check_values(values, cut, num_timesteps)
    rewards[cut] += gamma * values


def _to_tensors(obs: dict[str, np.ndarray], policy: VLAPolicy) -> dict[str, th.Tensor]:
    return cast(dict[str, th.Tensor], obs_as_tensor(obs, policy.device))


def check_batches(n_steps: int, n_envs: int | None, batch_size: int) -> None:
    """Complains if minibatches do not divide the rollout.

    Raises:
        ValueError: If they do not; it names the nearest sizes that do.
    """
    whole_number("n_steps", n_steps, 1)
    whole_number("batch_size", batch_size, 1)
    size = n_steps * (n_envs or 1)
    if n_envs is None or size % batch_size == 0:
        return
    fitting = [d for d in range(1, size + 1) if size % d == 0]
    below = max((d for d in fitting if d < batch_size), default=1)
    above = min((d for d in fitting if d > batch_size), default=size)
    choice = f"{below} or {above}" if above > batch_size else f"{below}"
    raise ValueError(
        f"batch_size={batch_size} does not divide n_steps * n_envs = {size}; the last minibatch would have "
        f"{size % batch_size} samples. Use {choice}."
    )


def split_batch(batch: Batch, n_parts: int) -> Iterator[Any]:
    """Parts of a batch, in order, along the first dimension of every tensor."""
    if n_parts == 1:
        yield batch
        return
    for indices in np.array_split(np.arange(len(batch.advantages)), n_parts):
        if not len(indices):
            continue
        part = slice(int(indices[0]), int(indices[-1]) + 1)
        fields: dict[str, Any] = {
            name: {key: value[part] for key, value in field.items()} if isinstance(field, dict) else field[part]
            for name, field in batch._asdict().items()
        }
        yield type(batch)(**fields)
