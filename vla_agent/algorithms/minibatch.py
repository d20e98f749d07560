"""One optimizer step on a minibatch, whatever the loss is: parts, ranks, and the checks that a step must pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch as th
from stable_baselines3.common.policies import BasePolicy

from vla_agent.algorithms import health
from vla_agent.algorithms.buffers import split_batch
from vla_agent.algorithms.engine import Engine


class Losses(NamedTuple):
    """Losses of one micro-batch of B samples."""

    loss: th.Tensor  # what is minimised
    log_ratio: th.Tensor  # (B,), of whole actions
    metrics: dict[str, th.Tensor]  # means over the batch, for the log


class Stepping(Protocol):
    """A learner whose policy steps; `vla_agent.algorithms.ppo.VLAPPO` is one. Attributes are its arguments."""

    policy: Any
    gradient_accumulation_steps: int
    max_grad_norm: float
    target_kl: float | None
    n_skipped_steps: int
    _engine: Engine
    _monitor: health.UpdateMonitor


def step_on(
    learner: Stepping, batch: Any, losses_of: Callable[[Any], Losses], is_first: bool, log: health.UpdateLog
) -> bool:
    """Takes one optimizer step; False if the KL divergence forbids it and what would follow.

    Args:
        learner: The learner.
        batch: Minibatch, a named tuple of tensors with ``advantages`` (B,).
        losses_of: Losses of a part of the minibatch, as means over it.
        is_first: Whether nothing was learned yet from the rollout, so that every ratio has to be 1.
        log: Log of the update; it gets the means of the losses' metrics, and the norms of the gradients.

    Raises:
        NonFiniteError: If several losses or gradients in a row are not finite.
        RatioError: If a first ratio is not 1.
    """
    policy: BasePolicy = learner.policy
    optimizer, ranks = learner.policy.optimizer, learner._engine.ranks
    optimizer.zero_grad()
    totals: dict[str, th.Tensor] = {}
    log_ratio = th.zeros_like(batch.advantages)
    # With n ranks, n times as many parts, of which each rank takes its own.
    parts = split_batch(batch, learner.gradient_accumulation_steps * ranks.size)
    for rows, part in itertools.islice(parts, ranks.rank, None, ranks.size):
        weight = len(part.advantages) / len(batch.advantages)
        result = losses_of(part)
        (result.loss * weight).backward()
        log_ratio[rows] = result.log_ratio.detach()
        for name, value in result.metrics.items():
            totals[name] = totals.get(name, 0.0) + value.detach() * weight
    ranks.sum([*health.gradients(policy.parameters()), *totals.values(), log_ratio])
    norms = health.gradient_norms(optimizer)
    norms["grad_norm"] = health.clip_gradients(policy.parameters(), learner.max_grad_norm)
    # SB3 steps on NaN, and every weight is NaN from then on; the minibatch is left out instead.
    if not learner._monitor.is_finite(totals["loss"], norms["grad_norm"]):
        optimizer.zero_grad()
        learner.n_skipped_steps += 1
        return True
    for name, value in totals.items():
        log.add(name, value)
    # Before the first step the ratio is 1 (PPO, arXiv 1707.06347, section 3); anything else is an error.
    ratio_error = (log_ratio.exp() - 1).abs().mean()
    log.add("first_ratio_error" if is_first else "ratio_deviation", ratio_error)
    if is_first:
        log.add("log_prob_gap", log_ratio.mean())
        learner._monitor.check_first_ratio(log.last("first_ratio_error"), log.last("log_prob_gap"))
    # SB3 stops before the backward pass; the parameters are the same (on the estimate: SB3, GH issue 417).
    if learner.target_kl is not None and log.last("approx_kl") > 1.5 * learner.target_kl:
        optimizer.zero_grad()
        return False
    for name, norm in norms.items():
        log.add(name, norm)
    optimizer.step()
    return True
