"""Advantage-weighted regression: cloning in which better frames count exponentially more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from libero_gym.common.checks import real_number
from vla_agent.offline.advantages import Advantages
from vla_agent.offline.checks import outcomes_of
from vla_agent.sft.data import ActionChunks


@dataclass(frozen=True)
class AWR:
    """Advantage-weighted regression (Peng et al., 2019, arXiv 1910.00177).

    The policy is cloned by its next-token loss, each frame with the weight of their algorithm 1, clipped as theirs:

        w = min(exp(A / beta), w_max),    A = R - V(s).

    A frame's loss is multiplied by its weight over the mean weight, so that minibatches of any size follow their
    expectation. Values are those of the policy that recorded the episodes,
    fitted once; its authors alternate between sampling and fitting, which offline data do not allow.

    Args:
        beta: Temperature of the weights: small ones learn from the best frames alone, large ones clone all alike.
        max_weight: Largest weight, w_max.

    Raises:
        ValueError: If one is no number above 0.
    """

    beta: float = 0.2
    max_weight: float = 20.0

    needs_advantages: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real_number("beta", self.beta, above=0)
        real_number("max_weight", self.max_weight, above=0)

    def prepare(self, data: ActionChunks, estimate: Advantages | None = None) -> dict[str, float]:
        """See `OfflineMethod.prepare`."""
        outcomes_of(data, needs_failures=True)
        if estimate is None:
            raise ValueError("AWR weighs frames by their advantages; give what estimate_advantages(model, data) gives.")
        exponents = estimate.advantages.astype(np.float64) / self.beta
        weights = np.exp(np.minimum(exponents, math.log(self.max_weight)))
        if not weights.astype(np.float32).any():
            raise ValueError(f"beta={self.beta:g} leaves each frame the weight 0; take a larger one.")
        data.reweigh(weights)
        return {
            "effective_sample_size": effective_sample_size(weights),
            "clipped_weights": float((exponents > math.log(self.max_weight)).mean()),
        }


def effective_sample_size(weights: np.ndarray) -> float:
    """Share of n examples that would tell as much if all counted alike: (sum w)^2 / (n sum w^2) (Kish, 1965).

    Args:
        weights: At least 0, not all 0, (n,).

    Returns:
        1 if all are equal, 1 / n if one has all the weight.
    """
    return float(weights.sum() ** 2 / np.square(weights).sum() / len(weights))
