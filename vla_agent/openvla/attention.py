"""Attention as the towers and the Llama call it: torch's fused kernels, but for bfloat16 on a CPU.

There, the backward pass of torch's fused kernel takes five times as long as in float32 (torch 2.13), so that computing
in bfloat16 would gain nothing. Plain products of matrices run at the full rate of bfloat16.
"""

from typing import Any

import torch as th
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

LLAMA_ATTENTION = "openvla"  # name under which transformers' Llama finds `attend_in_llama`
_HIDDEN = -1e9  # score of a hidden key; finite, so that a query which sees nothing stays a number


def attend(
    q: th.Tensor,
    k: th.Tensor,
    v: th.Tensor,
    mask: th.Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> th.Tensor:
    """Weighted means of values, (B, heads, Q, D).

    Args:
        q: Queries, (B, heads, Q, D).
        k: Keys, (B, heads, K, D).
        v: Values, (B, heads, K, D).
        mask: Which keys a query sees, bool (B or 1, heads or 1, Q or 1, K); None for all.
        is_causal: Whether the first query sees the first key alone, the second two, and so on; without ``mask``.
        scale: Factor of the scores; None takes 1 / sqrt(D).
    """
    if not _by_products(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    if is_causal:
        mask = th.ones(q.shape[2], k.shape[2], dtype=th.bool, device=q.device).tril()
    q, k, v = (part.to(th.bfloat16) for part in (q, k, v))
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.add_(th.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, _HIDDEN))
    return th.softmax(scores, dim=-1, dtype=th.bfloat16) @ v


def attend_in_llama(
    module: th.nn.Module,
    query: th.Tensor,
    key: th.Tensor,
    value: th.Tensor,
    attention_mask: th.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[th.Tensor, None]:
    """`attend` with the arguments of transformers' attention functions; the result is (B, Q, heads, D)."""
    if not _by_products(query) or key.shape[1] != query.shape[1]:
        found = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found[0], None
    is_causal = attention_mask is None and query.shape[2] > 1
    attended = attend(query, key, value, attention_mask, is_causal=is_causal, scale=scaling)
    return attended.transpose(1, 2).contiguous(), None


def _by_products(q: th.Tensor) -> bool:
    return q.device.type == "cpu" and th.is_autocast_enabled("cpu")


AttentionInterface.register(LLAMA_ATTENTION, attend_in_llama)
