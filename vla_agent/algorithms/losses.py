"""Losses of policy updates as pure functions: each returns a mean over the B samples that it is given."""

from typing import Literal

import torch as th
from torch.nn import functional as F

ValueLoss = Literal["mse", "huber"]
RatioLevel = Literal["action", "token"]
Estimator = Literal["sampled", "exact"]


# Largest weight of an action, or token, that an earlier policy drew.
MAX_WEIGHT = 2.0


def behaviour_weights(log_ratio: th.Tensor) -> th.Tensor:
    """min(pi_prox(a|s) / pi_behav(a|s), 2), of the shape of the ratio's logarithm.

    Decoupled PPO (Hilton et al., 2022, arXiv 2110.00641, section 3) clips against a proximal policy, here that before
    the update, and weighs what an earlier policy drew by importance; the bound keeps the weights' variance small.
    """
    return th.exp(log_ratio).clamp(max=MAX_WEIGHT)


def clipped_surrogate(
    ratio: th.Tensor,
    advantages: th.Tensor,
    clip_range: float,
    weights: th.Tensor | None = None,
    clip_range_high: float | None = None,
) -> th.Tensor:
    """Clipped policy loss, eq. 7 of PPO (Schulman et al., 2017, arXiv 1707.06347).

    L = -E[w min(r A, clip(r, 1 - eps, 1 + eps_high) A)]. With one ratio per token, the tokens' terms are summed, so
    that at r = 1 its gradient is that of the loss with one ratio per action.

    Args:
        ratio: r = pi(a|s) / pi_old(a|s), shape (B,), or per token (B, N).
        advantages: Advantages A, shape (B,); or one per token, (B, N).
        clip_range: How far the ratio may fall, eps.
        weights: Weights w, such as those of `behaviour_weights`, of the shape of the ratio, or (B, 1) for one ratio per
            token; None for 1.
        clip_range_high: How far it may rise, eps_high; None for eps. A larger one lets unlikely actions become likely
            faster (DAPO, Yu et al., 2025, arXiv 2503.14476, section 3.1).
    """
    high = clip_range if clip_range_high is None else clip_range_high
    if ratio.ndim == 2 and advantages.ndim == 1:
        advantages = advantages.unsqueeze(1)
    policy_loss_1 = advantages * ratio
    policy_loss_2 = advantages * th.clamp(ratio, 1 - clip_range, 1 + high)
    terms = th.min(policy_loss_1, policy_loss_2)
    if weights is not None:
        terms = weights * terms
    return -(terms.sum(dim=1) if ratio.ndim == 2 else terms).mean()


def clip_values(values: th.Tensor, old_values: th.Tensor, clip_range_vf: float | None) -> th.Tensor:
    """V_old + clip(V - V_old, -eps, eps), shape (B,), as SB3 clips; V itself for None."""
    if clip_range_vf is None:
        return values
    return old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)


def value_loss(values: th.Tensor, returns: th.Tensor, kind: ValueLoss = "mse", huber_delta: float = 10.0) -> th.Tensor:
    """Distance of values to returns, both (B,).

    "mse": E[(R - V)^2]. "huber": E[h(R - V)], where h(x) = x^2 / 2 for |x| <= delta and delta (|x| - delta / 2) beyond.
    """
    if kind == "mse":
        return F.mse_loss(returns, values)
    return F.huber_loss(values, returns, delta=huber_delta)


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor) -> th.Tensor:
    """-E[H], or the estimate E[log pi] where the distribution has no closed form. Both (B,)."""
    return -th.mean(-log_prob) if entropy is None else -th.mean(entropy)


def approximate_kl(log_ratio: th.Tensor) -> th.Tensor:
    """KL(pi_old || pi), estimated by E[(r - 1) - log r] over actions of pi_old (http://joschu.net/blog/kl-approx.html).

    Args:
        log_ratio: log r, shape (B,).
    """
    return th.mean((th.exp(log_ratio) - 1) - log_ratio)


def reference_kl(log_probs: th.Tensor, reference_log_probs: th.Tensor) -> th.Tensor:
    """KL(pi || pi_ref) of action chains, exact per token: E[sum_i sum_b pi_i(b) (log pi_i(b) - log pi_ref,i(b))].

    Args:
        log_probs: log pi, shape (B, N, bins), each token's given the earlier ones.
        reference_log_probs: log pi_ref along the same chains, the same shape.
    """
    return (log_probs.exp() * (log_probs - reference_log_probs)).sum(dim=(1, 2)).mean()


def clip_fraction(ratio: th.Tensor, clip_range: float, clip_range_high: float | None = None) -> th.Tensor:
    """Share of ratios outside [1 - eps, 1 + eps_high]; eps_high is eps by default."""
    if clip_range_high is None:
        return th.mean((th.abs(ratio - 1) > clip_range).float())
    return th.mean(((ratio < 1 - clip_range) | (ratio > 1 + clip_range_high)).float())


def normalize(advantages: th.Tensor) -> th.Tensor:
    """(A - mean) / (std + 1e-8), shape (B,); a single advantage stays as it is."""
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
