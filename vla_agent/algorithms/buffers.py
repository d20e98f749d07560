"""What a rollout is kept in until its update: the buffer, the targets of the losses, and minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from libero_gym.common.checks import whole_number


class TokenSamples(NamedTuple):
    """SB3's `DictRolloutBufferSamples` with a log-probability per token, and weights. B samples, N tokens."""

    observations: dict[str, th.Tensor]
    actions: th.Tensor  # (B, N)
    old_values: th.Tensor  # (B,)
    old_log_prob: th.Tensor  # (B, N)
    advantages: th.Tensor  # (B,)
    returns: th.Tensor  # (B,)
    weights: th.Tensor | None = None  # of the policy loss, (B, N) or (B, 1); None for 1


Batch = RolloutBufferSamples | DictRolloutBufferSamples | TokenSamples


class MixedRolloutBuffer(DictRolloutBuffer):
    """SB3's buffer, which keeps observations that come as tensors on their device, and draws minibatches there."""

    def add(self, obs: dict[str, Any], *step: Any, **named: Any) -> None:  # type: ignore[override]
        """Adds a step, as SB3's.

        Args:
            obs: Observations by key, arrays or tensors, (n_envs, ...).
            step, named: SB3's further arguments.
        """
        position, kept = self.pos, self.observations
        tensors = {key: value for key, value in obs.items() if isinstance(value, th.Tensor)}
        for key, value in tensors.items():
            if not isinstance(kept[key], th.Tensor):
                shape = (self.buffer_size, self.n_envs, *self.obs_shape[key])
                kept[key] = cast(Any, th.zeros(shape, dtype=value.dtype, device=value.device))
            kept[key][position] = value
        self.observations = {key: value for key, value in kept.items() if key not in tensors}
        try:
            super().add(obs, *step, **named)
        finally:
            self.observations = kept

    def to_torch(self, array: Any, copy: bool = True) -> th.Tensor:
        """A tensor on the policy's device, as SB3's; one that is a tensor already is not copied there."""
        return array.to(self.device) if isinstance(array, th.Tensor) else super().to_torch(array, copy)


class TokenRolloutBuffer(MixedRolloutBuffer):
    """The buffer with one log-probability per action token.

    Attributes:
        weights: Weights of the policy loss for rollouts of an earlier policy, (n_steps, n_envs, N) or (..., 1); None
            for 1. `reset` forgets them.
    """

    weights: np.ndarray | None = None

    def reset(self) -> None:
        """Empties the buffer."""
        super().reset()
        self.log_probs = np.zeros((self.buffer_size, self.n_envs, self.action_dim), dtype=np.float32)
        self.weights = None

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        """Minibatches in random order, as SB3's."""
        if self.weights is not None and not self.generator_ready:
            self.weights = self.swap_and_flatten(self.weights)  # as SB3 does with all that it knows
        yield from super().get(batch_size)

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> TokenSamples:
        samples = super()._get_samples(batch_inds, env)
        # SB3 flattens old_log_prob, because it knows one number per sample.
        log_probs = samples.old_log_prob.view(-1, self.action_dim)
        weights = None if self.weights is None else self.to_torch(self.weights[batch_inds])
        return TokenSamples(*samples._replace(old_log_prob=log_probs), weights=weights)


def compute_targets(
    buffer: DictRolloutBuffer, last_values: th.Tensor, dones: np.ndarray, value_gae_lambda: float | None
) -> None:
    """Fills in the advantages and the returns of a full buffer, each by its own lambda.

    Args:
        buffer: The buffer; its ``gae_lambda`` is the lambda of the advantages.
        last_values: Values of the observations after the last step, (n_envs, 1).
        dones: Whether the last step ended an episode, (n_envs,).
        value_gae_lambda: Lambda of the returns; None for the buffer's.
    """
    buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
    if value_gae_lambda is None:
        return
    # Decoupled GAE (Yuan et al., 2025, arXiv 2503.01491): a small lambda takes noise out of the advantages, and the
    # critic would learn with it what it already says. SB3 computes both at once, returns = advantages + values,
    # so it computes them twice and the first advantages are put back.
    advantages, gae_lambda = buffer.advantages.copy(), buffer.gae_lambda
    buffer.gae_lambda = value_gae_lambda
    buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
    buffer.gae_lambda = gae_lambda
    buffer.advantages[:] = advantages


def check_batches(n_steps: int, n_envs: int | None, batch_size: int) -> None:
    """Complains if minibatches do not divide the rollout.

    Args:
        n_steps: Steps of a rollout in each environment.
        n_envs: Number of environments; None if it is not known yet.
        batch_size: Samples of a minibatch.

    Raises:
        ValueError: If they do not; the message names the nearest sizes that do.
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


def split_batch(batch: Batch, n_parts: int) -> Iterator[tuple[slice, Any]]:
    """Parts of a batch, in order, along the first dimension of every tensor, and which rows they are."""
    if n_parts == 1:
        yield slice(None), batch
        return
    for indices in np.array_split(np.arange(len(batch.advantages)), n_parts):
        if not len(indices):
            continue
        part = slice(int(indices[0]), int(indices[-1]) + 1)
        fields: dict[str, Any] = {
            name: {key: value[part] for key, value in field.items()} if isinstance(field, dict) else field[part]
            for name, field in batch._asdict().items()
            if field is not None
        }
        yield part, type(batch)(**fields)
