"""Action tokens as an SB3 distribution over ``MultiDiscrete([256] * N)``: a chain, not N independent categoricals."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn

from vla_agent.action_tokens import N_BINS
from vla_agent.bins import PLAIN, Sampling, bin_entropy, gather_bins


class Chain(NamedTuple):
    """Bins of B action chains, and the scores of every token with the earlier ones given."""

    actions: th.Tensor  # int64 (B, N)
    logits: th.Tensor  # (B, N, 256), before the temperature


DrawFn = Callable[[bool], Chain]
ScoreFn = Callable[[th.Tensor], th.Tensor]


class ActionTokenDistribution(Distribution):
    """pi(a | s) = prod_i pi(a_i | s, a_1 ... a_{i-1}), each factor a softmax of logits / temperature over 256 bins.

    The logits of a later token are known only once the earlier tokens are. The distribution is therefore tied to one
    chain of actions at a time (`actions`), and asks the model for another where a method needs one: `sample` and `mode`
    through ``draw``, `log_prob` of other actions through ``score``. Tied to logits alone, it takes them as they are,
    which is exact for tokens that are independent given the observation.

    Args:
        n_tokens: Tokens N of an action.
        sampling: Temperature and truncation of each factor, when sampling and when scoring.
    """

    def __init__(self, n_tokens: int, sampling: Sampling = PLAIN) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.sampling = sampling
        self._log_probs: th.Tensor | None = None
        self._actions: th.Tensor | None = None
        self._draw: DrawFn | None = None
        self._score: ScoreFn | None = None

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """The language model's head is the net, so there is none to create."""
        raise NotImplementedError("Action tokens are scored by the language model's own head; there is no net to make.")

    def proba_distribution(
        self,
        action_logits: th.Tensor | None = None,
        actions: th.Tensor | None = None,
        *,
        draw: DrawFn | None = None,
        score: ScoreFn | None = None,
    ) -> "ActionTokenDistribution":
        """Ties the distribution to scores, or to a model that gives scores when they are needed.

        Args:
            action_logits: Shape (B, N, 256), before the temperature.
            actions: The chain that they are conditional on, bins (B, N).
            draw: Returns a sampled chain, or the greedy one for True.
            score: Returns the logits (B, N, 256) of actions (B, N).

        Returns:
            Itself.

        Raises:
            ValueError: If the logits have another shape, or there are neither logits nor both functions.
        """
        if action_logits is None and (draw is None or score is None):
            raise ValueError("proba_distribution needs action_logits, or both draw and score.")
        self._draw, self._score = draw, score
        self._log_probs = self._actions = None
        if action_logits is not None:
            self._tie(action_logits, actions)
        return self

    @property
    def log_probs(self) -> th.Tensor:
        """Log-probability of every bin of every token, along the tied chain. float32 (B, N, 256)."""
        if self._log_probs is None:
            self.sample()
        assert self._log_probs is not None
        return self._log_probs

    def token_log_probs(self, actions: th.Tensor) -> th.Tensor:
        """Terms of `log_prob`, float32 (B, N): of each token, given the earlier ones.

        Raises:
            ValueError: If the distribution is tied to the logits of other actions, and to no model.
        """
        bins = actions.long()
        other = self._actions is None or not th.equal(bins, self._actions)
        if self._score is not None and other:
            self._tie(self._score(bins), bins)
        elif self._actions is not None and other:
            raise ValueError(
                "These are not the actions that the logits are conditional on, and there is no model to score others; "
                "give proba_distribution a score function."
            )
        return gather_bins(self.log_probs, bins)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Log-probability of actions (B, N), float32 (B,): the sum of the conditional terms."""
        return self.token_log_probs(actions).sum(dim=1)

    def entropy_per_dim(self) -> th.Tensor:
        """Entropy of each token given the earlier ones of the tied chain, float32 (B, N), in nats."""
        return bin_entropy(self.log_probs)

    def entropy(self) -> th.Tensor:
        """Sum of the conditional entropies, float32 (B,); its mean over sampled chains is the chain's entropy."""
        return self.entropy_per_dim().sum(dim=1)

    def sample(self) -> th.Tensor:
        """Bins, int64 (B, N)."""
        if self._draw is not None:
            return self._tie_drawn(self._draw(False))
        flat = self.log_probs.exp().flatten(0, 1)
        return th.multinomial(flat, 1).view(self.log_probs.shape[:2])

    def mode(self) -> th.Tensor:
        """Bins, int64 (B, N), each the likeliest given those before (greedy decoding)."""
        if self._draw is not None:
            return self._tie_drawn(self._draw(True))
        return self.log_probs.argmax(dim=-1)

    def actions_from_params(self, action_logits: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """Bins of independent tokens with these logits (B, N, 256)."""
        return self.proba_distribution(action_logits).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, action_logits: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Sampled bins of independent tokens, and their log-probability."""
        actions = self.actions_from_params(action_logits)
        return actions, self.log_prob(actions)

    def _tie(self, logits: th.Tensor, actions: th.Tensor | None) -> None:
        if logits.ndim != 3 or logits.shape[1:] != (self.n_tokens, N_BINS):
            raise ValueError(f"Logits have shape {tuple(logits.shape)}; expected (batch, {self.n_tokens}, {N_BINS}).")
        self._log_probs = self.sampling.log_probs(logits, drawn=actions)
        self._actions = None if actions is None else actions.long()

    def _tie_drawn(self, chain: Chain) -> th.Tensor:
        self._tie(chain.logits, chain.actions)
        return chain.actions
