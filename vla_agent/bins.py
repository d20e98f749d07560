"""Bins of action tokens: how one is drawn from its logits, how likely it is, and how much is left to chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch as th
from torch.nn import functional as F

from libero_gym.common.checks import real_number, whole_number
from vla_agent.action_tokens import N_BINS

# Log-probability of a bin that truncation leaves out: as good as impossible, yet finite in sums and products.
OUTSIDE = -30.0


@dataclass(frozen=True)
class Sampling:
    """How a bin is drawn from its logits; the one value that models, distributions and policies share.

    Attributes:
        deterministic: Take the likeliest bin.
        temperature: Divides the logits, when drawing and when scoring.
        top_k: Draw only from the so many likeliest bins.
        top_p: Draw only from the likeliest bins that together have at least this probability; see `bin_log_probs`.

    Raises:
        ValueError: If the temperature is not positive, or truncation leaves no bin.
    """

    deterministic: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.temperature, (int, float)) and self.temperature == 0:
            raise ValueError("temperature=0; expected a number above 0. Acting with deterministic=True is greedy.")
        real_number("temperature", self.temperature, above=0)
        if self.top_k is not None:
            whole_number("top_k", self.top_k, 1)
        if self.top_p is not None:
            real_number("top_p", self.top_p, above=0, maximum=1)

    def log_probs(self, logits: th.Tensor, *, drawn: th.Tensor | None = None) -> th.Tensor:
        """Log-probabilities, float32 (..., 256), that `choose` draws by; arguments as `bin_log_probs`."""
        return bin_log_probs(logits, self.temperature, self.top_k, self.top_p, drawn=drawn)

    def noise(self, n_draws: int, n_rows: int, device: th.device, generator: th.Generator | None) -> th.Tensor | None:
        """Randomness for `n_draws` calls of `choose` on `n_rows` rows, float32 (n_draws, n_rows, 256); None if greedy.

        It is drawn before the model runs, so that decoding itself is a plain function of tensors; draw after draw,
        because that is how `th.multinomial` would use the generator.
        """
        if self.deterministic:
            return None
        noise = th.empty(n_draws, n_rows, N_BINS, device=device)
        for draw in noise:
            draw.exponential_(generator=generator)
        return noise

    def choose(self, logits: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """Bins, int64 (B,), of logits (B, 256) and a draw of `noise` (B, 256)."""
        if noise is None:
            return logits.argmax(-1)
        # What th.multinomial computes for a single draw, without its two waits for the device.
        return (self.log_probs(logits).exp() / noise).argmax(-1)


PLAIN = Sampling()
"""Draws from the logits as they are."""

GREEDY = Sampling(deterministic=True)
"""Takes the likeliest bin of each token."""


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
        drawn: Bins (...) that are known to have been drawn. They are kept even if rounding, which differs between
            sampling and scoring, now puts them outside.

    Returns:
        The kept bins' probabilities sum to one; other bins have `OUTSIDE`.
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
    """Which bins truncation keeps, bool (..., 256); always the likeliest one. Arguments as `bin_log_probs`."""
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


def gather_bins(log_probs: th.Tensor, bins: th.Tensor) -> th.Tensor:
    """Log-probabilities (B, N) of bins (B, N), taken from those of all bins (B, N, 256)."""
    return log_probs.gather(-1, bins.long().unsqueeze(-1)).squeeze(-1)


def bin_entropy(log_probs: th.Tensor) -> th.Tensor:
    """Entropy (B, N) in nats of log-probabilities (B, N, 256)."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)
