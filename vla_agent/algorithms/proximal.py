"""Rollouts of an earlier policy than the one that learns from them."""

from __future__ import annotations

import torch as th

from vla_agent.algorithms import health, losses
from vla_agent.algorithms.buffers import TokenRolloutBuffer
from vla_agent.algorithms.engine import Ranks
from vla_agent.policy.policy import VLAPolicy


def score_again(
    policy: VLAPolicy,
    buffer: TokenRolloutBuffer,
    by_token: bool,
    batch_size: int,
    ranks: Ranks,
    log: health.UpdateLog,
) -> None:
    """Makes the policy of now the one that ratios are clipped against, and weighs what the earlier one drew.

    See `losses.behaviour_weights`. It logs ``behaviour_gap``, the mean |pi / pi_behav - 1| of whole actions, and the
    mean weight.

    Args:
        policy: The policy before its update.
        buffer: A full buffer of n steps in B environments with N tokens, which no minibatch was drawn from. Its
            log-probabilities (n, B, N) are replaced, and its weights set.
        by_token: Whether each token has a weight, or each action.
        batch_size: Samples that go through the network at a time.
        ranks: Learners, each of which scores its share.
        log: Log of the update.
    """
    shape = buffer.log_probs.shape
    behaviour = th.as_tensor(buffer.log_probs).flatten(0, 1)
    log_probs = th.zeros_like(behaviour, device=policy.device)
    observations = {key: values.reshape(-1, *values.shape[2:]) for key, values in buffer.observations.items()}
    actions = buffer.actions.reshape(len(behaviour), -1)
    with th.no_grad():
        for rows in th.arange(len(behaviour)).split(batch_size)[ranks.rank :: ranks.size]:
            own = {key: buffer.to_torch(values[rows]) for key, values in observations.items()}
            log_probs[rows] = policy.score(own, buffer.to_torch(actions[rows])).token_log_probs
    ranks.sum([log_probs])
    log_probs = log_probs.cpu()
    gaps = log_probs - behaviour
    whole = gaps.sum(dim=1, keepdim=True)
    weights = losses.behaviour_weights(gaps if by_token else whole)
    log.add("behaviour_gap", (whole.exp() - 1).abs().mean())
    log.add("behaviour_weight", weights.mean())
    buffer.log_probs = log_probs.reshape(shape).numpy()
    buffer.weights = weights.reshape(*shape[:2], -1).numpy()
