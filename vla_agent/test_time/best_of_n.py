"""A policy that draws several candidates for each decision and takes the one that a scorer likes best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch as th

from libero_gym.common.checks import flag, whole_number
from vla_agent.policy.policy import VLAPolicy
from vla_agent.test_time.calibration import rank_correlation
from vla_agent.test_time.scorers import (
    ActionScorer,
    Question,
    ScorerError,
    candidate_policy,
    checked_choice_scores,
    choose,
)


class BestOfN:
    """Best of n by a scorer, behind SB3's ``predict``: whatever plays a policy can play it.

    With ``deterministic=True`` the first candidate is the greedy chain and n - 1 are drawn, at the policy's
    temperature; otherwise all n are drawn. Ties go to the first. So n = 1 is the policy itself, to the bit: nothing is
    scored then.

    Args:
        model: A `VLAPolicy`, or a learner with one.
        n: Candidates of each decision.
        scorer: What chooses; not needed for n = 1.
        judge: A second scorer, such as an oracle, that chooses nothing: `rank_correlations` says how far the two agree.
        seed: Seed of the draws; None draws by torch's global generator, as the policy does.

    Attributes:
        policy: The `VLAPolicy`. Its ``sampling`` says how candidates are drawn.
        hidden: The model's hidden states at the latest decision, (n_envs, D); None before the first one.
        chosen_scores: Score of each environment's latest choice, float64 (n_envs,); None before the first one, and for
            n = 1.
        rank_correlations: Spearman's correlation of scorer and judge over the candidates of each decision so far, where
            neither found all of them equal.

    Raises:
        ValueError: If ``n`` is no whole number of at least 1, or ``seed`` is none.
        ScorerError: If there is nothing to choose by, or the model draws no bins or no candidates.
    """

    def __init__(
        self,
        model: Any,
        n: int,
        scorer: ActionScorer | None = None,
        *,
        judge: ActionScorer | None = None,
        seed: int | None = None,
    ) -> None:
        self.policy, self.n = cast(VLAPolicy, candidate_policy(model)), whole_number("n", n, 1)
        if self.n > 1 and scorer is None:
            raise ScorerError(f"n={n} candidates need a scorer to choose by, such as MaskedAgreement(policy).")
        self.scorer, self.judge = scorer, judge
        self.observation_space, self.action_space = self.policy.observation_space, self.policy.action_space
        self._generator = None
        if seed is not None:
            device = self.policy.backbone.device
            self._generator = th.Generator(device).manual_seed(whole_number("seed", seed, 0, 2**63 - 1))
        self.hidden: th.Tensor | None = None
        self.chosen_scores: np.ndarray | None = None
        self.rank_correlations: list[float] = []

    @property
    def settings(self) -> dict[str, Any]:
        """What a report states of it."""
        if self.n == 1 or self.scorer is None:
            return {"best_of_n": 1}
        weights = getattr(self.scorer, "weights_hash", None)  # a scorer without weights is what its name says
        told = {} if weights is None else {"scorer_weights": weights}
        return {"best_of_n": self.n, "scorer": self.scorer.name, "oracle": self.scorer.is_oracle, **told}

    def predict(
        self,
        obs: dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        *,
        playing: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, None]:
        """The chosen bins (n_envs, N), or (N,) of a single observation.

        Args:
            obs: Observations, with or without a batch dimension.
            state, episode_start: Not read; whoever plays SB3's policies passes them.
            deterministic: Whether the greedy chain is among the candidates.
            playing: Numbers of the environments whose actions count; None for all.

        Raises:
            ScorerError: If the scorer answers no scores.
            FloatingPointError: If the model's logits are not finite.
        """
        deterministic = flag("deterministic", deterministic)
        self.policy.set_training_mode(False)
        tensors, vectorized = self.policy.obs_to_tensor(obs)
        with th.no_grad():
            inputs = self.policy.backbone_inputs(tensors)
            candidates = self.policy.backbone.sample_candidates(
                **inputs,
                n_samples=self.n,
                greedy_first=deterministic,
                sampling=self.policy.sampling,
                generator=self._generator,
            )
            self.hidden, question = candidates.hidden, Question(inputs, candidates)
            chosen = self._choose(question, playing)
        actions = question.actions[np.arange(len(chosen)), chosen]
        return (actions if vectorized else actions[0]), None

    def _choose(self, question: Question, playing: Sequence[int] | None) -> np.ndarray:
        """Number of the best candidate of each observation, (B,)."""
        n_rows = len(question.candidates.bins)
        if self.n == 1 or self.scorer is None:
            return np.zeros(n_rows, dtype=np.int64)
        chosen, scores = choose(self.scorer, question)
        self.chosen_scores = scores[np.arange(n_rows), chosen]
        if self.judge is not None:
            judged = checked_choice_scores(self.judge, question)
            rows = range(n_rows) if playing is None else playing
            found = (rank_correlation(scores[row], judged[row]) for row in rows)
            self.rank_correlations += [value for value in found if value is not None]
        return chosen
