"""Probabilities over the 256 bins of an action token, from logits: temperature, top-k, nucleus."""

from __future__ import annotations

import torch as th
from torch.nn import functional as F

from libero_gym.checks import real_number, whole_number

# Log-probability of a bin that truncation leaves out: nothing beside the others, but no infinity in sums and products.
OUTSIDE = -30.0


def check_truncation(top_k: int | None, top_p: float | None) -> None:
    """Complains about settings that leave no bin.

    Raises:
        ValueError: If ``top_k`` is less than one, or ``top_p`` is not in (0, 1].
    """
    if top_k is not None:
        whole_number("top_k", top_k, 1)
    if top_p is not None:
        real_number("top_p", top_p, above=0, maximum=1)


def bin_log_probs(
    logits: th.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    *,
    drawn: th.Tensor | None = None,
) -> th.Tensor:
    """Log-probabilities, float32 (..., 256), of logits in any floating type.

    Args:
        logits: Shape (..., 256).
        temperature: Divides the logits.
        top_k: Keep only the so many likeliest bins.
        top_p: Keep only the likeliest bins that together have at least this probability (nucleus sampling, Holtzman et
            al., 2020, arXiv 1904.09751), of those that ``top_k`` leaves.
        drawn: Bins (...) that are known to have been drawn, and so are kept, wherever rounding puts the border now.

    Returns:
        What is kept sums to one; other bins have `OUTSIDE`.
    """
    log_probs = F.log_softmax(logits.float() / temperature, dim=-1)
    if top_k is None and top_p is None:
        return log_probs
    kept = kept_bins(log_probs.detach(), top_k, top_p)
    if drawn is not None:
        kept = kept.scatter(-1, drawn.long().unsqueeze(-1), value=True)
    total = log_probs.masked_fill(~kept, -th.inf).logsumexp(dim=-1, keepdim=True)
    return (log_probs - total).masked_fill(~kept, OUTSIDE)


def kept_bins(log_probs: th.Tensor, top_k: int | None, top_p: float | None) -> th.Tensor:
    """Which bins truncation keeps, bool (..., 256); always the likeliest one. Arguments as of `bin_log_probs`."""
    ordered, order = log_probs.sort(dim=-1, descending=True, stable=True)
    kept = th.ones_like(ordered, dtype=th.bool)
    if top_k is not None:
        kept[..., top_k:].fill_(False)
    if top_p is not None:
        probs = ordered.exp().masked_fill(~kept, 0.0)
        before = probs.cumsum(dim=-1) - probs
        kept &= before < top_p * probs.sum(dim=-1, keepdim=True)
        kept[..., 0].fill_(True)
    return th.empty_like(kept).scatter_(-1, order, kept)
