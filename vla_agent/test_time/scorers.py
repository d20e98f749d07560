"""What chooses among candidates: a scorer is asked about n chains of each observation, and gives each a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch as th

from vla_agent.backbone import CandidateSamples, VLABackbone, is_backbone
from vla_agent.envs.vec_env import VLAVecEnv


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


class CandidatePolicy(Protocol):
    """What scorers ask of whoever draws the candidates; a `VLAPolicy` is one."""

    @property
    def backbone(self) -> VLABackbone:
        """The model."""

    @property
    def unnorm_key(self) -> str | None:
        """Name of the statistics that normalise the robot's state; None for the only one."""


# Makes a scorer for a policy and the environments that it acts in; None where none of `make_vec_env` are at hand.
ScorerMaker = Callable[[CandidatePolicy, "VLAVecEnv | None"], ActionScorer]


def candidate_policy(model: Any) -> CandidatePolicy:
    """The policy of a model, if it can draw candidates.

    Raises:
        ScorerError: If it cannot.
    """
    policy = getattr(model, "policy", model)
    backbone = getattr(policy, "backbone", None)
    if not is_backbone(backbone) or not backbone.abilities.speaks_bins:
        raise ScorerError(
            f"A {type(model).__name__} draws no action tokens, so there are no candidates to choose from; give a "
            "VLAPolicy, or a learner with one."
        )
    if not backbone.abilities.samples_candidates:
        raise ScorerError(
            f"This {type(backbone).__name__} draws one chain of an observation at a time; give it "
            "sample_candidates and score_candidates, and say so in its abilities (samples_candidates)."
        )
    return cast(CandidatePolicy, policy)


def choose(scorer: ActionScorer, question: Question) -> tuple[np.ndarray, np.ndarray]:
    """The number of the best candidate of each observation, int64 (B,), and all scores, float64 (B, n).

    Ties go to the first.

    Raises:
        ScorerError: If the scorer answers no scores.
    """
    scores = checked_choice_scores(scorer, question)
    return cast(np.ndarray, scores.argmax(axis=1)), scores  # NumPy gives the first of equals


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
