"""What chooses among candidates: a scorer is asked about n chains of each observation, and gives each a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th

from vla_agent.backbone import CandidateSamples
from vla_agent.envs.vec_env import VLAVecEnv
from vla_agent.policy.policy import VLAPolicy


class ScorerError(ValueError):
    """A scorer cannot be found or read, does not fit the policy or the environments, or answers no scores."""


class Question(NamedTuple):
    """n candidates of each of B observations.

    Attributes:
        inputs: The observations, as arguments of the policy's backbone.
        candidates: The candidates, with the logits and hidden states that they were drawn from.
    """

    inputs: Mapping[str, Any]
    candidates: CandidateSamples

    @property
    def actions(self) -> np.ndarray:
        """The candidates' bins, int64 (B, n, N), in the host's memory."""
        return np.asarray(self.candidates.bins.cpu().numpy())


class ActionScorer(Protocol):
    """Says how good candidates are. Only their order within an observation counts."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def is_oracle(self) -> bool:
        """Whether it reads what no policy can know, such as the evaluation's own simulator; reports say so."""

    def score(self, question: Question) -> th.Tensor:
        """Scores, (B, n): finite numbers, the higher the better."""


# Makes a scorer for a policy and the environments that it acts in.
ScorerMaker = Callable[[VLAPolicy, VLAVecEnv], ActionScorer]


def checked_choice_scores(scorer: ActionScorer, question: Question) -> np.ndarray:
    """A scorer's answer, float64 (B, n).

    Raises:
        ScorerError: If it is of another shape, or holds numbers that are not finite.
    """
    expected = tuple(question.candidates.bins.shape[:2])
    scores = th.as_tensor(scorer.score(question)).detach().cpu().double().numpy()
    if scores.shape != expected:
        raise ScorerError(f"The scorer '{scorer.name}' gave shape {scores.shape} for candidates {expected}.")
    if not np.isfinite(scores).all():
        raise ScorerError(f"The scorer '{scorer.name}' gave scores that are not finite; nothing can be chosen by them.")
    return scores
