"""Losses of learning from demonstrations, as functions of tensors; each is a weighted mean.

A weight says how much an example or a token counts: 1 or 0 in cloning, any number of at least 0 in offline learning. A
minibatch may go through the model in parts; given the whole minibatch's ``total`` weight, the losses and gradients of
the parts add up to those of the whole.
"""

from __future__ import annotations

import torch as th

from libero_gym.common.checks import real_number
from vla_agent.action_tokens import N_BINS


def weighted_mean(values: th.Tensor, weights: th.Tensor, total: th.Tensor | None = None) -> th.Tensor:
    """Sum of weights times values over the total weight, a scalar.

    Args:
        values: Any shape.
        weights: The same shape, each at least 0.
        total: What to divide by: the sum of the weights of the minibatch that these are a part of. None divides by the
            sum of ``weights``.
    """
    return (values * weights).sum() / (weights.sum() if total is None else total)


def bin_targets(sigma: float, n_bins: int = N_BINS) -> th.Tensor:
    """Target distribution over all bins for each right bin, float32 (n_bins, n_bins); rows sum to one.

    Args:
        sigma: Standard deviation of a Gaussian around the right bin, in bins; 0 puts everything on the right bin.
        n_bins: Number of bins.

    Raises:
        ValueError: If ``sigma`` is negative.
    """
    if real_number("bin_sigma", sigma, 0) == 0:
        return th.eye(n_bins)
    distance = th.arange(n_bins)[:, None] - th.arange(n_bins)
    return th.softmax(-0.5 * (distance / sigma) ** 2, dim=1)


def next_token_loss(
    log_probs: th.Tensor,
    bins: th.Tensor,
    weights: th.Tensor,
    targets: th.Tensor,
    total: th.Tensor | None = None,
) -> th.Tensor:
    """Mean cross-entropy of the action tokens in nats, a scalar.

    Args:
        log_probs: Log-probabilities of each token's bins, float32 (B, N, n_bins), the earlier tokens given.
        bins: Right bins, int64 (B, N).
        weights: Weights of the tokens, (B, N).
        targets: Target distribution for each right bin, (n_bins, n_bins), of `bin_targets`.
        total: See `weighted_mean`.
    """
    return weighted_mean(-(targets[bins] * log_probs).sum(-1), weights, total)


def regression_loss(
    predicted: th.Tensor, target: th.Tensor, weights: th.Tensor, total: th.Tensor | None = None
) -> th.Tensor:
    """Mean squared error of a regression head over examples and dimensions, a scalar.

    Args:
        predicted: What the head gives, (B, D).
        target: What it should give, (B, D).
        weights: Weights of the examples, (B,).
        total: See `weighted_mean`.
    """
    return weighted_mean((predicted - target).square().mean(-1), weights, total)
