"""Agreement with a copy of the policy that is told less: a scorer that needs nothing but the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th

from libero_gym.common.checks import choice, sequence
from vla_agent.bins import gather_bins
from vla_agent.test_time.scorers import Question, ScorerError, candidate_policy

CONDITIONS = ("instruction", "state")


class MaskedAgreement:
    """How much the instruction and the robot's state speak for a candidate (MG-Select, Jang et al., arXiv 2510.05681).

    The same model scores the candidates without those conditions. A candidate's confidence is the divergence of its
    tokens' distributions P, all conditions given, from that reference Q, sum_i KL(Q_i || P_i), each token with the
    earlier ones of its own chain given. Where P_i stays near Q_i, the model acts out of habit.

    For a model whose tokens are independent given the observation (parallel decoding), P and Q are the same for all
    candidates, and that sum could choose nothing. There the confidence is pointwise, of the bins that were drawn:
    sum_i log P_i(a_i) - log Q_i(a_i).

    Args:
        model: The policy, or a learner with one.
        masked: Conditions to leave out: "instruction" leaves the prompt without words for the task, "state" puts the
            middle of the training data's range in its place. By default, both that the model has.

    Raises:
        ScorerError: If a condition is left out that the model never had, or the model cannot score candidates.
        ValueError: If there is no such condition, or ``masked`` is a single one's name.
    """

    name, is_oracle = "agreement", False

    def __init__(self, model: Any, masked: Sequence[str] | None = None) -> None:
        self.policy = candidate_policy(model)
        reads_state = self.policy.backbone.config.use_state
        self.masked = CONDITIONS[: 2 if reads_state else 1] if masked is None else tuple(sequence("masked", masked))
        for condition in self.masked:
            choice("masked", condition, CONDITIONS)
        if not self.masked or ("state" in self.masked and not reads_state):
            raise ScorerError(
                f"masked={self.masked!r} leaves out nothing that the model reads; it reads "
                f"{' and '.join(CONDITIONS[: 2 if reads_state else 1])}."
            )
        ids, mask = self.policy.backbone.processor.codec(self.policy.unnorm_key).encode_prompt("")
        self._prompt = th.from_numpy(ids), th.from_numpy(mask)

    def score(self, question: Question) -> th.Tensor:
        """Confidence of each candidate, float32 (B, n), in nats."""
        backbone, candidates = self.policy.backbone, question.candidates
        log_p = candidates.logits.log_softmax(-1)
        log_q = backbone.score_candidates(**self._without(question.inputs), bins=candidates.bins).log_softmax(-1)
        if backbone.abilities.independent_tokens:
            return gather_bins(log_p - log_q, candidates.bins).sum(-1)
        return (log_q.exp() * (log_q - log_p)).sum((-1, -2))

    def _without(self, inputs: Any) -> dict[str, Any]:
        """The observations, as the model's arguments, without the conditions."""
        masked = dict(inputs)
        if "instruction" in self.masked:
            n_rows, device = inputs["input_ids"].shape[0], inputs["input_ids"].device
            masked["input_ids"], masked["attention_mask"] = (
                part.to(device).expand(n_rows, -1) for part in self._prompt
            )
        if "state" in self.masked:
            masked["state"] = th.zeros_like(inputs["state"])
        return masked
